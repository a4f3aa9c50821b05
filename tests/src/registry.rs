//! Registries of other projects, each with an empty storage that all clients may push to.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::process::{Daemon, StartError, command};
use crate::scratch::Scratch;
use crate::{binaries, install_crypto_provider};

const DISTRIBUTION_2: &str = "/usr/bin/docker-registry";
const STORAGE: &str = "storage";
const PASSWORDS: &str = "htpasswd";
/// The lowest cost of bcrypt: no attacker guesses these passwords.
const COST: u32 = 4;

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

/// The reason why there is no registry.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("docker-registry is missing: run tests/cluster/packages")]
    NotInstalled,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Program(#[from] binaries::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("can't make a password file: {0}")]
    Password(#[from] bcrypt::BcryptError),
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
        Self::start_for(kind, None).await
    }

    /// Starts a registry that admits only these users, unless `users` is `None`.
    pub(crate) async fn start_for(kind: Kind, users: Option<&[(String, String)]>) -> Result<Self, Error> {
        install_crypto_provider();
        let (program, scratch) = (kind.program().await?, Scratch::new("registry")?);
        let passwords = match users {
            Some(users) => Some(scratch.write(PASSWORDS, passwords(users)?)?),
            None => None,
        };
        let log = scratch.path().join("log");
        let (daemon, address) = Daemon::listening("registry", &log, |address| {
            let mut command = command(&program);
            command.env("OTEL_TRACES_EXPORTER", "none").arg("serve");
            command.args(kind.arguments(&scratch, address, passwords.as_deref())?);
            Ok(command)
        })
        .await?;
        Ok(Self {
            address,
            url: format!("http://{address}"),
            _daemon: daemon,
            scratch,
        })
    }

    /// Admits only these users from now on: the registry reads a changed file of passwords again.
    pub(crate) fn set_users(&self, users: &[(String, String)]) -> Result<(), Error> {
        self.scratch.write(PASSWORDS, passwords(users)?)?;
        Ok(())
    }
}

fn passwords(users: &[(String, String)]) -> Result<String, bcrypt::BcryptError> {
    let line =
        |(user, password): &(String, String)| Ok(format!("{user}:{}\n", bcrypt::hash(password, COST)?));
    users.iter().map(line).collect()
}

impl Kind {
    async fn program(self) -> Result<PathBuf, Error> {
        match self {
            Self::Distribution2 if Path::new(DISTRIBUTION_2).exists() => Ok(DISTRIBUTION_2.into()),
            Self::Distribution2 => Err(Error::NotInstalled),
            Self::Distribution3 => Ok(binaries::get("registry").await?),
            Self::Olareg => Ok(binaries::get("olareg").await?),
        }
    }

    fn arguments(
        self,
        scratch: &Scratch,
        address: SocketAddr,
        passwords: Option<&Path>,
    ) -> io::Result<Vec<String>> {
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
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": storage}},
            "http": {"addr": address},
        });
        if let Some(path) = passwords {
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": path}});
        }
        let config = scratch.write("config.yml", config.to_string())?;
        Ok(vec![config.display().to_string()])
    }
}
