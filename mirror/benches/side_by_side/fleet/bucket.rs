//! The object store, versitygw, and its bucket.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use http::Method;
use object_store::aws::AmazonS3Builder;
use object_store::signer::Signer;
use rustls::crypto::aws_lc_rs::default_provider;

use super::relay::Relay;
use crate::client::Target;
use crate::servers::{Place, Server, Site, command};

const STORE: &str = "versitygw";
const BUCKET: &str = "bucket";
const ACCESS_KEY: &str = "access";
const SECRET_KEY: &str = "secretsecret";
/// The longest wait for an upload.
const LIMIT: Duration = Duration::from_mins(1);
const REGION: &str = "us-east-1";

/// An object store with one bucket.
pub(crate) struct Bucket {
    server: Server,
    pub(crate) relay: Relay,
}

impl Bucket {
    pub(crate) fn start(site: &Site<'_>) -> io::Result<Self> {
        // It fails only where a provider is installed already.
        let _ = default_provider().install_default();
        let place = Place::new(site.scratch, "/health");
        let (data, metadata) = (place.root.join("data"), place.root.join("metadata"));
        fs::create_dir_all(data.join(BUCKET))?;
        fs::create_dir_all(&metadata)?;
        let mut command = command(STORE);
        command
            .env("ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("ROOT_SECRET_KEY", SECRET_KEY)
            .args(["--quiet", "--keep-alive", "--health", "/health", "--port"])
            .arg(format!("127.0.0.1:{}", place.port))
            .args(["posix", "--sidecar"])
            .args([metadata, data]);
        let server = place.start(STORE, command, None).1?;
        let relay = Relay::start(server.target.address);
        Ok(Self { server, relay })
    }

    /// Returns the keys of `storage` for a prefix, the same for all servers: through the relay, which counts, or directly.
    pub(crate) fn keys(&self, prefix: &str, through_relay: bool) -> String {
        let address = if through_relay {
            self.relay.address()
        } else {
            self.server.target.address
        };
        format!(
            "s3: {{accesskey: {ACCESS_KEY}, secretkey: {SECRET_KEY}, region: {REGION}, regionendpoint: 'http://{address}', \
             bucket: {BUCKET}, secure: false, v4auth: true, forcepathstyle: true, rootdirectory: /{prefix}}}"
        )
    }

    /// Waits until the store has a blob below a prefix.
    pub(crate) fn until_stored(&self, prefix: &str, hex: &str) -> io::Result<()> {
        let (target, path) = self.signed(prefix, hex)?;
        let started = Instant::now();
        while let Err(error) = target.connect()?.ask(&path) {
            if started.elapsed() > LIMIT {
                return Err(io::Error::other(format!("{path} is not stored: {error}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Returns the store itself, and the path of a blob below a prefix that is signed for an hour.
    pub(crate) fn signed(&self, prefix: &str, hex: &str) -> io::Result<(Target, String)> {
        let target = Target {
            token: None,
            ..self.server.target.clone()
        };
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", target.address))
            .with_allow_http(true)
            .with_region(REGION)
            .with_bucket_name(BUCKET)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .build()?;
        let key = format!(
            "{prefix}/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        );
        let signed = async {
            store
                .signed_url(Method::GET, &key.into(), Duration::from_hours(1))
                .await
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let url = runtime.block_on(signed)?;
        let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
        Ok((target, path))
    }
}
