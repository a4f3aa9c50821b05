//! azurite, which has the API of Azure Blob Storage and checks signatures. It is a package of npm, whose path `AZURITE` has.

use base64::Engine as _;

use super::proxy::{Proxy, Seen};
use super::{BUCKET, Error};
use crate::process::{Daemon, command};
use crate::scratch::Scratch;

/// The account that azurite always has.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running store with one empty container; ended when dropped.
pub struct AzureStore {
    proxy: Proxy,
    _daemon: Daemon,
    _scratch: Scratch,
}

impl AzureStore {
    /// Starts the store on a free port.
    pub async fn start() -> Result<Self, Error> {
        let program = std::env::var("AZURITE").map_err(|_| Error::NoAzurite)?;
        let scratch = Scratch::new("azure-store")?;
        let data = scratch.subdirectory("data")?;
        let log = scratch.path().join("log");
        let (daemon, address) = Daemon::listening("azurite", &log, |address| {
            let mut node = command("node");
            node.args([&program, "--blobHost", "127.0.0.1", "--blobPort"]);
            node.arg(address.port().to_string()).arg("--location").arg(&data);
            node.args(["--loose", "--skipApiVersionCheck"]);
            Ok(node)
        })
        .await?;
        let store = Self {
            proxy: Proxy::open(address)?,
            _daemon: daemon,
            _scratch: scratch,
        };
        store.create_container().await?;
        Ok(store)
    }

    /// Returns the name of the account.
    pub fn account(&self) -> &'static str {
        ACCOUNT
    }

    /// Returns the key of the account, in Base64.
    pub fn account_key(&self) -> &'static str {
        ACCOUNT_KEY
    }

    /// Returns the address of the account's blobs: `http://127.0.0.1:PORT/ACCOUNT`.
    pub fn url(&self) -> String {
        format!("http://{}/{ACCOUNT}", self.proxy.address())
    }

    /// Returns true if the container got an object whose key ends like this.
    pub fn has_stored(&self, end: &str) -> bool {
        self.proxy.has_stored(end)
    }

    /// Returns the requests since the start.
    pub fn seen(&self) -> Vec<Seen> {
        self.proxy.seen()
    }

    /// Creates the container, signed with the account's key by openssl.
    async fn create_container(&self) -> Result<(), Error> {
        let date = "Mon, 30 Nov 2026 00:00:00 GMT";
        let version = "2021-08-06";
        let signed = format!(
            "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
        );
        let base64 = base64::engine::general_purpose::STANDARD;
        let key = hex::encode(base64.decode(ACCOUNT_KEY).unwrap_or_default());
        let script = format!(
            "printf %s \"$1\" | openssl dgst -sha256 -mac HMAC -macopt hexkey:{key} -binary | base64 -w0"
        );
        let output = tokio::process::Command::new("sh")
            .args(["-c", &script, "sh", &signed])
            .output()
            .await?;
        let signature = String::from_utf8_lossy(&output.stdout).into_owned();
        let refused = |error: reqwest::Error| Error::Refused(error.to_string());
        let answer = reqwest::Client::new()
            .put(format!("{}/{BUCKET}?restype=container", self.url()))
            .header("x-ms-date", date)
            .header("x-ms-version", version)
            .header("content-length", "0")
            .header("authorization", format!("SharedKey {ACCOUNT}:{signature}"))
            .send()
            .await
            .map_err(refused)?;
        if answer.status() == 201 {
            return Ok(());
        }
        let text = answer.text().await.map_err(refused)?;
        Err(Error::Refused(text))
    }
}
