//! Errors of upstreams, distinguished by the reaction of the server.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::transport::redirect::Refused;
pub(super) use crate::tls::describe;

/// An upstream gave no usable answer. No variant holds a credential, a token or a URL's query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// A registry's own 404 or 410: there is no such thing.
    #[error("upstream has no such content: {message}")]
    NotFound {
        /// The registry's code in upper case, such as `MANIFEST_UNKNOWN`; empty where there is none.
        code: String,
        /// The registry's words, the code among them; else the status.
        message: String,
    },
    /// A 404 or 410 that no registry wrote, such as the page of an ingress: nothing is known about the content.
    #[error("{} answered 404 or 410, but not as a registry does; {}", named(host.as_deref()), advice(host.as_deref()))]
    StrangeNotFound {
        /// The host that answered, if it is none of the upstream.
        host: Option<String>,
    },
    /// The credentials (or none) are not enough.
    #[error("upstream denied access ({status}): {message}")]
    Denied {
        /// The status that said so.
        status: u16,
        /// The problem and the action.
        message: String,
        /// A credential is configured, and the server did not see it.
        withheld: bool,
        /// False for a page, as of a firewall, and where the answer names a time after which to ask again: neither is a
        /// registry's refusal.
        lasting: bool,
    },
    /// Too many requests; until the time is over, nothing of this class is asked.
    #[error("{} limits the rate of requests; asked again in {} s", named(host.as_deref()), retry_after.as_secs_f64().ceil())]
    RateLimited {
        /// The time to wait.
        retry_after: Duration,
        /// The host that answered, if it is none of the upstream.
        #[serde(default)]
        host: Option<String>,
    },
    /// No answer, or one that says that upstream is in trouble.
    #[error("upstream is unavailable: {what}")]
    Unavailable {
        /// The problem.
        what: String,
    },
    /// An answer that can't be what was asked for.
    #[error("upstream answered with something else than was asked for: {what}")]
    Malformed {
        /// The problem.
        what: String,
    },
}

/// Returns the name of the server that answered, for a message.
fn named(host: Option<&str>) -> String {
    match host {
        Some(host) => format!("{host}, which the upstream names,"),
        None => "upstream".to_owned(),
    }
}

fn advice(host: Option<&str>) -> &'static str {
    match host {
        Some(_) => "the storage of the registry lacks the content, or its address expired",
        None => "check its address and path",
    }
}

impl Error {
    pub(super) fn unavailable(what: impl Into<String>) -> Self {
        Self::Unavailable { what: what.into() }
    }

    pub(super) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }

    pub(super) fn denied(status: u16, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Denied {
            status,
            message,
            withheld: false,
            lasting: true,
        }
    }

    /// Returns whether a registry refuses what was asked for, having seen the credential that is configured.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Denied {
                withheld: false,
                lasting: true,
                ..
            }
        )
    }

    /// Returns the denial of a request that was not sent, as there is no usable credential.
    pub(super) fn no_credential(reason: String) -> Self {
        Self::Denied {
            status: 403,
            message: reason,
            withheld: true,
            lasting: true,
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::unavailable(format!("{refused} is not followed"))
    }
}

/// An upstream's configuration can't be put to work.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The CA file can't be read.
    #[error("cannot read the CA file {path}: {source}", path = path.display())]
    CaUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA file holds no usable certificate.
    #[error("cannot use the CA file {path}: {reason}", path = path.display())]
    CaMalformed {
        /// The file.
        path: PathBuf,
        /// The part of it that is malformed, and why.
        reason: String,
    },
    /// The server stops, and builds no more clients.
    #[error("the server is stopping")]
    Stopping,
    /// The HTTP client refuses the settings.
    #[error("cannot set up the HTTP client for {host}: {what}")]
    Client {
        /// The upstream.
        host: String,
        /// Why.
        what: String,
    },
}

/// The kind of failure of a request without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Timeout,
    Connect,
    Cut,
}

impl Failure {
    /// Returns the label for metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Cut => "cut",
        }
    }

    pub(super) fn from_reqwest(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            Self::Timeout
        } else if error.is_connect() || error.is_dns() {
            Self::Connect
        } else {
            Self::Cut
        }
    }
}
