//! The configuration that the server runs by.
//!
//! [`mod@file`] is the format (Distribution's `config.yml` and our extension of it), the environment is put over
//! it as Distribution does, and the types here are what it means: defaults filled in, addresses and patterns
//! checked, secrets wrapped. What else Distribution knows is accepted with a notice or refused.

pub mod bucket;
pub mod duration;
mod environment;
mod error;
pub mod file;
pub mod globs;
pub mod health;
pub mod host;
pub mod http;
mod keys;
pub mod log;
mod overlay;
pub mod peers;
pub mod proxy;
pub mod reference;
pub mod remote_url;
pub mod size;
mod storage;
mod write;

use std::path::{Path, PathBuf};

pub use bucket::BucketSettings;
pub use error::{Error, Notice};
pub use globs::Globs;
pub use health::Health;
pub use http::Http;
pub use keys::Relation;
pub use log::Log;
pub use peers::PeerSettings;
pub use proxy::{Cache, Proxy, Trust, TtlFrom, Upstream, UpstreamTls};
pub use size::MaxSize;
pub use storage::UploadPurging;

use crate::digest::{Algorithm, Digest};
use crate::file_read::{self, MAX_FILE};
use crate::request_host::PageHosts;
use file::File;

/// The name of the previous configuration, in the same directory. A server that does not accept the configuration, for
/// example one of an older version during an upgrade, starts with this file.
pub const LAST_GOOD: &str = "last-good.yml";

/// The configuration of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The SHA-256 of the file's bytes in hexadecimal; empty without a file.
    pub version: String,
    /// The settings of the log.
    pub log: Log,
    /// The directory that holds the cache (`storage.filesystem.rootdirectory`).
    pub root: PathBuf,
    /// The bucket that content is kept in; the directory is the local tier then.
    pub bucket: Option<BucketSettings>,
    /// The removal of uploads that were left behind in it.
    pub uploads: UploadPurging,
    /// The listener, and the admin port.
    pub http: Http,
    /// The names by which browsers open the pages of the admin port.
    pub page_hosts: PageHosts,
    /// The health checks that `/debug/health` reports.
    pub health: Health,
    /// The users that may pull; `None`: every client.
    pub access: Option<Htpasswd>,
    /// The other replicas of this mirror; `None`: the server acts alone.
    pub peers: Option<PeerSettings>,
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

/// Reads the file, if there is one, puts the `REGISTRY_*` variables over it, and derives the settings from the result.
/// The notices name what has no effect, or another meaning than in Distribution.
///
/// # Errors
/// A file that cannot be read, keys or values that are unknown, refused or do not fit.
pub fn load(
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Config, Vec<Notice>), Error> {
    let (mut file, version) = match path {
        Some(path) => read(path)?,
        None => (File::default(), String::new()),
    };
    let mut notices = environment::apply(&mut file, environment)?;
    notices.extend(keys::notices(&file));
    let config = Config {
        version,
        ..Config::new(&file)?
    };
    Ok((config, notices))
}

/// Puts variables over a file, as [`load`] does.
#[cfg(any(test, fuzzing))]
pub(crate) fn put_over(
    file: &mut File,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Vec<Notice>, Error> {
    environment::apply(file, environment)
}

fn read(path: &Path) -> Result<(File, String), Error> {
    let unreadable = |source| Error::Unreadable {
        path: path.to_owned(),
        source,
    };
    let yaml = file_read::read_text(path, MAX_FILE).map_err(unreadable)?;
    let file = File::parse(&yaml).map_err(|error| error.in_file(path))?;
    let version = Digest::compute(Algorithm::Sha256, yaml.as_bytes());
    Ok((file, version.hex().to_owned()))
}

impl Config {
    /// Validates a configuration file.
    ///
    /// # Errors
    /// The first key that is refused or does not fit.
    pub fn new(file: &File) -> Result<Self, Error> {
        keys::refuse(file)?;
        Ok(Self {
            version: String::new(),
            log: Log::new(file)?,
            root: storage::root(&file.storage)?,
            bucket: BucketSettings::new(&file.storage)?,
            uploads: UploadPurging::new(&file.storage.maintenance.upload_purging),
            http: Http::new(&file.http, &file.admin)?,
            page_hosts: PageHosts::new(file.admin.hosts.iter().cloned())
                .map_err(|error| Error::invalid("admin.hosts", error))?,
            health: Health::new(&file.health)?,
            access: access(&file.auth)?,
            peers: PeerSettings::new(&file.peers)?,
            proxy: Proxy::new(&file.proxy)?,
        })
    }
}

fn access(auth: &file::Auth) -> Result<Option<Htpasswd>, Error> {
    let Some(htpasswd) = &auth.htpasswd else {
        return Ok(None);
    };
    let required = |value: &Option<String>, key| match value.as_deref() {
        None | Some("") => Err(Error::invalid(key, "must be set to require users")),
        Some(value) => Ok(value.to_owned()),
    };
    Ok(Some(Htpasswd {
        realm: required(&htpasswd.realm, "auth.htpasswd.realm")?,
        path: required(&htpasswd.path, "auth.htpasswd.path")?.into(),
    }))
}
