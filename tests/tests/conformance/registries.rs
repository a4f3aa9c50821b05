//! Three registries that are not ours, each with an empty storage.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testbed::process::{Daemon, command, free_ports};
use testbed::scratch::Scratch;
use testbed::{binaries, wait};

const LIMIT: Duration = Duration::from_mins(1);
/// How often another port is tried where somebody else was quicker.
const ATTEMPTS: usize = 5;

/// Which registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Debian's docker-registry.
    Distribution2,
    /// CNCF Distribution 3.
    Distribution3,
    /// olareg, which has all of distribution-spec 1.1, referrers included.
    Olareg,
}

/// A running registry; ended when dropped.
pub(crate) struct Registry {
    pub(crate) url: String,
    _daemon: Daemon,
    _scratch: Scratch,
}

impl Registry {
    pub(crate) async fn start(kind: Kind) -> Self {
        testbed::install_crypto_provider();
        let program = match kind {
            Kind::Distribution2 => PathBuf::from("/usr/bin/docker-registry"),
            Kind::Distribution3 => binaries::get("registry").await.expect("Distribution 3"),
            Kind::Olareg => binaries::get("olareg").await.expect("olareg"),
        };
        for _ in 0..ATTEMPTS {
            let scratch = Scratch::new("registry").expect("a directory");
            let [port] = free_ports().expect("a port");
            let command = kind.command(command(&program), &scratch, port);
            let log = scratch.path().join("log");
            let mut daemon = Daemon::spawn("registry", command, &log).expect("a registry");
            let listens = || {
                let ended = daemon.exited().is_some();
                async move {
                    let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
                    (ended || connected.is_ok()).then_some(())
                }
            };
            wait::until("registry that listens", LIMIT, listens)
                .await
                .expect("it starts");
            if daemon.exited().is_none() {
                return Self {
                    url: format!("http://127.0.0.1:{port}"),
                    _daemon: daemon,
                    _scratch: scratch,
                };
            }
        }
        panic!("{kind:?} does not stay");
    }
}

impl Kind {
    fn command(self, mut command: Command, scratch: &Scratch, port: u16) -> Command {
        let storage = scratch.subdirectory("storage").expect("a directory");
        if self == Self::Olareg {
            command.args(["serve", "--addr", "127.0.0.1", "--gc-frequency", "-1s"]);
            command.args(["--api-sparse-index", "--api-sparse-image"]);
            command.arg("--port").arg(port.to_string());
            command.arg("--dir").arg(storage);
            return command;
        }
        let config = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n",
            storage.display()
        );
        command.env("OTEL_TRACES_EXPORTER", "none");
        command.arg("serve");
        command.arg(scratch.write("config.yml", config).expect("a file"));
        command
    }
}
