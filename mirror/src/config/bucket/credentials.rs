//! The source of the credentials for a bucket (`storage.s3.credentials.type` and the like).

use serde::{Deserialize, Serialize};

use super::no_credentials;
use crate::config::Error;
use crate::config::overlay::Overlay;

/// The source of the credentials for a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialsType {
    /// Keys, in the configuration or in a file.
    #[default]
    Secret,
    /// The identity that the platform gives the process by its environment.
    WorkloadIdentity,
    /// None: requests have no signature.
    Anonymous,
}

impl Overlay for CredentialsType {
    const VALUES: &'static str = "Secret, WorkloadIdentity or Anonymous";
}

impl CredentialsType {
    /// Parses the type as a text.
    pub(in crate::config) fn parse(text: &str) -> Option<Self> {
        [Self::Secret, Self::WorkloadIdentity, Self::Anonymous]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }

    /// Returns the name of the type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::WorkloadIdentity => "WorkloadIdentity",
            Self::Anonymous => "Anonymous",
        }
    }

    /// Checks that a bucket has a secret, in `key` or elsewhere, exactly if its credentials have this type.
    ///
    /// # Errors
    /// A secret is missing or has no effect; the error names the key and the key of the type.
    pub(super) fn check(self, has_secret: bool, section: &str, key: &str, what: &str) -> Result<(), Error> {
        match self {
            Self::Secret if !has_secret => Err(no_credentials(&format!("{section}.{key}"), what)),
            Self::WorkloadIdentity | Self::Anonymous if has_secret => {
                let reason = format!(
                    "{} takes no {key} and no file with credentials: remove them, or set Secret",
                    self.as_str()
                );
                Err(Error::invalid(format!("{section}.credentials.type"), reason))
            }
            _ => Ok(()),
        }
    }
}
