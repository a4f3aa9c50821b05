//! The table of specs, for the test without and the one with an API server.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// The content of `specs.yaml`.
#[derive(Deserialize)]
pub(crate) struct Table {
    /// Specs that are accepted.
    pub(crate) accepted: Vec<Creation>,
    /// Specs that are refused.
    pub(crate) refused: Vec<Creation>,
    /// Changes of what is stored.
    pub(crate) changes: Vec<Change>,
}

/// A document to create.
#[derive(Deserialize)]
pub(crate) struct Creation {
    /// The behaviour that the case shows.
    pub(crate) name: String,
    metadata: Option<Value>,
    spec: Option<Value>,
    /// The refused fields, each with a part of its message.
    #[serde(default)]
    pub(crate) refused: BTreeMap<String, String>,
}

/// A spec that is stored, and one to put in its place.
#[derive(Deserialize)]
pub(crate) struct Change {
    /// The behaviour that the case shows.
    pub(crate) name: String,
    from: Value,
    /// The status that the operator wrote before.
    pub(crate) status: Option<Value>,
    to: Value,
    /// The refused fields, each with a part of its message.
    #[serde(default)]
    pub(crate) refused: BTreeMap<String, String>,
}

impl Table {
    /// Reads it.
    pub(crate) fn read() -> Result<Self, serde_saphyr::Error> {
        // The table leans on a few anchors more than the parser lets a stranger's document do.
        let options = serde_saphyr::options! { budget: None };
        serde_saphyr::from_str_with_options(include_str!("../specs.yaml"), options)
    }
}

impl Creation {
    /// Returns the whole document.
    pub(crate) fn document(&self) -> Value {
        let metadata = self.metadata.clone().unwrap_or_else(|| json!({"name": "mirror"}));
        let mut document = document(&metadata, &Value::Null);
        match &self.spec {
            Some(spec) => document["spec"] = spec.clone(),
            None => drop(document.as_object_mut().and_then(|fields| fields.remove("spec"))),
        }
        document
    }
}

impl Change {
    /// Returns the stored object of that name, without its status.
    pub(crate) fn stored(&self, name: &str) -> Value {
        document(&json!({"name": name}), &self.from)
    }

    /// Returns the object that replaces it.
    pub(crate) fn wanted(&self, name: &str) -> Value {
        document(&json!({"name": name}), &self.to)
    }
}

fn document(metadata: &Value, spec: &Value) -> Value {
    json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "metadata": metadata, "spec": spec})
}
