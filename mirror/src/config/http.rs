//! The listener and the admin port (`http`).

use std::path::PathBuf;
use std::time::Duration;

use ::http::HeaderMap;

/// Where and how clients are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where clients connect.
    pub listen: Listen,
    /// What stands before `/v2/` in every path; starts and ends with a slash.
    pub prefix: String,
    /// Put into every answer.
    pub headers: HeaderMap,
    /// Serve TLS; `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
    /// How long requests in flight may take to end after SIGTERM.
    pub drain_timeout: Duration,
    /// The admin port; `None`: none.
    pub admin: Option<Admin>,
}

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `[host]:port`; no host means every address of the machine.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// The server's certificate, and whom it asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of the certificate chain.
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
    /// PEM files of the authorities whose certificates clients must have; empty: none is asked for.
    pub client_cas: Vec<PathBuf>,
    /// Whether a client may come without a certificate all the same.
    pub client_optional: bool,
    /// TLS 1.3 only (else 1.2 too).
    pub only_tls13: bool,
}

/// The admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `[host]:port`.
    pub addr: String,
    /// Where Prometheus finds the metrics; `None`: nowhere.
    pub metrics_path: Option<String>,
}
