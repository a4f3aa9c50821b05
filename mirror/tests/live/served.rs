//! A server process with a directory of its own; both are gone when it is dropped.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

/// The longest that a test waits for what has to happen.
const LIMIT: Duration = Duration::from_secs(30);

/// A directory; `HOME` in a text that is written there is replaced by its path.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let text = text.replace("HOME", &self.0.path().display().to_string());
        fs::write(self.path(name), text).unwrap();
    }

    /// Starts the server with these lines of configuration in addition to the usual ones.
    pub(crate) async fn serve(self, http: &str, rest: &str, environment: &[(&str, &str)]) -> Served {
        self.start(http, rest, environment).await.0
    }

    /// Starts the server as [`Self::serve`] does, and returns the line of the log by which it serves.
    pub(crate) async fn serve_with_line(self, http: &str, rest: &str) -> (Served, Value) {
        self.start(http, rest, &[]).await
    }

    async fn start(self, http: &str, rest: &str, environment: &[(&str, &str)]) -> (Served, Value) {
        let yaml = format!(
            "version: 0.1\nlog: {{formatter: json}}\nstorage: {{filesystem: {{rootdirectory: HOME/cache}}}}\n\
             http: {{addr: '127.0.0.1:0', debug: {{addr: '127.0.0.1:0'}}{http}}}\n{rest}\n"
        );
        self.write("config.yml", &yaml);
        let mut process = Command::new(env!("CARGO_BIN_EXE_mirror"))
            .args(["serve", "config.yml"])
            .current_dir(self.0.path())
            .env_clear()
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut served = Served {
            home: self,
            process,
            log: Some(log),
            address: String::new(),
            admin: String::new(),
        };
        let line = served.line("\"serving\"").await;
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        (served.address, served.admin) = (text("address"), text("admin"));
        (served, line)
    }
}

pub(crate) struct Served {
    pub(crate) home: Home,
    process: Child,
    log: Option<Lines<BufReader<ChildStderr>>>,
    pub(crate) address: String,
    pub(crate) admin: String,
}

impl Served {
    /// The first line of the log from here on that has this text.
    pub(crate) async fn line(&mut self, text: &str) -> Value {
        let log = self.log.as_mut().unwrap();
        let find = async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains(text) {
                    return serde_json::from_str(&line).unwrap();
                }
            }
            panic!("the log ended without {text:?}");
        };
        tokio::time::timeout(LIMIT, find).await.expect(text)
    }

    /// All that is still to come of the log, to the end of the server.
    pub(crate) async fn rest_of_the_log(&mut self) -> String {
        let log = self.log.as_mut().unwrap();
        let read = async {
            let mut text = String::new();
            while let Some(line) = log.next_line().await.unwrap() {
                text.push_str(&line);
                text.push('\n');
            }
            text
        };
        tokio::time::timeout(LIMIT, read).await.expect("the end")
    }

    /// Reads the log without use of it, so that the server can continue to write.
    pub(crate) fn forget_log(&mut self) {
        let mut log = self.log.take().unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let answer = client()
            .get(format!("http://{}{path}", self.address))
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        (status, answer.bytes().await.map(Vec::from).unwrap_or_default())
    }

    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        let answer = client()
            .get(format!("http://{}{path}", self.admin))
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.admin("/status").await.1).unwrap()
    }

    /// Returns the number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id().unwrap()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for its end, and says how it was.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(LIMIT, self.process.wait()).await;
        ended.expect("the end").unwrap().code()
    }
}

pub(crate) fn client() -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::builder().no_proxy().timeout(LIMIT).build().unwrap()
}

/// Writes files as kubelet does: a new directory, and a link that is renamed over the old one.
pub(crate) fn publish(root: &Path, round: u64, files: &[(&str, String)]) {
    fs::create_dir_all(root).unwrap();
    let data = root.join(format!("..2026_{round}"));
    fs::create_dir(&data).unwrap();
    for (name, text) in files {
        fs::write(data.join(name), text).unwrap();
    }
    symlink(&data, root.join("..data_tmp")).unwrap();
    let old = fs::read_link(root.join("..data"));
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    for (name, _) in files {
        let _ = symlink(Path::new("..data").join(name), root.join(name));
    }
    if let Ok(old) = old {
        fs::remove_dir_all(old).unwrap();
    }
}

pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < LIMIT, "never {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
