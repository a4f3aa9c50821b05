//! A running `mirror serve`, and the plainest client there is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use mirror::digest::{Algorithm, Digest, Hasher};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

use crate::LIMIT;
use crate::hub::Hub;
use crate::small_disk;

const MIRROR: &str = env!("CARGO_BIN_EXE_mirror");

/// Writes the configuration of a mirror of `hub` next to its cache `root`; `proxy` has more keys of that section.
fn configured(root: &Path, hub: &Hub, proxy: &str) -> PathBuf {
    let config = root.with_extension("yml");
    let yaml = format!(
        "version: 0.1\n\
         log: {{formatter: json}}\n\
         storage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
         http: {{addr: '127.0.0.1:0', debug: {{addr: '127.0.0.1:0', prometheus: {{enabled: true}}}}}}\n\
         proxy: {{remoteurl: '{}', {proxy}}}\n",
        root.display(),
        hub.url()
    );
    std::fs::write(&config, yaml).unwrap();
    config
}

/// The process; killed when dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: String,
    pub(crate) admin: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// The unread lines of the server's log.
pub(crate) type Log = Lines<BufReader<ChildStderr>>;

/// The head of an answer, and the connection to read its body from.
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) text: String,
    stream: TcpStream,
    early: Vec<u8>,
}

impl Server {
    /// Mirrors `hub` as its default upstream into `root`; `proxy` is more of that section.
    pub(crate) async fn start(root: &Path, hub: &Hub, proxy: &str) -> Self {
        Self::start_in(root, hub, proxy, &[]).await
    }

    /// The same with these variables in its environment.
    pub(crate) async fn start_in(root: &Path, hub: &Hub, proxy: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = std::process::Command::new(MIRROR);
        command.args([Path::new("serve"), &configured(root, hub, proxy)]);
        command.env_clear().envs(environment.iter().copied());
        Self::run(command).await
    }

    /// Mirrors `hub` in a process with a limit of `ulimit`, such as `-n 64`.
    pub(crate) async fn start_with_limit(limit: &str, root: &Path, hub: &Hub) -> Self {
        let mut command = std::process::Command::new("sh");
        let script = format!("ulimit {limit}; exec \"$0\" serve \"$1\"");
        command
            .args(["-c", &script, MIRROR])
            .arg(configured(root, hub, ""));
        command.env_clear().env("PATH", "/usr/bin:/bin");
        Self::run(command).await
    }

    /// Mirrors `hub` on a socket in the file system, in a process that is started with this umask.
    pub(crate) async fn start_on_socket(umask: &str, socket: &Path, root: &Path, hub: &Hub) -> Self {
        let mut command = std::process::Command::new("sh");
        let script = format!("umask {umask}; exec \"$0\" serve \"$1\"");
        command
            .args(["-c", &script, MIRROR])
            .arg(configured(root, hub, ""));
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command
            .env("REGISTRY_HTTP_NET", "unix")
            .env("REGISTRY_HTTP_ADDR", socket);
        Self::run(command).await
    }

    /// Mirrors `hub` with a file system of its own as root, of that size.
    pub(crate) async fn start_on_small_disk(
        how: &str,
        size: &str,
        root: &Path,
        hub: &Hub,
        proxy: &str,
    ) -> Self {
        std::fs::create_dir(root).unwrap();
        let mut command = small_disk::command(how, root, size, "exec \"$1\" serve \"$2\"");
        command.arg(MIRROR).arg(configured(root, hub, proxy));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Self::run(command).await
    }

    /// The same without a reader of the log once the server serves: the pipe stalls while the log is held.
    pub(crate) async fn start_unread(root: &Path, hub: &Hub) -> (Self, Log) {
        let mut command = std::process::Command::new(MIRROR);
        command
            .args([Path::new("serve"), &configured(root, hub, "")])
            .env_clear();
        Self::launch(command).await
    }

    async fn run(command: std::process::Command) -> Self {
        let (server, mut log) = Self::launch(command).await;
        let said = Arc::clone(&server.log);
        // Lines that stay in the pipe would stall the server after a while.
        tokio::spawn(async move {
            while let Ok(Some(line)) = log.next_line().await {
                assert!(!line.contains("panicked"), "{line}");
                // One for each request would be too many to keep.
                if !line.contains("\"access\"") {
                    said.lock().push(line);
                }
            }
        });
        server
    }

    async fn launch(command: std::process::Command) -> (Self, Log) {
        let mut process = Command::from(command)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let (address, admin) = loop {
            let line = tokio::time::timeout(LIMIT, log.next_line())
                .await
                .unwrap()
                .unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended at once: {said:?}"));
            if line.contains("\"serving\"") {
                let read: serde_json::Value = serde_json::from_str(&line).unwrap();
                let text = |name: &str| read[name].as_str().unwrap().to_owned();
                break (text("address"), text("admin"));
            }
            said.push(line);
        };
        let server = Self {
            process,
            address,
            admin,
            log: Arc::new(Mutex::new(said)),
        };
        (server, log)
    }

    /// Returns the number of log lines that contain `what`.
    pub(crate) fn said(&self, what: &str) -> usize {
        let log = self.log.lock();
        log.iter().filter(|line| line.contains(what)).count()
    }

    /// Ends it as a kubelet does.
    pub(crate) async fn end(mut self) -> ExitStatus {
        let id = self
            .process
            .id()
            .and_then(|id| Pid::from_raw(id.try_into().unwrap()));
        kill_process(id.unwrap(), Signal::TERM).unwrap();
        tokio::time::timeout(LIMIT, self.process.wait())
            .await
            .unwrap()
            .unwrap()
    }

    /// Stops it as `kill -STOP` does: it answers nothing, and its connections stay.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it run again.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.id().unwrap().try_into().unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Kills it as `kill -9` does.
    pub(crate) async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }

    /// Memory of its own in bytes: what files are mapped or cached is not in it.
    pub(crate) fn memory(&self) -> u64 {
        let id = self.process.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The head of the answer to a GET; more header lines may be given.
    pub(crate) async fn get(&self, path: &str, headers: &str) -> io::Result<Head> {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n{headers}\r\n"
        ))
        .await
    }

    /// The head of the first answer to these bytes.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> io::Result<Head> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(request.as_ref()).await?;
        Head::read(stream).await
    }

    /// All that comes back for these bytes until the server ends the connection.
    pub(crate) async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(request.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
        // Bytes that the server did not read make its system reset the connection: that is an end too.
        let _ = read.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Head {
    pub(crate) async fn read(mut stream: TcpStream) -> io::Result<Self> {
        let mut early = Vec::new();
        loop {
            if let Some(end) = early.windows(4).position(|part| part == b"\r\n\r\n") {
                let rest = early.split_off(end + 4);
                let text = String::from_utf8_lossy(&early).to_lowercase();
                let status = text[9..12].parse().map_err(io::Error::other)?;
                return Ok(Self {
                    status,
                    text,
                    stream,
                    early: rest,
                });
            }
            if stream.read_buf(&mut early).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    }

    /// The body, as text.
    pub(crate) async fn body(self) -> io::Result<String> {
        let mut body = Vec::new();
        self.each(|chunk| body.extend_from_slice(chunk)).await?;
        String::from_utf8(body).map_err(io::Error::other)
    }

    /// Returns the digest of the body, or an error if the body ends early.
    pub(crate) async fn digest(self) -> io::Result<Digest> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        self.each(|chunk| hasher.update(chunk)).await?;
        Ok(hasher.finish())
    }

    /// Waits for the first bytes of the body.
    pub(crate) async fn first_byte(&mut self) -> io::Result<()> {
        while self.early.is_empty() {
            if self.stream.read_buf(&mut self.early).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    async fn each(mut self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let length = self.header("content-length").and_then(|value| value.parse().ok());
        let mut left: usize = length.ok_or_else(|| io::Error::other("no length"))?;
        let mut buffer = vec![0; 128 * 1024];
        take(&self.early);
        left = left
            .checked_sub(self.early.len())
            .ok_or_else(|| io::Error::other("too long"))?;
        while left > 0 {
            let most = left.min(buffer.len());
            match self.stream.read(&mut buffer[..most]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    take(&buffer[..read]);
                    left -= read;
                }
            }
        }
        Ok(())
    }
}
