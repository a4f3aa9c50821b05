//! The credentials of upstreams, and the directory that they come from.
//!
//! The directory is a mounted Secret: `config.json` holds the credentials to use from now on (the candidates),
//! `last-good.json` those that the upstreams accepted, `version` counts the changes. The rotator tries a changed
//! candidate at the upstream before it replaces the credential in use ([`rotator`]).

pub mod docker_config;
pub mod rotator;
mod snapshot;
pub mod watch;

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::credential::Credential;

pub use docker_config::{CredentialEntry, Entries};
pub use rotator::{RetryIntervals, RotationState};
pub use snapshot::{Problem, Snapshot};

/// The result of trying a credential at an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialVerdict {
    /// The upstream accepts the credential.
    Accepted,
    /// The upstream rejects the credential, with this message.
    Rejected(String),
    /// The response decides nothing: the upstream is down, or limits requests.
    NoVerdict(String),
}

/// An upstream for which credentials are tried and loaded.
pub trait CredentialSink: Send + Sync + 'static {
    /// Tries a credential at the upstream without using it for other requests.
    fn verify(&self, candidate: &Credential) -> impl Future<Output = CredentialVerdict> + Send;

    /// Uses this credential for all requests from now on; `version` identifies it.
    fn use_credential(&self, credential: Credential, version: u64);

    /// Rejects all requests for this reason: without a usable credential, anonymous requests would hide the
    /// misconfiguration.
    fn refuse(&self, reason: String);

    /// Fails all requests for this reason until a credential or a refusal follows: whether there is a credential is not
    /// known yet.
    fn suspend(&self, reason: String);

    /// Waits until the upstream refuses a request, because of the credential or because of the repository.
    fn refused(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// The state of the credential of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialState {
    /// No credential is configured; requests are anonymous.
    #[default]
    None,
    /// The configured credential is in use, and the upstream accepts it.
    Active,
    /// The upstream has not yet accepted or rejected the candidate.
    Pending,
    /// The upstream rejects the candidate.
    Rejected,
    /// The candidate cannot be read.
    Malformed,
    /// A credential is expected and missing.
    Missing,
}

impl CredentialState {
    /// The names of all states in metrics.
    pub const NAMES: [&str; 6] = ["none", "active", "pending", "rejected", "malformed", "missing"];

    /// Returns the state's name in metrics.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// The report on the credential of an upstream in `/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The state of the credential.
    pub state: CredentialState,
    /// The version of the directory that is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_loaded: Option<u64>,
    /// The version of the directory that was last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_seen: Option<u64>,
    /// The message of the upstream, or the problem of the file; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state of a credential has its name in the metrics.
    #[test]
    fn credential_states_have_metric_names() {
        for (state, name) in [
            (CredentialState::None, "none"),
            (CredentialState::Active, "active"),
            (CredentialState::Pending, "pending"),
            (CredentialState::Rejected, "rejected"),
            (CredentialState::Malformed, "malformed"),
            (CredentialState::Missing, "missing"),
        ] {
            assert_eq!(state.as_str(), name);
        }
    }
}
