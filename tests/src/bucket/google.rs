//! gofakes3, which has the API of Google Cloud Storage and checks no signatures.

use super::proxy::{Fault, Proxy, Seen};
use super::{BUCKET, Error};
use crate::process::{Daemon, command};
use crate::scratch::Scratch;
use crate::{binaries, install_crypto_provider};

/// A running store with one empty bucket; ended when dropped. It has the API of S3, too.
pub struct GoogleStore {
    proxy: Proxy,
    _daemon: Daemon,
    _scratch: Scratch,
}

impl GoogleStore {
    /// Starts a store on a free port.
    pub async fn start() -> Result<Self, Error> {
        install_crypto_provider();
        let program = binaries::get("gofakes3").await?;
        let scratch = Scratch::new("google-store")?;
        let log = scratch.path().join("log");
        let (daemon, address) = Daemon::listening("gofakes3", &log, |address| {
            let mut store = command(&program);
            store.args(["-backend", "memory", "-initialbucket", BUCKET]);
            store.args(["-host", &address.to_string()]);
            Ok(store)
        })
        .await?;
        Ok(Self {
            proxy: Proxy::open(address)?,
            _daemon: daemon,
            _scratch: scratch,
        })
    }

    /// Returns the address of the proxy: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.proxy.address())
    }

    /// Returns the JSON key of a service account for this store, whose private key is PEM; empty: it signs nothing.
    pub fn key(&self, private_key: &str) -> String {
        serde_json::json!({
            "gcs_base_url": self.url(),
            "disable_oauth": true,
            "client_email": "mirror@project.iam.example",
            "private_key": private_key,
            "private_key_id": "1",
        })
        .to_string()
    }

    /// Returns true if the bucket got an object whose key ends like this.
    pub fn has_stored(&self, end: &str) -> bool {
        self.proxy.has_stored(end)
    }

    /// Answers each request that matches with a fault, until the next call; `None` ends it.
    pub fn fail(&self, fault: Option<Fault>) {
        self.proxy.fail(fault);
    }

    /// Returns the requests since the start or the last [`GoogleStore::forget`].
    pub fn seen(&self) -> Vec<Seen> {
        self.proxy.seen()
    }

    /// Forgets the requests that were seen.
    pub fn forget(&self) {
        self.proxy.forget();
    }
}
