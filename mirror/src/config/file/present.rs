//! Keys that are read but not looked into.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::overlay::{Overlay, OverlayError};

/// A part of the file that has no effect, or is refused: all that counts is whether it is there.
/// It is never written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present(bool);

impl Present {
    /// Whether the key is there, be it without a value.
    pub fn is_there(self) -> bool {
        self.0
    }
}

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Ok(Self(true))
    }
}

impl Serialize for Present {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl Overlay for Present {
    #[cfg(test)]
    fn keys(path: &str, keys: &mut Vec<(String, bool)>) {
        keys.push((path.to_owned(), true));
    }

    fn null() -> Option<Self> {
        Some(Self(true))
    }

    fn descend(&mut self, _: &str, _: &[&str], _: &str) -> Result<(), OverlayError> {
        self.0 = true;
        Ok(())
    }
}
