//! The failures of a reconcile that are retried.

use std::time::Duration;

use super::RECONCILE_TIMEOUT;
use crate::{apply::ApplyError, certificates::CertificateError, cluster::error_message};

/// Status codes of transient failures: a conflict, or an API server under load.
const TRANSIENT: [u16; 4] = [409, 429, 503, 504];

/// A failure of a reconcile that is retried.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// An object could not be read.
    #[error("objects that the spec names not read: {}", error_message(.0))]
    Read(#[source] kube::Error),
    /// An object could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The mirror's own certificates could not be issued.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The status could not be written.
    #[error("status not written: {}", error_message(.0))]
    Status(#[source] kube::Error),
    /// The reconcile took too long.
    #[error("reconcile not finished within {} s", RECONCILE_TIMEOUT.as_secs())]
    Timeout,
    /// The reconcile panicked: a defect of the operator that concerns no other mirror.
    #[error("reconcile panicked, a defect of the operator: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

impl ReconcileError {
    /// All classes.
    pub const CLASSES: [&str; 8] = [
        "read",
        "altered",
        "contested",
        "apply",
        "issue",
        "status",
        "timeout",
        "panic",
    ];

    /// Returns the class for metrics, one of [`Self::CLASSES`].
    pub fn class(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Apply(ApplyError::Altered { .. }) => "altered",
            Self::Apply(ApplyError::Conflict { .. }) => "contested",
            Self::Apply(_) => "apply",
            Self::Certificate(_) => "issue",
            Self::Status(_) => "status",
            Self::Timeout => "timeout",
            Self::Panicked(_) => "panic",
        }
    }

    /// Returns the message for the status, which is the same on each retry; `None` for transient failures.
    pub(super) fn status_message(&self) -> Option<String> {
        let (what, source) = match self {
            Self::Read(source) => ("objects that the spec names not read".to_owned(), source),
            Self::Apply(error @ ApplyError::Cluster { source, .. }) => (error.what(), source.as_ref()),
            Self::Apply(
                ApplyError::Altered { .. } | ApplyError::Kept { .. } | ApplyError::Forbidden { .. },
            ) => {
                return Some(self.to_string());
            }
            _ => return None,
        };
        match source {
            kube::Error::Api(status) if !TRANSIENT.contains(&status.code) => {
                Some(format!("{what}: {}", status.message))
            }
            _ => None,
        }
    }

    /// Returns the delay of the retry, if the failure determines it.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Apply(error) => error.retry_after(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    #[test]
    fn class_of_each_error_is_listed() {
        let (kind, name) = (Kind::Service, "x".to_owned());
        let source = || kube::Error::LinesCodecMaxLineLengthExceeded;
        let after = Duration::ZERO;
        let errors = [
            ReconcileError::Read(source()),
            ReconcileError::Apply(ApplyError::Conflict {
                kind,
                name: name.clone(),
                after,
            }),
            ReconcileError::Apply(ApplyError::Altered { kind, name }),
            ReconcileError::Status(source()),
            ReconcileError::Timeout,
        ];
        for error in errors {
            assert!(ReconcileError::CLASSES.contains(&error.class()), "{error}");
        }
    }
}
