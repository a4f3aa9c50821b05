//! The file with the credentials of the bucket.

use std::path::Path;

use serde::Deserialize;

use super::error::BucketError;
use crate::file_read::{self, MAX_FILE};
use crate::secret::Secret;

/// The content of a file with the credentials of S3 or Azure, with the names that the configuration has for them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialsFile {
    /// The access key of S3.
    #[serde(rename = "accesskey")]
    pub(super) access_key: Option<String>,
    /// The secret key of S3.
    #[serde(rename = "secretkey")]
    pub(super) secret_key: Option<Secret>,
    /// The session token of temporary keys of S3.
    #[serde(rename = "sessiontoken")]
    pub(super) session_token: Option<Secret>,
    /// The key of the storage account of Azure.
    #[serde(rename = "accountkey")]
    pub(super) account_key: Option<Secret>,
}

impl CredentialsFile {
    /// Parses a file, YAML or JSON.
    ///
    /// # Errors
    /// The text does not fit; the error repeats nothing of it.
    pub(super) fn parse(text: &str, key: &'static str) -> Result<Self, BucketError> {
        serde_saphyr::from_str(text).map_err(|_| BucketError::Invalid {
            key: key.to_owned(),
            reason: "expected YAML or JSON with accesskey and secretkey, or accountkey".to_owned(),
        })
    }
}

/// Reads a small file that a key names. Blocks.
///
/// # Errors
/// The file cannot be read, or is too long.
pub(super) fn read(path: &Path, key: &'static str) -> Result<String, BucketError> {
    file_read::read_text(path, MAX_FILE).map_err(|source| BucketError::Unreadable {
        key,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file is YAML or JSON.
    #[test]
    fn credentials_file_is_yaml_or_json() {
        for text in [
            "accesskey: a\nsecretkey: s\n",
            r#"{"accesskey": "a", "secretkey": "s"}"#,
        ] {
            let file = CredentialsFile::parse(text, "k").unwrap();
            assert_eq!(file.access_key.as_deref(), Some("a"));
            assert_eq!(file.secret_key, Some(Secret::new("s")));
        }
    }

    /// The error of a file that does not fit repeats nothing of it.
    #[test]
    fn credentials_file_error_hides_the_content() {
        for text in ["hunter2", "hunter2: x", "accesskey: [hunter2]", "\"hunter2"] {
            let error = CredentialsFile::parse(text, "k").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
