//! What the mirror shows to an upstream, and the directory that it comes from.
//!
//! The directory is a mounted Secret: `config.json` holds what upstreams should be shown from now on (the
//! candidates), `last-good.json` what they are known to have accepted, `version` counts the changes. A changed
//! candidate is tried upstream before it replaces the credential in use ([`keeper`]).

mod directory;
pub mod entries;
pub mod keeper;
pub mod watch;

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

pub use directory::{Problem, Snapshot};
pub use entries::{Entries, Entry};
pub use keeper::{Kept, Pace};

/// What an upstream is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    #[default]
    Anonymous,
    /// A user and a password, for Basic or for the token server.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token for the token server (`OAuth2`, `grant_type=refresh_token`).
    IdentityToken {
        /// The user, where the registry wants to know.
        username: String,
        /// The token.
        token: Secret,
    },
}

/// What an upstream says to a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes it.
    Accepted,
    /// It does not, in these words.
    Rejected(String),
    /// It gave no answer that tells: down, or limiting requests.
    NoVerdict(String),
}

/// What credentials are tried at and loaded into: an upstream.
pub trait Target: Send + Sync + 'static {
    /// Asks the upstream about a credential without using it for anything else.
    fn verify(&self, candidate: &Credential) -> impl Future<Output = Verdict> + Send;

    /// Shows this credential from now on. `version` tells it from earlier ones.
    fn use_credential(&self, credential: Credential, version: u64);

    /// Asks for nothing any more, for this reason: there is no usable credential, and going on without one
    /// would be anonymous in silence.
    fn refuse(&self, reason: String);

    /// Waits until the upstream refuses a request, be it for the credential in use or for a repository.
    fn refused(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// How it stands with the credential of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// The upstream is asked without any, as none is configured.
    #[default]
    None,
    /// The configured one is in use, and the upstream takes it.
    Active,
    /// The upstream has not yet said whether it takes the candidate.
    Pending,
    /// The upstream does not take the candidate.
    Rejected,
    /// The candidate cannot be read.
    Malformed,
    /// There should be one, and there is not.
    Missing,
}

impl State {
    /// All states, as metrics name them.
    pub const NAMES: [&str; 6] = ["none", "active", "pending", "rejected", "malformed", "missing"];

    /// The state's name in metrics.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// What `/status` tells of an upstream's credential.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How it stands.
    pub state: State,
    /// The version of the directory that is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_loaded: Option<u64>,
    /// The version of the directory that was last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_seen: Option<u64>,
    /// What the upstream said, or what is wrong; empty if nothing is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_name_in_the_metrics() {
        for (state, name) in [
            (State::None, "none"),
            (State::Active, "active"),
            (State::Pending, "pending"),
            (State::Rejected, "rejected"),
            (State::Malformed, "malformed"),
            (State::Missing, "missing"),
        ] {
            assert_eq!(state.as_str(), name);
        }
    }
}
