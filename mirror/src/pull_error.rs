//! Errors of pulls: the response if the upstream does not send the content and the cache has none.

use std::borrow::Cow;
use std::time::Duration;

use crate::upstream::Error;

/// The `Retry-After` for errors without a time of their own.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The kind of requested content, which decides the code of the specification for missing content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestedContent {
    /// A manifest, by tag or digest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
}

impl RequestedContent {
    fn unknown(self) -> &'static str {
        match self {
            Self::Manifest => "MANIFEST_UNKNOWN",
            Self::Blob => "BLOB_UNKNOWN",
            Self::Tags => "NAME_UNKNOWN",
        }
    }
}

/// A response without the requested content; `http` turns it into a response and a log line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PullError {
    /// 404: the upstream has no such content.
    #[error("{cause}")]
    NotFound { code: &'static str, cause: Cause },
    /// 403: the upstream refuses. Never its 401, or clients would send their secrets to this server.
    #[error("{cause}")]
    Denied { cause: Cause },
    /// 429.
    #[error("{cause}")]
    TooManyRequests { cause: Cause, retry_after: Duration },
    /// 503: the state of the content is unknown.
    #[error("{cause}")]
    Unavailable { cause: Cause, retry_after: Duration },
}

/// The cause of a failure. No variant holds a credential, a token or a URL's query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    /// The upstream sent no usable response.
    #[error(transparent)]
    Upstream(#[from] Error),
    /// The server sent no request, or could not use the response.
    #[error("{0}")]
    Mirror(Cow<'static, str>),
}

impl Cause {
    /// Returns the error of the upstream, if it is the cause.
    pub(crate) fn upstream_error(&self) -> Option<&Error> {
        match self {
            Self::Upstream(error) => Some(error),
            Self::Mirror(_) => None,
        }
    }

    /// Returns a word for all causes that differ only in details.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Upstream(Error::NotFound { .. }) => "not_found",
            Self::Upstream(Error::StrangeNotFound { .. }) => "not_a_registry",
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

impl PullError {
    /// Maps an upstream error to the client response (docs/mirror.md, "Towards upstream").
    pub(crate) fn from_upstream(error: &Error, kind: RequestedContent) -> Self {
        let cause = Cause::Upstream(error.clone());
        match error {
            Error::NotFound { code, .. } => Self::not_found(kind, code, cause),
            Error::Denied { .. } => Self::Denied { cause },
            Error::RateLimited { retry_after, .. } => Self::TooManyRequests {
                cause,
                retry_after: *retry_after,
            },
            Error::StrangeNotFound { .. } | Error::Unavailable { .. } | Error::Malformed { .. } => {
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

    fn not_found(kind: RequestedContent, code: &str, cause: Cause) -> Self {
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

    /// Returns `true` if the error is authoritative, so that no stale copy may be served.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(error: &Error) -> PullError {
        PullError::from_upstream(error, RequestedContent::Blob)
    }

    /// Only a 404 with a registry's error body becomes a 404 for the client.
    #[test]
    fn only_registry_404_is_a_404() {
        let reported = classified(&Error::NotFound {
            code: "BLOB_UNKNOWN".into(),
            message: "no".into(),
        });
        assert!(
            matches!(
                &reported,
                PullError::NotFound {
                    code: "BLOB_UNKNOWN",
                    ..
                }
            ) && reported.is_final()
        );
        let html = classified(&Error::StrangeNotFound { host: None });
        assert!(matches!(&html, PullError::Unavailable { .. }) && !html.is_final());
    }

    /// A 401 or a 403 of the upstream becomes a 403 for the client.
    #[test]
    fn upstream_401_and_403_become_403() {
        let denied = classified(&Error::Denied {
            status: 401,
            message: "no".into(),
            withheld: false,
            lasting: true,
        });
        assert!(matches!(denied, PullError::Denied { .. }));
    }

    /// A rate limit of the upstream is passed on with its delay.
    #[test]
    fn rate_limit_is_passed_on_with_retry_after() {
        let wait = Duration::from_secs(7);
        let limited = classified(&Error::RateLimited {
            retry_after: wait,
            host: None,
        });
        assert!(matches!(limited, PullError::TooManyRequests { retry_after, .. } if retry_after == wait));
    }

    #[test]
    fn everything_else_is_a_503() {
        for error in [
            Error::Unavailable { what: "x".into() },
            Error::Malformed { what: "x".into() },
        ] {
            assert!(matches!(classified(&error), PullError::Unavailable { .. }));
        }
    }
}
