//! An object that the operator applies, whatever its kind.

use k8s_openapi::ByteString;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

use crate::kind::Kind;

/// An object as it should be: what is in the manifest is the operator's, what is not is anyone's.
#[derive(Clone, PartialEq)]
pub struct Child {
    /// Its kind.
    pub kind: Kind,
    /// Its name, in the mirror's namespace.
    pub name: String,
    /// What is applied.
    pub manifest: Value,
}

impl Child {
    /// Takes a typed object.
    ///
    /// # Panics
    /// Never for the types of an API, whose keys are texts.
    pub fn new<K: Serialize>(kind: Kind, name: String, object: &K) -> Self {
        #[expect(clippy::expect_used, reason = "the API's types have string keys only")]
        let manifest = serde_json::to_value(object).expect("an API object serialises");
        Self { kind, name, manifest }
    }
}

/// Never the manifest: it may be a Secret's.
impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// A Secret's `data`.
pub(super) fn data(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> BTreeMap<String, ByteString> {
    entries
        .into_iter()
        .map(|(key, value)| (key, ByteString(value)))
        .collect()
}
