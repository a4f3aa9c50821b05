//! Errors of the bucket. No message holds a credential, a signature or the query of a URL.

use std::path::PathBuf;

use super::BucketState;

/// The longest text of a store that a message repeats, in characters.
const LONGEST: usize = 300;

/// A request to the bucket that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The bucket has no such object.
    #[error("the bucket has no such object")]
    NotFound,
    /// The store has no such bucket.
    #[error("the bucket does not exist: create it or correct its name ({what})")]
    NoBucket {
        /// The answer of the store.
        what: String,
    },
    /// The credentials or the permission are not enough.
    #[error("the bucket denied access: check the credentials and their permissions ({what})")]
    Denied {
        /// The answer of the store.
        what: String,
    },
    /// The store did not answer, or with an error.
    #[error("the bucket is unavailable: {what}")]
    Unavailable {
        /// The problem.
        what: String,
    },
}

/// A bucket that cannot be put to use.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// A file cannot be read.
    #[error("cannot read {key} {}: {source}", path.display())]
    Unreadable {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file or value does not fit.
    #[error("{key} cannot be used: {reason}")]
    Invalid {
        /// The key.
        key: String,
        /// The problem; no secret is part of it.
        reason: String,
    },
}

impl Error {
    pub(super) fn unavailable(what: impl Into<String>) -> Self {
        Self::Unavailable { what: what.into() }
    }

    /// Returns the state of the bucket that the error shows.
    pub(super) fn state(&self) -> BucketState {
        match self {
            Self::NotFound => BucketState::Reachable,
            Self::NoBucket { .. } => BucketState::NotFound,
            Self::Denied { .. } => BucketState::Denied,
            Self::Unavailable { .. } => BucketState::Unreachable,
        }
    }

    /// Returns `true` if a second attempt may succeed at once.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as Store;
        let what = describe(&error);
        match error {
            Store::NotFound { .. } if names_missing_bucket(&what) => Self::NoBucket { what },
            Store::NotFound { .. } => Self::NotFound,
            Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => Self::Denied { what },
            Store::Generic { .. } if names_refused_token(&what) => Self::Denied { what },
            _ => Self::Unavailable { what },
        }
    }
}

fn names_missing_bucket(what: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"]
        .iter()
        .any(|code| what.contains(code))
}

/// Returns whether S3 refused a session token, with 400 and not with 403.
fn names_refused_token(what: &str) -> bool {
    ["ExpiredToken", "InvalidToken", "TokenRefreshRequired"]
        .iter()
        .any(|code| what.starts_with(code))
}

/// Returns the innermost message, which repeats no URL: the status and the error code of the store.
fn describe(error: &object_store::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    match (element(&text, "Code"), element(&text, "Message")) {
        (Some(code), Some(message)) => cut(&format!("{code}: {message}")),
        (Some(code), None) => cut(code),
        _ => cut(&text),
    }
}

/// Returns the text of an element of an XML document; error documents of stores may repeat what was signed in others.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once('<')?.0)
}

fn cut(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found(text: &str) -> Error {
        let source = std::io::Error::other(text.to_owned()).into();
        object_store::Error::NotFound {
            path: "p".to_owned(),
            source,
        }
        .into()
    }

    /// A missing bucket is not a missing object.
    #[test]
    fn missing_bucket_is_no_missing_object() {
        assert_eq!(
            not_found("<Error><Code>NoSuchKey</Code></Error>"),
            Error::NotFound
        );
        let found = not_found("<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>");
        let what = "NoSuchBucket: none".to_owned();
        assert_eq!(found, Error::NoBucket { what });
    }

    /// A message holds the code and the message of the store, and nothing of what was signed.
    #[test]
    fn message_repeats_code_and_message_only() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message><StringToSign>hunter2</StringToSign>";
        let source = std::io::Error::other(body).into();
        let path = "p".to_owned();
        let error = Error::from(object_store::Error::PermissionDenied { path, source });
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(error.to_string().contains("SignatureDoesNotMatch: no"), "{error}");
    }

    /// A session token that S3 refuses is a denial.
    #[test]
    fn refused_token_is_a_denial() {
        let body =
            "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>";
        let source = std::io::Error::other(body).into();
        let error = Error::from(object_store::Error::Generic { store: "S3", source });
        assert_eq!(error.state(), BucketState::Denied, "{error}");
    }

    /// A message is one line of bounded length.
    #[test]
    fn message_is_one_short_line() {
        let text = cut(&"a\n".repeat(10_000));
        assert!(text.len() == LONGEST && !text.contains('\n'));
    }
}
