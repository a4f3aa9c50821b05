//! A real node for machines with root: kubelet, containerd and all, in namespaces of its own with no way out.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command as BlockingCommand, Stdio};

use tokio::process::Command;

use crate::binaries::workspace;

/// Its address; its own processes reach it at this one, as do its Pods.
pub const ADDRESS: &str = "10.199.0.1";

/// Why there is no node, or a command in it failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("tests/cluster/up failed: see its message above")]
    Up,
    #[error("{command}: {message}")]
    Failed { command: String, message: String },
}

fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// A node that is up; taken down on drop.
pub struct Node {
    name: String,
    // Held as long as the node is up.
    _lock: File,
}

impl Node {
    /// Returns true if this user may make a node.
    pub fn is_possible() -> bool {
        rustix::process::getuid().is_root()
    }

    /// Starts the node of this name; waits where another process has it, takes down what one that was killed left.
    /// `kubelet` is added to the kubelet's configuration.
    pub async fn up(name: &str, kubelet: &str) -> Result<Self, Error> {
        let lock = std::env::temp_dir().join(format!("{name}-cluster.lock"));
        let lock = File::create(&lock).map_err(io(format!("can't make {}", lock.display())))?;
        lock.lock().map_err(io("can't wait for the node"))?;
        let node = Self {
            name: name.to_owned(),
            _lock: lock,
        };
        node.take_down();
        let status = node
            .script("up")
            .env("KUBELET_EXTRA", kubelet)
            .status()
            .await
            .map_err(io("tests/cluster/up"))?;
        if status.success() {
            Ok(node)
        } else {
            Err(Error::Up)
        }
    }

    /// Returns a command in the node's namespaces with the permissions of an administrator: `kubectl`, `ctr`, `curl`, …
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.script("in");
        command.arg(program).kill_on_drop(true);
        command
    }

    /// Runs a command to its end and returns its output.
    pub async fn run(&self, command: &[&str]) -> Result<String, Error> {
        let joined = command.join(" ");
        let Some((program, arguments)) = command.split_first() else {
            return Ok(String::new());
        };
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .await;
        let output = output.map_err(io(&joined))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Failed {
            command: joined,
            message: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Brings an image archive into containerd.
    pub async fn import(&self, archive: &Path) -> Result<(), Error> {
        let path = archive.display().to_string();
        self.run(&["ctr", "-n", "k8s.io", "images", "import", &path])
            .await
            .map(drop)
    }

    /// Tells containerd how to reach a registry: the content of its `hosts.toml`, taken up at once.
    pub fn write_hosts(&self, registry: &str, toml: &str) -> Result<(), Error> {
        let directory = self.directory().join("certs.d").join(registry);
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(directory.join("hosts.toml"), toml))
            .map_err(io(format!("can't write hosts.toml for {registry}")))
    }

    /// Returns the directory of the node's state and logs.
    pub fn directory(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{}-cluster", self.name))
    }

    fn script(&self, script: &str) -> Command {
        let mut command = Command::new(workspace().join("tests/cluster").join(script));
        command
            .env("CLUSTER_NAME", &self.name)
            .env("CLUSTER_RUN", self.directory());
        command
    }

    fn take_down(&self) {
        let mut down: BlockingCommand = self.script("down").into_std();
        if !down.status().is_ok_and(|status| status.success()) {
            eprintln!(
                "the node {} could not be taken down: run tests/cluster/down",
                self.name
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.take_down();
    }
}
