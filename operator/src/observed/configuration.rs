//! The configuration as servers can read it now.

use sha2::{Digest, Sha256};

/// What the `ConfigMap` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The servers' file.
    pub current: Text,
    /// What an older server starts with that can't read it.
    pub last_good: Option<Text>,
}

/// A file of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// As it stands there.
    pub yaml: String,
    /// The version of what the operator wrote: someone may have changed it since.
    pub written: Option<String>,
}

impl Text {
    /// The SHA-256 in hexadecimal, by which servers name it.
    pub fn version(&self) -> String {
        hex::encode(Sha256::digest(&self.yaml))
    }

    /// Nobody has changed it.
    pub fn is_as_written(&self) -> bool {
        self.written.as_ref() == Some(&self.version())
    }
}
