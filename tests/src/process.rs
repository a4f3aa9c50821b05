//! Programs that run during a test and end with it.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

use crate::wait::{self, TimedOut};

/// The bytes of a log that an error message includes.
const TAIL: usize = 2_000;
/// The longest wait until a server listens, on a busy machine.
const READY: Duration = Duration::from_mins(1);
/// The number of tries with another port after another process has taken the port.
const ATTEMPTS: usize = 5;

/// The reason why a server does not listen.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{name}: {source}; the end of its log:\n{log}")]
    NotReady {
        name: String,
        source: TimedOut,
        log: String,
    },
    #[error("{name} ended while it was starting; the end of its log:\n{log}")]
    Died { name: String, log: String },
}

/// Returns a command that the kernel kills as soon as this process is gone.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
    command
}

/// A running program with its log in a file; killed on drop.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` (made by [`command`]) with both outputs appended to `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> io::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = spawn_from_a_lasting_thread(command)?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Starts a server, and waits until it listens on a free port of 127.0.0.1. `command` returns the command for an
    /// address; a server that ends is tried again with another port.
    pub async fn listening(
        name: &str,
        log: &Path,
        command: impl Fn(SocketAddr) -> io::Result<Command>,
    ) -> Result<(Self, SocketAddr), StartError> {
        let mut attempt = 1;
        loop {
            let [port] = free_ports()?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            match Self::listening_at(address, name, log, command(address)?).await {
                Err(StartError::Died { .. }) if attempt < ATTEMPTS => attempt += 1,
                result => return Ok((result?, address)),
            }
        }
    }

    /// Starts a server, and waits until it listens at this address.
    pub async fn listening_at(
        address: SocketAddr,
        name: &str,
        log: &Path,
        command: Command,
    ) -> Result<Self, StartError> {
        let mut daemon = Self::spawn(name, command, log)?;
        let listens = || {
            let ended = daemon.exited().is_some();
            async move { (ended || TcpStream::connect(address).await.is_ok()).then_some(()) }
        };
        let ready = wait::until("server that listens", READY, listens).await;
        let (ended, name, log) = (daemon.exited().is_some(), name.to_owned(), daemon.log_tail());
        match ready {
            _ if ended => Err(StartError::Died { name, log }),
            Err(source) => Err(StartError::NotReady { name, source, log }),
            Ok(()) => Ok(daemon),
        }
    }

    /// Returns the name that the process was started with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status of an ended process.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end. Safe to drop and to call again.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        // Listening before looking: an end in between is not missed.
        let mut some_child_ended = signal(SignalKind::child())?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            some_child_ended.recv().await;
        }
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Returns the last lines of the log.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).into_owned()
    }

    /// Ends it at once and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

type Request = (Command, SyncSender<io::Result<Child>>);

/// Starts a process from a thread that lasts: the kernel kills the child at the end of the thread that made it, and a
/// test's thread ends with the test, while other tests may share the process.
fn spawn_from_a_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<Sender<Request>> = LazyLock::new(|| {
        let (sender, requests) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in requests {
                // The one who asked may be gone: then the child has no owner.
                if let Err(unwanted) = reply.send(command.spawn())
                    && let Ok(mut child) = unwanted.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        sender
    });
    let gone = || io::Error::other("the thread that starts programs has ended");
    let (reply, answer) = sync_channel(1);
    SPAWNER.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// Returns different ports of 127.0.0.1 that were free a moment ago. Another process may take one first, so the caller
/// tries again with others.
pub fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut ports = [0; N];
    // All are held until the last is found: the kernel gives none of them twice.
    let mut listeners = Vec::with_capacity(N);
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::scratch::Scratch;

    fn is_running(id: u32) -> bool {
        Path::new(&format!("/proc/{id}")).exists()
    }

    /// A daemon logs both outputs and reports its exit code.
    #[tokio::test]
    async fn daemon_logs_outputs_and_exit_code() {
        let scratch = Scratch::new("process").unwrap();
        let mut shell = command("sh");
        shell.args(["-c", "echo out; echo err >&2; exit 3"]);
        let mut daemon = Daemon::spawn("shell", shell, &scratch.path().join("log")).unwrap();
        let status = daemon.ended().await.unwrap();
        assert_eq!(
            (status.code(), daemon.log_tail().as_str()),
            (Some(3), "out\nerr\n")
        );
        assert_eq!(daemon.exited().and_then(|s| s.code()), Some(3));
    }

    /// The end of a daemon reports the signal that ended it.
    #[tokio::test]
    async fn daemon_end_reports_the_signal() {
        let scratch = Scratch::new("process").unwrap();
        let mut sleep = command("sleep");
        sleep.arg("1000");
        let mut daemon = Daemon::spawn("sleep", sleep, &scratch.path().join("log")).unwrap();
        daemon.terminate().unwrap();
        assert_eq!(daemon.ended().await.unwrap().signal(), Some(15));
    }

    /// A daemon outlives the thread that started it, and is killed on drop.
    #[test]
    fn daemon_outlives_its_thread_until_drop() {
        let scratch = Scratch::new("process").unwrap();
        let log = scratch.path().join("log");
        let mut daemon = thread::spawn(move || {
            let mut sleep = command("sleep");
            sleep.arg("1000");
            Daemon::spawn("sleep", sleep, &log).unwrap()
        })
        .join()
        .unwrap();
        assert!(daemon.exited().is_none());
        let id = daemon.id();
        drop(daemon);
        assert!(!is_running(id));
    }
}
