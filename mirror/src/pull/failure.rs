//! The answer table: what a client gets when upstream does not give what was asked for and nothing is cached.

use std::time::Duration;

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

/// An answer without the content asked for; `http` turns it into a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// 404: upstream says that it has no such thing.
    NotFound { code: &'static str, message: String },
    /// 403: upstream refuses. Never its 401: clients would hand their secrets to us.
    Denied { message: String },
    /// 429.
    TooManyRequests { message: String, retry_after: Duration },
    /// 503: nothing can be said about the content now.
    Unavailable { message: String, retry_after: Duration },
}

impl Failure {
    /// The table's right-hand column.
    pub(crate) fn of(error: &Error, kind: Kind) -> Self {
        let message = error.to_string();
        match error {
            Error::NotFound { code, .. } => Self::not_found(kind, code, message),
            Error::Denied { .. } => Self::Denied { message },
            Error::RateLimited { retry_after } => Self::TooManyRequests {
                message,
                retry_after: *retry_after,
            },
            Error::StrangeNotFound | Error::Unavailable { .. } | Error::Malformed { .. } => {
                Self::Unavailable {
                    message,
                    retry_after: RETRY_AFTER,
                }
            }
        }
    }

    /// 503 for a cause of our own.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable {
            message: message.into(),
            retry_after: RETRY_AFTER,
        }
    }

    /// 404 for a manifest that is there, but in the format that nothing reads any more.
    pub(crate) fn schema1() -> Self {
        let message = "upstream has only a Docker schema 1 manifest, which this mirror does not serve: \
                       push the image again with a current client";
        Self::NotFound {
            code: "MANIFEST_UNKNOWN",
            message: message.into(),
        }
    }

    fn not_found(kind: Kind, code: &str, message: String) -> Self {
        let code = if code == "NAME_UNKNOWN" {
            "NAME_UNKNOWN"
        } else {
            kind.unknown()
        };
        Self::NotFound { code, message }
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
