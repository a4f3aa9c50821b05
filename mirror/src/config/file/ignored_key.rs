//! Keys whose value the server does not read.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::overlay::{Overlay, OverlayError};

/// A key that has no effect or is refused, so that only its presence counts. The server never writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IgnoredKey(bool);

impl IgnoredKey {
    /// Returns `true` if the key is present, with or without a value.
    pub fn is_set(self) -> bool {
        self.0
    }
}

impl<'de> Deserialize<'de> for IgnoredKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Ok(Self(true))
    }
}

impl Serialize for IgnoredKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl Overlay for IgnoredKey {
    fn null() -> Option<Self> {
        Some(Self(true))
    }

    fn descend(&mut self, _: &str, _: &[&str], _: &str) -> Result<(), OverlayError> {
        self.0 = true;
        Ok(())
    }
}
