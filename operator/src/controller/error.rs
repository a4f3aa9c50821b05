//! Why a mirror has to be tried again, and what is told of it.

use std::time::Duration;

use super::RECONCILE_TIMEOUT;
use crate::{apply, issue};

/// Answers of an API server that is busy, or was asked for what someone else has just changed.
const PASSES: [u16; 4] = [409, 429, 503, 504];

/// Why a mirror has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something could not be read.
    #[error("reading what the spec refers to: {0}")]
    Read(#[source] kube::Error),
    /// Something could not be applied.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// Its own certificates could not be made.
    #[error(transparent)]
    Issue(#[from] issue::Error),
    /// The status could not be written.
    #[error("writing the status: {0}")]
    Status(#[source] kube::Error),
    /// The API server took too long.
    #[error("not done after {} s", RECONCILE_TIMEOUT.as_secs())]
    Timeout,
    /// A defect of the operator; other mirrors are not concerned.
    #[error("the operator failed: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

impl Error {
    /// Every class that there is.
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

    /// Its class, one of [`Self::CLASSES`], for metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Apply(apply::Error::Altered { .. }) => "altered",
            Self::Apply(apply::Error::Contested { .. }) => "contested",
            Self::Apply(_) => "apply",
            Self::Issue(_) => "issue",
            Self::Status(_) => "status",
            Self::Timeout => "timeout",
            Self::Panicked(_) => "panic",
        }
    }

    /// In words that stay the same each time, where the API server said no; conflicts and time-outs are not shown.
    pub(super) fn told(&self) -> Option<String> {
        let (what, source) = match self {
            Self::Read(source) => ("reading what the spec refers to".to_owned(), source),
            Self::Apply(apply::Error::Cluster {
                verb,
                kind,
                name,
                source,
            }) => (format!("{verb} {kind} {name}"), source.as_ref()),
            Self::Apply(apply::Error::Altered { .. } | apply::Error::Forbidden { .. }) => {
                return Some(self.to_string());
            }
            _ => return None,
        };
        match source {
            kube::Error::Api(status) if !PASSES.contains(&status.code) => {
                Some(format!("{what}: {}", status.message))
            }
            _ => None,
        }
    }

    /// When to try again, where that is known.
    pub(super) fn after(&self) -> Option<Duration> {
        match self {
            Self::Apply(error) => error.after(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    #[test]
    fn each_class_is_one_that_is_told_from_the_start() {
        let (kind, name) = (Kind::Service, "x".to_owned());
        let source = || kube::Error::LinesCodecMaxLineLengthExceeded;
        let after = Duration::ZERO;
        let errors = [
            Error::Read(source()),
            Error::Apply(apply::Error::Contested {
                kind,
                name: name.clone(),
                after,
            }),
            Error::Apply(apply::Error::Altered { kind, name }),
            Error::Status(source()),
            Error::Timeout,
        ];
        for error in errors {
            assert!(Error::CLASSES.contains(&error.class()), "{error}");
        }
    }
}
