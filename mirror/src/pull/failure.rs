//! The answer table: what a client gets when upstream does not give what was asked for and nothing is cached.

use std::borrow::Cow;
use std::time::Duration;

use crate::fill::NoPlace;
use crate::upstream::Error;

/// How long clients are told to wait where upstream said nothing about it.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What was asked for: it decides the specification's code for "not there".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A manifest, by tag or digest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
}

impl Kind {
    fn unknown(self) -> &'static str {
        match self {
            Self::Manifest => "MANIFEST_UNKNOWN",
            Self::Blob => "BLOB_UNKNOWN",
            Self::Tags => "NAME_UNKNOWN",
        }
    }
}

/// An answer without the content asked for; `http` turns it into a response and a line in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// 404: upstream says that it has no such thing.
    #[error("{cause}")]
    NotFound { code: &'static str, cause: Cause },
    /// 403: upstream refuses. Never its 401: clients would hand their secrets to us.
    #[error("{cause}")]
    Denied { cause: Cause },
    /// 429.
    #[error("{cause}")]
    TooManyRequests { cause: Cause, retry_after: Duration },
    /// 503: nothing can be said about the content now.
    #[error("{cause}")]
    Unavailable { cause: Cause, retry_after: Duration },
}

/// The cause of a failure. No variant holds a credential, a token or a URL's query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    /// Upstream gave no usable answer.
    #[error(transparent)]
    Upstream(#[from] Error),
    /// The mirror did not ask, or could not use the answer.
    #[error("{0}")]
    Mirror(Cow<'static, str>),
}

impl Cause {
    /// Returns a word for all causes that differ in their details only.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Upstream(Error::NotFound { .. }) => "not_found",
            Self::Upstream(Error::StrangeNotFound) => "not_a_registry",
            Self::Upstream(Error::Denied { .. }) => "denied",
            Self::Upstream(Error::RateLimited { .. }) => "rate_limited",
            Self::Upstream(Error::Unavailable { .. }) => "unavailable",
            Self::Upstream(Error::Malformed { .. }) => "malformed",
            Self::Mirror(_) => "mirror",
        }
    }
}

impl From<String> for Cause {
    fn from(text: String) -> Self {
        Self::Mirror(text.into())
    }
}

impl From<&'static str> for Cause {
    fn from(text: &'static str) -> Self {
        Self::Mirror(text.into())
    }
}

impl From<NoPlace> for Failure {
    fn from(no_place: NoPlace) -> Self {
        Self::unavailable(no_place.to_string())
    }
}

impl Failure {
    /// Returns the table's right-hand column.
    pub(crate) fn of(error: &Error, kind: Kind) -> Self {
        let cause = Cause::Upstream(error.clone());
        match error {
            Error::NotFound { code, .. } => Self::not_found(kind, code, cause),
            Error::Denied { .. } => Self::Denied { cause },
            Error::RateLimited { retry_after } => Self::TooManyRequests {
                cause,
                retry_after: *retry_after,
            },
            Error::StrangeNotFound | Error::Unavailable { .. } | Error::Malformed { .. } => {
                Self::unavailable(cause)
            }
        }
    }

    /// Returns a 503 after which a client waits for as long as nothing else is known.
    pub(crate) fn unavailable(cause: impl Into<Cause>) -> Self {
        Self::Unavailable {
            cause: cause.into(),
            retry_after: RETRY_AFTER,
        }
    }

    /// Returns a 404 for a manifest that is there, but in the format that nothing reads any more.
    pub(crate) fn schema1() -> Self {
        let cause = "upstream has only a Docker schema 1 manifest, which this mirror does not serve: \
                     push the image again with a current client";
        Self::NotFound {
            code: "MANIFEST_UNKNOWN",
            cause: cause.into(),
        }
    }

    fn not_found(kind: Kind, code: &str, cause: Cause) -> Self {
        let code = if code == "NAME_UNKNOWN" {
            "NAME_UNKNOWN"
        } else {
            kind.unknown()
        };
        Self::NotFound { code, cause }
    }

    /// Returns whether a registry refuses what was asked for: access was revoked, or never given.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { cause: Cause::Upstream(error) } if error.is_refusal())
    }

    /// Whether upstream's word settles the matter: a stale copy must not be served against it.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: &Error) -> Failure {
        Failure::of(error, Kind::Blob)
    }

    #[test]
    fn only_a_registrys_own_404_is_a_404() {
        let told = of(&Error::NotFound {
            code: "BLOB_UNKNOWN".into(),
            message: "no".into(),
        });
        assert!(
            matches!(
                &told,
                Failure::NotFound {
                    code: "BLOB_UNKNOWN",
                    ..
                }
            ) && told.is_final()
        );
        let html = of(&Error::StrangeNotFound);
        assert!(matches!(&html, Failure::Unavailable { .. }) && !html.is_final());
    }

    #[test]
    fn upstreams_401_and_403_are_a_403() {
        let denied = of(&Error::Denied {
            status: 401,
            message: "no".into(),
            withheld: false,
            lasting: true,
        });
        assert!(matches!(denied, Failure::Denied { .. }));
    }

    #[test]
    fn a_rest_is_passed_on_with_its_length() {
        let wait = Duration::from_secs(7);
        let limited = of(&Error::RateLimited { retry_after: wait });
        assert!(matches!(limited, Failure::TooManyRequests { retry_after, .. } if retry_after == wait));
    }

    #[test]
    fn everything_else_is_a_503() {
        for error in [
            Error::Unavailable { what: "x".into() },
            Error::Malformed { what: "x".into() },
        ] {
            assert!(matches!(of(&error), Failure::Unavailable { .. }));
        }
    }
}
