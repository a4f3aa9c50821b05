//! A real object store with the S3 API, versitygw, behind a proxy that logs each request and fails on demand.

mod proxy;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use proxy::{Fault, Seen};

use crate::process::{Daemon, command, free_ports};
use crate::scratch::Scratch;
use crate::wait::{self, TimedOut};
use crate::{binaries, install_crypto_provider};
use proxy::Proxy;

const READY: Duration = Duration::from_mins(1);
/// The number of tries with another port after another process has taken the port.
const ATTEMPTS: usize = 5;

/// The name of the bucket.
pub const BUCKET: &str = "bucket";
/// The access key.
pub const ACCESS_KEY: &str = "access";
/// The secret key.
pub const SECRET_KEY: &str = "secretsecret";

/// The reason why there is no object store.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Program(#[from] binaries::Error),
    #[error("{source}; the end of its log:\n{log}")]
    NotReady { source: TimedOut, log: String },
}

/// A running object store with one empty bucket; ended when dropped.
pub struct ObjectStore {
    proxy: Proxy,
    address: SocketAddr,
    program: PathBuf,
    daemon: Daemon,
    scratch: Scratch,
}

impl ObjectStore {
    /// Starts a store on a free port.
    pub async fn start() -> Result<Self, Error> {
        install_crypto_provider();
        let program = binaries::get("versitygw").await?;
        let scratch = Scratch::new("objects")?;
        std::fs::create_dir_all(scratch.path().join("data").join(BUCKET))?;
        scratch.subdirectory("metadata")?;
        let mut attempt = 1;
        loop {
            let [port] = free_ports()?;
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let mut daemon = serve(&program, &scratch, address, SECRET_KEY)?;
            let ready = listens(&mut daemon, address).await;
            match ready {
                Ok(()) => {
                    return Ok(Self {
                        proxy: Proxy::open(address)?,
                        address,
                        program,
                        daemon,
                        scratch,
                    });
                }
                Err(_) if attempt < ATTEMPTS && daemon.exited().is_some() => attempt += 1,
                Err(source) => {
                    let log = daemon.log_tail();
                    return Err(Error::NotReady { source, log });
                }
            }
        }
    }

    /// Starts the store again at the same address, with another secret key.
    pub async fn restart_with(&mut self, secret_key: &str) -> Result<(), Error> {
        self.daemon.kill();
        self.daemon = serve(&self.program, &self.scratch, self.address, secret_key)?;
        let ready = listens(&mut self.daemon, self.address).await;
        let log = self.daemon.log_tail();
        ready.map_err(|source| Error::NotReady { source, log })
    }

    /// Returns the address of the proxy: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.proxy.address())
    }

    /// Returns the keys of `storage.s3` for the bucket, through the proxy.
    pub fn keys(&self) -> String {
        format!(
            "accesskey: {ACCESS_KEY}, secretkey: {SECRET_KEY}, {}",
            self.keys_without_credentials()
        )
    }

    /// Returns the keys of `storage.s3` other than the credentials.
    pub fn keys_without_credentials(&self) -> String {
        format!(
            "region: us-east-1, regionendpoint: '{}', bucket: {BUCKET}, secure: false, v4auth: true, forcepathstyle: true",
            self.url()
        )
    }

    /// Returns the directory with the objects of the bucket, as files of their keys.
    pub fn objects(&self) -> PathBuf {
        self.scratch.path().join("data").join(BUCKET)
    }

    /// Answers each request that matches with a fault, until the next call; `None` ends it.
    pub fn fail(&self, fault: Option<Fault>) {
        self.proxy.fail(fault);
    }

    /// Returns the requests since the start or the last [`ObjectStore::forget`].
    pub fn seen(&self) -> Vec<Seen> {
        self.proxy.seen()
    }

    /// Forgets the requests that were seen.
    pub fn forget(&self) {
        self.proxy.forget();
    }
}

fn serve(program: &Path, scratch: &Scratch, address: SocketAddr, secret_key: &str) -> io::Result<Daemon> {
    let mut command = command(program);
    command
        .env("ROOT_ACCESS_KEY", ACCESS_KEY)
        .env("ROOT_SECRET_KEY", secret_key)
        .args(["--quiet", "--port", &address.to_string(), "posix", "--sidecar"])
        .arg(scratch.path().join("metadata"))
        .arg(scratch.path().join("data"));
    Daemon::spawn("versitygw", command, &scratch.path().join("log"))
}

async fn listens(daemon: &mut Daemon, address: SocketAddr) -> Result<(), TimedOut> {
    let listens = || {
        let ended = daemon.exited().is_some();
        async move { (!ended && tokio::net::TcpStream::connect(address).await.is_ok()).then_some(()) }
    };
    wait::until("object store that listens", READY, listens).await
}
