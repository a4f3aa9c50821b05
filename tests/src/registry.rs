//! Registries that are not ours, each with an empty storage that anybody may push to.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{Daemon, command, free_ports};
use crate::scratch::Scratch;
use crate::wait::{self, TimedOut};
use crate::{binaries, install_crypto_provider};

const READY: Duration = Duration::from_mins(1);
/// The number of tries with another port after another process has taken the port.
const ATTEMPTS: usize = 5;
const STORAGE: &str = "storage";

/// The program that serves a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's docker-registry.
    Distribution2,
    /// CNCF Distribution 3.
    Distribution3,
    /// olareg, which has all of distribution-spec 1.1, referrers included.
    Olareg,
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Program(#[from] binaries::Error),
    #[error("{source}; the end of its log:\n{log}")]
    NotReady { source: TimedOut, log: String },
    #[error("{kind:?} ended while it was starting; the end of its log:\n{log}")]
    Died { kind: Kind, log: String },
}

/// A running registry; ended when dropped.
pub struct Registry {
    /// The address that the registry listens on.
    pub address: SocketAddr,
    /// The same as `http://127.0.0.1:PORT`.
    pub url: String,
    _daemon: Daemon,
    scratch: Scratch,
}

impl Registry {
    /// Returns the directory of the pushed content.
    pub fn storage(&self) -> PathBuf {
        self.scratch.path().join(STORAGE)
    }

    /// Starts one on a free port.
    pub async fn start(kind: Kind) -> Result<Self, Error> {
        install_crypto_provider();
        let program = kind.program().await?;
        let mut attempt = 1;
        loop {
            match Self::attempt(kind, &program).await {
                Err(Error::Died { .. }) if attempt < ATTEMPTS => attempt += 1,
                ended => return ended,
            }
        }
    }

    async fn attempt(kind: Kind, program: &Path) -> Result<Self, Error> {
        let scratch = Scratch::new("registry")?;
        let [port] = free_ports()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = command(program);
        command.env("OTEL_TRACES_EXPORTER", "none").arg("serve");
        command.args(kind.arguments(&scratch, address)?);
        let mut daemon = Daemon::spawn("registry", command, &scratch.path().join("log"))?;
        let listens = || {
            let ended = daemon.exited().is_some();
            async move {
                let connected = tokio::net::TcpStream::connect(address).await;
                (ended || connected.is_ok()).then_some(())
            }
        };
        let ready = wait::until("registry that listens", READY, listens).await;
        let log = daemon.log_tail();
        ready.map_err(|source| Error::NotReady {
            source,
            log: log.clone(),
        })?;
        if daemon.exited().is_some() {
            return Err(Error::Died { kind, log });
        }
        Ok(Self {
            address,
            url: format!("http://{address}"),
            _daemon: daemon,
            scratch,
        })
    }
}

impl Kind {
    async fn program(self) -> Result<PathBuf, binaries::Error> {
        match self {
            Self::Distribution2 => Ok(PathBuf::from("/usr/bin/docker-registry")),
            Self::Distribution3 => binaries::get("registry").await,
            Self::Olareg => binaries::get("olareg").await,
        }
    }

    fn arguments(self, scratch: &Scratch, address: SocketAddr) -> io::Result<Vec<String>> {
        let storage = scratch.subdirectory(STORAGE)?.display().to_string();
        if self == Self::Olareg {
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let own = [
                "--gc-frequency",
                "-1s",
                "--api-sparse-index",
                "--api-sparse-image",
            ];
            let own = own.iter().map(ToString::to_string);
            let given = ["--addr", &host, "--port", &port, "--dir", &storage].map(ToOwned::to_owned);
            return Ok(own.chain(given).collect());
        }
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{storage}'}}}}\nhttp: {{addr: '{address}'}}\n"
        );
        Ok(vec![scratch.write("config.yml", config)?.display().to_string()])
    }
}
