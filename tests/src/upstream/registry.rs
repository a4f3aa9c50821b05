//! Debian's docker-registry.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Error;
use crate::process::{Daemon, command};
use crate::scratch::Scratch;

const PROGRAM: &str = "/usr/bin/docker-registry";
/// The lowest cost of bcrypt: no attacker guesses these passwords.
const COST: u32 = 4;

pub(super) struct Registry {
    daemon: Daemon,
    address: SocketAddr,
    password_file: Option<PathBuf>,
}

impl Registry {
    /// Starts it with an empty storage; with `users` it admits only these.
    pub(super) fn spawn(
        scratch: &Scratch,
        port: u16,
        users: Option<&[(String, String)]>,
    ) -> Result<Self, Error> {
        if !Path::new(PROGRAM).exists() {
            return Err(Error::NotInstalled);
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": scratch.subdirectory("storage")?}},
            "http": {"addr": address},
        });
        let password_file = match users {
            Some(users) => {
                let path = scratch.write("htpasswd", passwords(users)?)?;
                config["auth"] = json!({"htpasswd": {"realm": "test", "path": path}});
                Some(path)
            }
            None => None,
        };
        let config = scratch.write("config.yml", config.to_string())?;
        let mut command = command(PROGRAM);
        command.arg("serve").arg(config);
        Ok(Self {
            daemon: Daemon::spawn("docker-registry", command, &scratch.path().join("registry.log"))?,
            address,
            password_file,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// It reads the file again when it has changed.
    pub(super) fn set_users(&self, users: &[(String, String)]) -> Result<(), Error> {
        match &self.password_file {
            Some(path) => Ok(std::fs::write(path, passwords(users)?)?),
            None => Ok(()),
        }
    }

    /// The end of its log, if it has ended.
    pub(super) fn died(&mut self) -> Option<String> {
        self.daemon.exited().map(|_| self.daemon.log_tail())
    }

    pub(super) fn log_tail(&self) -> String {
        self.daemon.log_tail()
    }
}

fn passwords(users: &[(String, String)]) -> Result<String, Error> {
    let line =
        |(user, password): &(String, String)| Ok(format!("{user}:{}\n", bcrypt::hash(password, COST)?));
    users.iter().map(line).collect()
}
