//! What `/debug/health` looks at (`health`).

use std::path::PathBuf;
use std::time::Duration;

use ::http::{HeaderMap, StatusCode, Uri};

/// The checks; each runs at its interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// The cache directory can be read.
    pub storage: Option<Pace>,
    /// Files that must not exist.
    pub files: Vec<FileCheck>,
    /// URLs that must answer.
    pub http: Vec<HttpCheck>,
    /// Ports that must be open.
    pub tcp: Vec<TcpCheck>,
}

/// How often a check runs, and how many failures in a row make it count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From one run to the next.
    pub interval: Duration,
    /// Failures in a row before the check counts as failed; at least 1.
    pub threshold: u32,
}

/// A file whose existence takes the server out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCheck {
    /// The file.
    pub path: PathBuf,
    /// How often.
    pub pace: Pace,
}

/// A URL that must answer.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    /// Asked with HEAD.
    pub uri: Uri,
    /// Sent along.
    pub headers: HeaderMap,
    /// What it must answer.
    pub status: StatusCode,
    /// Within this time.
    pub timeout: Duration,
    /// How often.
    pub pace: Pace,
}

/// A port that must be open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpCheck {
    /// `host:port`.
    pub addr: String,
    /// Within this time.
    pub timeout: Duration,
    /// How often.
    pub pace: Pace,
}
