//! The configuration that the server runs by.
//!
//! [`file`] is the format (Distribution's `config.yml` and our extension of it); the types here are
//! what it means: defaults filled in, addresses and patterns checked, secrets wrapped.

pub mod globs;
pub mod health;
pub mod http;
pub mod log;
pub mod proxy;
pub mod size;

use std::path::PathBuf;

pub use globs::Globs;
pub use health::Health;
pub use http::Http;
pub use log::Log;
pub use proxy::{Cache, Proxy, Trust, TtlFrom, Upstream, UpstreamTls};
pub use size::MaxSize;

/// Everything the server needs to know to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What is logged, and how.
    pub log: Log,
    /// The directory that holds the cache (`storage.filesystem.rootdirectory`).
    pub root: PathBuf,
    /// Nothing is written to the cache (`storage.maintenance.readonly.enabled`).
    pub readonly: bool,
    /// The listener, and the admin port.
    pub http: Http,
    /// What `/debug/health` looks at.
    pub health: Health,
    /// Who may pull; `None`: anybody.
    pub access: Option<Htpasswd>,
    /// The upstreams, and how long what they gave is kept.
    pub proxy: Proxy,
}

/// Clients must present a user of an htpasswd file (`auth.htpasswd`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Htpasswd {
    /// The realm that the challenge names.
    pub realm: String,
    /// The file; only its bcrypt entries count.
    pub path: PathBuf,
}
