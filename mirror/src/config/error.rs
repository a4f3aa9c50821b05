//! Errors and notices of a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::keys::NO_DRIVER;
use super::log::Level;

/// A configuration that the server does not run by. Messages name the key and never a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no YAML, or has unknown keys, or values that do not fit.
    #[error("{file}{place}: {reason}")]
    Syntax {
        /// The file and a space, or nothing.
        file: String,
        /// `line L: key.path`.
        place: String,
        /// The problem.
        reason: String,
    },
    /// A `REGISTRY_*` variable does not fit.
    #[error("environment variable {variable}: {reason}")]
    Environment {
        /// Its name.
        variable: String,
        /// The problem.
        reason: String,
    },
    /// Distribution knows this key, but ignoring it would change what is safe or served.
    #[error("{key} is not supported: {reason}")]
    Refused {
        /// The key's path.
        key: String,
        /// Why, and what to do instead.
        reason: String,
    },
    /// A value makes no sense.
    #[error("{key}: {reason}")]
    Invalid {
        /// The key's path.
        key: String,
        /// The problem.
        reason: String,
    },
}

/// A remark on a key or a variable: it has no effect, another meaning than in Distribution, or is a risk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The key's path or the variable's name.
    pub key: String,
    /// The remark.
    pub message: String,
    /// The level that a server logs it at; `mirror check` prints them all.
    pub level: Level,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl Error {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers hand over errors and literals alike"
    )]
    pub(super) fn invalid(key: impl Into<String>, reason: impl ToString) -> Self {
        Self::Invalid {
            key: key.into(),
            reason: reason.to_string(),
        }
    }

    /// Returns the error of the parser at the key that it reached.
    pub(super) fn syntax(key: &str, error: &serde_saphyr::Error) -> Self {
        let line = error.location().map(|l| format!("line {}", l.line()));
        // A question mark is what the path has where the key itself could not be read.
        let key = Some(key.trim_end_matches(['?', '.'])).filter(|key| !key.is_empty());
        let place: Vec<_> = line.into_iter().chain(key.map(str::to_owned)).collect();
        Self::Syntax {
            file: String::new(),
            place: place.join(": "),
            reason: reason(error),
        }
    }

    /// Adds the path of the file to the error.
    pub(super) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Syntax { place, reason, .. } => Self::Syntax {
                file: format!("{} ", path.display()),
                place,
                reason,
            },
            other => other,
        }
    }
}

/// Returns the message of the parser without its location, replaced if it addresses programmers.
pub(super) fn reason(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as Yaml;
    match error.without_snippet() {
        Yaml::SerdeUnknownField { expected, .. } => {
            let known = expected.join(", ");
            if expected.contains(&"filesystem") {
                // Whatever is no section of `storage` is a driver to Distribution.
                return format!("{NO_DRIVER}; known here: {known}");
            }
            format!("unknown key; known here: {known}")
        }
        Yaml::SerdeUnknownVariant {
            variant, expected, ..
        } => {
            format!("{variant:?} is not one of {}", expected.join(", "))
        }
        Yaml::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key} is there twice"),
        Yaml::MultipleDocuments { .. } => "a second document starts here; one is expected".to_owned(),
        other => {
            let text = other.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            match text.rfind(" at line ") {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        }
    }
}
