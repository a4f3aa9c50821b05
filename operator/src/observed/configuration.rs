//! The servers' configuration as stored in its `ConfigMap`.

use sha2::{Digest, Sha256};

/// The files of the `ConfigMap`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The servers' configuration file.
    pub current: Text,
    /// The configuration that older servers start with, if they can't parse the current one.
    pub last_good: Option<Text>,
}

/// A configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The content.
    pub yaml: String,
    /// The version that the operator wrote: a user may have changed the content since.
    pub written: Option<String>,
}

impl Text {
    /// Returns the SHA-256 in hexadecimal, by which servers report the configuration.
    pub fn version(&self) -> String {
        hex::encode(Sha256::digest(&self.yaml))
    }

    /// Returns whether the content is as the operator wrote it.
    pub fn is_as_written(&self) -> bool {
        self.written.as_ref() == Some(&self.version())
    }
}
