//! A desired object of any kind.

use k8s_openapi::ByteString;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

use crate::kind::Kind;

/// A desired object. The operator owns the fields of its manifest and no others.
#[derive(Clone, PartialEq)]
pub struct Child {
    /// The kind.
    pub kind: Kind,
    /// The name, in the mirror's namespace.
    pub name: String,
    /// The manifest that is applied.
    pub manifest: Value,
}

impl Child {
    /// Serializes a typed object.
    ///
    /// # Panics
    /// Never: the types of the API have text keys only.
    pub fn new<K: Serialize>(kind: Kind, name: String, object: &K) -> Self {
        #[expect(clippy::expect_used, reason = "the API's types have string keys only")]
        let manifest = serde_json::to_value(object).expect("an API object serialises");
        Self { kind, name, manifest }
    }
}

/// Omits the manifest, which may be a Secret's.
impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Returns the `data` of a Secret.
pub(super) fn data(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> BTreeMap<String, ByteString> {
    entries
        .into_iter()
        .map(|(key, value)| (key, ByteString(value)))
        .collect()
}
