//! Real object stores: versitygw with the API of S3, gofakes3 with that of Google Cloud Storage, and azurite with that of
//! Azure. A proxy in front of the first two logs each request and fails on demand.

mod azure;
mod google;
mod proxy;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use azure::AzureStore;
pub use google::GoogleStore;
pub use proxy::{Fault, Seen};

use crate::process::{Daemon, StartError, command};
use crate::scratch::Scratch;
use crate::{binaries, install_crypto_provider};
use proxy::Proxy;

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
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(
        "AZURITE is not set: install azurite 3.37 from npm, and set it to node_modules/azurite/dist/src/blob/main.js"
    )]
    NoAzurite,
    #[error("the store refused to make a container: {0}")]
    Refused(String),
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
        let log = scratch.path().join("log");
        let (daemon, address) = Daemon::listening("versitygw", &log, |address| {
            Ok(serve(&program, &scratch, address, SECRET_KEY))
        })
        .await?;
        Ok(Self {
            proxy: Proxy::open(address)?,
            address,
            program,
            daemon,
            scratch,
        })
    }

    /// Starts the store again at the same address, with another secret key.
    pub async fn restart_with(&mut self, secret_key: &str) -> Result<(), Error> {
        self.daemon.kill();
        let command = serve(&self.program, &self.scratch, self.address, secret_key);
        let log = self.scratch.path().join("log");
        self.daemon = Daemon::listening_at(self.address, "versitygw", &log, command).await?;
        Ok(())
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

fn serve(program: &Path, scratch: &Scratch, address: SocketAddr, secret_key: &str) -> Command {
    let mut command = command(program);
    command
        .env("ROOT_ACCESS_KEY", ACCESS_KEY)
        .env("ROOT_SECRET_KEY", secret_key)
        .args(["--quiet", "--port", &address.to_string(), "posix", "--sidecar"])
        .arg(scratch.path().join("metadata"))
        .arg(scratch.path().join("data"));
    command
}
