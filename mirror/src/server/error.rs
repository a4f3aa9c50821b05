//! Errors that prevent the start of a server or end it.

use std::io;
use std::path::PathBuf;

use tokio::task::JoinError;

use crate::bucket;
use crate::store::OpenError;
use crate::tls::TlsError;
use crate::upstream::BuildError;

/// An error that prevents the start of a server or ends it; its message names the action.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The serving certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An upstream's certificate authorities or addresses.
    #[error(transparent)]
    Upstream(#[from] BuildError),
    /// The bucket's credentials or certificate authorities.
    #[error(transparent)]
    Bucket(#[from] bucket::BucketError),
    /// A line of the htpasswd file.
    #[error("{0} (auth.htpasswd.path)")]
    Users(String),
    /// There is something else where the cache should be.
    #[error("the storage root {} (storage.filesystem.rootdirectory) is not a directory", .0.display())]
    NoDirectory(PathBuf),
    /// The cache.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The index of the cache.
    #[error(
        "the index cannot record the bucket: {0}; check the disk of the cache (storage.filesystem.rootdirectory)"
    )]
    Index(#[from] crate::store::Error),
    /// The client of other replicas.
    #[error("cannot set up the HTTP client for other replicas (peers): {0}")]
    Peers(#[source] reqwest::Error),
    /// An address.
    #[error("cannot listen on {address} ({key}): {source}; stop what uses it, or set another one")]
    Listen {
        /// The key that names it.
        key: &'static str,
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The task that serves clients.
    #[error("serving clients ended: {0}; see the log, and start the server again")]
    Serving(#[source] JoinError),
}

impl Error {
    /// Returns `true` if a file that the configuration names is missing or malformed.
    pub fn is_reference(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Users(_) | Self::Bucket(_) => true,
            Self::Upstream(error) => !matches!(error, BuildError::Client { .. } | BuildError::Stopping),
            _ => false,
        }
    }

    /// Returns `true` if the environment is the cause: a port in use, a directory that is locked or not writable.
    pub fn is_environment(&self) -> bool {
        matches!(
            self,
            Self::NoDirectory(_) | Self::Store(_) | Self::Index(_) | Self::Listen { .. }
        )
    }
}
