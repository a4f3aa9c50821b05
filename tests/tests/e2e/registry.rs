//! The private upstream: Debian's docker-registry inside the node, which asks for a password.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use testbed::image;
use testbed::scratch::Scratch;
use testbed::{Node, binaries, node, wait};

/// The credential of the user who may pull.
pub(crate) const USER: (&str, &str) = ("puller", "only-for-this-test");
/// The user who may push at all times.
const PUSHER: &str = "pushes";
const PORT: u16 = 5001;
/// Its name on the node itself: runtimes ask this one host without TLS.
pub(crate) const LOCAL: &str = "localhost:5001";
const SOON: Duration = Duration::from_secs(30);

/// The name that goes with a password.
pub(crate) fn user(password: &str) -> String {
    format!("{}-{password}", USER.0)
}

/// Returns the URL of the registry for nodes and Pods.
pub(crate) fn url() -> String {
    format!("http://{}:{PORT}", node::ADDRESS)
}

/// It ends with the node.
pub(crate) struct Registry {
    scratch: Scratch,
    log: PathBuf,
}

impl Registry {
    pub(crate) async fn start(node: &Node) -> Self {
        let scratch = Scratch::new("e2e-registry").unwrap();
        let users = scratch.path().join("htpasswd");
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: ':{PORT}'}}\nauth: {{htpasswd: {{realm: e2e, path: {}}}}}\n",
            scratch.path().join("content").display(),
            users.display()
        );
        scratch.write("config.yml", config).unwrap();
        let log = scratch.path().join("log");
        let registry = Self { scratch, log };
        registry.takes(&[USER.1]);
        registry.run(node).await;
        registry
    }

    /// Knows the users of these passwords, beside the one that pushes. A password file holds one password for each name:
    /// each password has a name of its own.
    pub(crate) fn takes(&self, passwords: &[&str]) {
        let line = |password: &&str| format!("{}:{}\n", user(password), bcrypt::hash(password, 4).unwrap());
        let users: String = passwords.iter().chain([&PUSHER]).map(line).collect();
        self.scratch.write("htpasswd", users).unwrap();
    }

    /// Starts it, also again.
    pub(crate) async fn run(&self, node: &Node) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let directory = self.scratch.path().display();
        // The process id inside the node, to end it by.
        let script = format!("echo $$ >{directory}/pid; exec docker-registry serve {directory}/config.yml");
        let mut shell = node.command("sh");
        shell
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // The node's end is its end.
            .kill_on_drop(false);
        shell.spawn().unwrap();
        let url = format!("{}/", url());
        let answers = async || node.run(&["curl", "-sf", &url]).await.ok();
        wait::until("answer from the registry", SOON, answers)
            .await
            .unwrap();
    }

    pub(crate) async fn stop(&self, node: &Node) {
        let pid = fs::read_to_string(self.scratch.path().join("pid")).unwrap();
        node.run(&["kill", pid.trim()]).await.unwrap();
        let url = format!("{}/", url());
        let refuses = async || node.run(&["curl", "-sf", &url]).await.is_err().then_some(());
        wait::until("end of the registry", SOON, refuses).await.unwrap();
    }

    /// An image of a program that waits, with content that no other tag has.
    pub(crate) async fn push(&self, node: &Node, tag: &str) {
        let pause = image::File {
            source: binaries::get("pause").await.unwrap(),
            path: "/pause".to_owned(),
        };
        let own = image::File {
            source: self.scratch.write("own", tag.repeat(1 << 20)).unwrap(),
            path: "/own".to_owned(),
        };
        let directory = self.scratch.path().join(format!("image-{tag}"));
        let layout = image::of_files(&directory, tag, &[pause, own]).unwrap();
        let (from, to) = (
            format!("oci:{}:{tag}", layout.path().display()),
            format!("docker://{}:{PORT}/team/app:{tag}", node::ADDRESS),
        );
        let user = format!("--dest-creds={}:{PUSHER}", user(PUSHER));
        node.run(&[
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            "--dest-tls-verify=false",
            &user,
            &from,
            &to,
        ])
        .await
        .unwrap();
    }

    /// Adds a large blob of zeros, and returns its digest.
    pub(crate) async fn push_blob(&self, node: &Node, mebibytes: u32) -> String {
        let file = self.scratch.path().join("blob").display().to_string();
        let curl = format!("curl -sf -u {}:{PUSHER}", user(PUSHER));
        let uploads = format!("{}/v2/team/app/blobs/uploads/", url());
        let script = format!(
            "set -e; truncate -s {mebibytes}M {file}; sum=$(sha256sum {file} | cut -d' ' -f1)
             to=$({curl} -X POST -D - -o /dev/null {uploads} | tr -d '\\r' | sed -n 's/^[Ll]ocation: //p')
             {curl} -T {file} -H 'Content-Type: application/octet-stream' \"$to&digest=sha256:$sum\" >&2
             rm {file}; echo sha256:$sum"
        );
        let digest = node.run(&["sh", "-c", &script]).await;
        digest.unwrap_or_else(|error| panic!("{error}")).trim().to_owned()
    }

    /// The lines of its access log that tell of a pull.
    pub(crate) fn pulls(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap();
        let reads = |line: &&str| line.contains("\"GET /v2/team/") || line.contains("\"HEAD /v2/team/");
        let skopeo = |line: &&str| !line.contains("skopeo") && !line.contains("containers/image");
        log.lines()
            .filter(reads)
            .filter(skopeo)
            .map(str::to_owned)
            .collect()
    }
}
