//! Names of the distribution-spec: hosts, repositories, tags and references.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use regex::Regex;

use crate::digest::Digest;

/// A name that breaks its grammar.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidName {
    /// Not a registry's name.
    #[error("not a registry host: expected name[:port] without a scheme or a path")]
    Host,
    /// Not a repository's name (distribution-spec, "Pulling manifests").
    #[error("not a repository name: lower-case path components of at most 255 characters in all")]
    Repository,
    /// Not a tag (distribution-spec, "Pulling manifests").
    #[error("not a tag: at most 128 of [A-Za-z0-9._-], not starting with . or -")]
    Tag,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $max:literal, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Returns the name as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Returns `true` if this text is such a name.
            pub(crate) fn is_valid(text: &str) -> bool {
                // A constant of this file, compiled by its tests.
                static PATTERN: LazyLock<Regex> = LazyLock::new(|| Regex::new($pattern).expect("valid"));
                text.len() <= $max && PATTERN.is_match(text)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if !Self::is_valid(text) {
                    return Err(name!(@error $type));
                }
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
    (@error Host) => { InvalidName::Host };
    (@error RepositoryName) => { InvalidName::Repository };
    (@error Tag) => { InvalidName::Tag };
}

name!(
    /// A registry as clients write it: `docker.io`, `registry.example:5000`, `[::1]:5000`.
    Host,
    255,
    r"\A(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\z"
);
name!(
    /// A repository's name (distribution-spec, "Pulling manifests").
    RepositoryName,
    255,
    r"\A[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\z"
);
name!(
    /// A tag (distribution-spec, "Pulling manifests").
    Tag,
    128,
    r"\A[A-Za-z0-9_][A-Za-z0-9._-]*\z"
);

/// The name by which a client requests a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By a name that may move.
    Tag(Tag),
    /// By its content.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.parse() {
            Ok(digest) => Ok(Self::Digest(digest)),
            Err(_) => text.parse().map(Self::Tag),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A repository of one upstream, as the cache keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    /// The registry that it belongs to.
    pub host: Host,
    /// Its name there, as clients ask for it (`library/` added, no prefix).
    pub name: RepositoryName,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("library/nginx" => true)]
    #[test_case("a/b/c/d__e-f.g" => true)]
    #[test_case("a--b" => true)]
    #[test_case("A/b" => false; "upper case")]
    #[test_case("a//b" => false; "empty component")]
    #[test_case("../etc" => false; "dots")]
    #[test_case("a/" => false; "trailing slash")]
    #[test_case("_a" => false; "leading separator")]
    #[test_case("a\n" => false; "line end")]
    fn repository_names(text: &str) -> bool {
        text.parse::<RepositoryName>().is_ok()
    }

    #[test_case("docker.io" => true)]
    #[test_case("localhost:5000" => true)]
    #[test_case("[::1]:5000" => true)]
    #[test_case("https://docker.io" => false; "scheme")]
    #[test_case("docker.io/library" => false; "path")]
    #[test_case("user@docker.io" => false; "userinfo")]
    #[test_case("" => false; "empty")]
    fn hosts(text: &str) -> bool {
        text.parse::<Host>().is_ok()
    }

    /// A reference that parses as a digest is one; any other is a tag or invalid.
    #[test]
    fn digest_like_reference_is_a_digest() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert_eq!("sha256:00".parse::<Reference>(), Err(InvalidName::Tag));
        assert_eq!("t".repeat(129).parse::<Reference>(), Err(InvalidName::Tag));
    }
}
