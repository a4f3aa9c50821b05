//! A server that is about to start: its port, its directory, its configuration file and its log.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Certificate, Server, Started};
use crate::client::Target;

/// A server without an answer by then has not started.
const START: Duration = Duration::from_secs(30);

/// The place of a server that is about to start.
pub(crate) struct Place {
    pub(crate) port: u16,
    pub(crate) root: PathBuf,
    first: String,
}

impl Place {
    pub(crate) fn new(scratch: &Path, first: &str) -> Self {
        let port = free_port();
        let root = scratch.join(port.to_string());
        let first = first.to_owned();
        Self { port, root, first }
    }

    pub(crate) fn config(&self, text: &str) -> PathBuf {
        let path = self.root.with_extension("conf");
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts it and waits for a first answer.
    pub(crate) fn start(self, name: &'static str, command: Command, tls: Option<&Certificate>) -> Started {
        (name, self.answering(name, command, tls))
    }

    fn answering(
        self,
        name: &'static str,
        mut command: Command,
        tls: Option<&Certificate>,
    ) -> io::Result<Server> {
        let log = fs::File::create(self.root.with_extension("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let target = Target {
            tls: tls.map(|tls| tls.client.clone()),
            ..Target::plain(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
        };
        let mut server = Server {
            name,
            started_in: Duration::ZERO,
            target,
            config: self.root.with_extension("conf"),
            first: self.first,
            child: command.spawn()?,
            command,
        };
        server.until_answer()?;
        Ok(server)
    }
}

impl Server {
    /// Waits for the first answer.
    fn until_answer(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let first = |server: &Self| server.target.connect()?.get(&server.first);
        while let Err(error) = first(self) {
            if started.elapsed() > START || self.child.try_wait()?.is_some() {
                let log = fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or_default();
                return Err(io::Error::other(format!("no answer: {error}; it said: {last}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.started_in = started.elapsed();
        Ok(())
    }

    /// Ends the server as a kubelet does, and starts it again.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.terminate();
        self.child = self.command.spawn()?;
        self.until_answer()
    }
}

/// This server, of this configuration.
pub(crate) fn serve(place: &Place, config: &str) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_mirror"));
    command.arg("serve").arg(place.config(config));
    command
}

/// Ends with this process, however that ends.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", program]);
    command
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}
