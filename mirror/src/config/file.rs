//! The configuration file: Distribution's `config.yml`, version 0.1, and our extension below `proxy`.
//!
//! What a key means and whether it has an effect is decided when a [`Config`](super::Config) is made of it.
//!
//! ```
//! use mirror::config::file::{File, Proxy, Upstream};
//!
//! let file = File {
//!     proxy: Proxy {
//!         upstreams: vec![Upstream { host: "quay.io".into(), ..Upstream::default() }],
//!         ..Proxy::default()
//!     },
//!     ..File::default()
//! };
//! assert_eq!(file.to_yaml(), "version: 0.1\nproxy:\n  upstreams:\n  - host: quay.io\n");
//! assert_eq!(File::parse(&file.to_yaml()).unwrap(), file);
//! ```

mod admin;
mod auth;
mod bucket;
mod health;
mod http;
mod ignored_key;
mod log;
mod peers;
mod proxy;
mod storage;

use serde::{Deserialize, Serialize};

pub use admin::Admin;
pub use auth::{Auth, Htpasswd};
pub use bucket::{Azure, AzureCredentials, Gcs, GcsCredential, S3, S3Credentials};
pub use health::{FileChecker, Health, HttpChecker, StorageChecker, TcpChecker};
pub use http::{Actions, Debug, Http, Http2, Prometheus, Tls};
pub use ignored_key::IgnoredKey;
pub use log::{AccessLog, Log};
pub use peers::{PeerTls, Peers};
pub use proxy::{Cache, Masked, Proxy, Trust, Upstream, UpstreamTls};
pub use storage::{Filesystem, Maintenance, ReadOnly, Redirect, Storage, UploadPurging};

use super::Error;
use super::log::Level;
use super::overlay::{Overlay, section};

/// The version of the format; there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// `0.1`.
    #[default]
    #[serde(rename = "0.1")]
    V0_1,
}

impl Overlay for Version {
    const VALUES: &'static str = "0.1";
}

section! {
    /// A whole file. Only what is set is written.
    File {
        /// The version of the format.
        "version" => version: Version,
        /// The log of requests and events.
        "log" => log: Log,
        /// The log's level, by an older name; `log.level` goes before it.
        "loglevel" => loglevel: Option<Level>,
        /// The place of the cache.
        "storage" => storage: Storage,
        /// The clients that may pull.
        "auth" => auth: Auth,
        /// Plug-ins around registry, repositories and storage.
        "middleware" => middleware: IgnoredKey,
        /// Services that errors are reported to.
        "reporting" => reporting: IgnoredKey,
        /// The listener and the admin port.
        "http" => http: Http,
        /// The page on the admin port.
        "admin" => admin: Admin,
        /// Endpoints that are notified of pushes and pulls.
        "notifications" => notifications: IgnoredKey,
        /// A Redis that descriptors of blobs are cached in.
        "redis" => redis: IgnoredKey,
        /// The checks that take the server out of service.
        "health" => health: Health,
        /// The size of the catalog's pages.
        "catalog" => catalog: IgnoredKey,
        /// The upstreams.
        "proxy" => proxy: Proxy,
        /// The other replicas of this mirror.
        "peers" => peers: Peers,
        /// The handling of schema 1 manifests.
        "compatibility" => compatibility: IgnoredKey,
        /// The validation of pushed manifests.
        "validation" => validation: IgnoredKey,
        /// The classes of repositories that may be pushed.
        "policy" => policy: IgnoredKey,
    }
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// What is not YAML, and what is not known: named with key and line.
    pub fn parse(yaml: &str) -> Result<Self, Error> {
        let mut path = String::new();
        let read = serde_saphyr::with_deserializer_from_str(yaml, |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|e| {
                path = e.path().to_string();
                e.into_inner()
            })
        });
        read.map_err(|e| Error::syntax(&path, e.without_snippet()))
    }

    /// Writes the file. Secrets are masked: what must reach a server goes into its credentials directory.
    ///
    /// # Panics
    /// Never: texts, numbers, lists, and maps whose keys are texts can all be written.
    #[expect(clippy::expect_used, reason = "no serializer refuses these types")]
    pub fn to_yaml(&self) -> String {
        let sections = serde_saphyr::to_string(self).expect("serializable");
        // The version is the default, which is not written otherwise.
        let sections = if sections == "{}\n" { "" } else { &sections };
        format!("version: 0.1\n{sections}")
    }
}
