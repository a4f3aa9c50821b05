//! The API server's verdict on a `RegistryMirror`, without an API server.
//!
//! It takes the same five steps, as CEL rules alone would let most mistakes pass: unknown fields, defaults, the schema,
//! the keys of list-maps, then the rules. A table of specs is put to both, and the test fails where they differ.
//!
//! One difference is kept: on an update the API server lets fields that were wrong before and did not change stay as
//! they are, [`changed`] does not.

mod defaults;
mod lists;
mod schema;
mod structure;
mod unknown;

use std::{fmt, sync::LazyLock};

use kube::{
    Resource,
    core::cel::{CompiledSchema, Validator, compile_schema},
};
use serde_json::Value;

use crate::{RegistryMirror, crd};

/// The similarity from which a name is taken for a misspelt one; 1 is equality.
const MIN_SIMILARITY: f64 = 0.6;

/// Something that the API server would not accept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Where: `spec.upstreams[0].remoteURL`; empty for the document itself.
    pub path: String,
    /// The fault and the correction.
    pub message: String,
    /// A known field of a similar name.
    pub similar: Option<String>,
    /// The schema is violated in a way that makes rules pointless.
    blocking: bool,
}

impl Violation {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            similar: None,
            blocking: false,
        }
    }

    fn blocking(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            blocking: true,
            ..Self::new(path, message)
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }?;
        match &self.similar {
            Some(similar) => write!(f, "; did you mean {similar}?"),
            None => Ok(()),
        }
    }
}

/// All that the API server would object to; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Violation::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Returns the violations one by one.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }
}

/// Returns the candidate that a misspelt name most likely means, if there is one.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    let rated = candidates.into_iter().map(|candidate| {
        let similarity = strsim::normalized_damerau_levenshtein(&lower, &candidate.to_ascii_lowercase());
        (similarity, candidate)
    });
    let best = rated.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .map(|(_, candidate)| candidate)
}

/// Reads a document as the API server would on creation.
///
/// # Errors
/// What it would refuse, with the paths and messages that it would give.
pub fn created(document: &Value) -> Result<RegistryMirror, Violations> {
    check(document, None)
}

/// Reads a document as the API server would if `stored` were there already: rules about transitions count, too. As
/// there, the status of `stored` stays.
///
/// # Errors
/// What it would refuse, with the paths and messages that it would give.
pub fn changed(document: &Value, stored: &Value) -> Result<RegistryMirror, Violations> {
    check(document, Some(stored))
}

/// The schema and its compiled forms.
struct Schema {
    root: Value,
    json: jsonschema::Validator,
    rules: CompiledSchema,
}

#[expect(
    clippy::expect_used,
    reason = "the schema does not depend on input, and every test reads it"
)]
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let version = crd().spec.versions.swap_remove(0);
    let root = version.schema.and_then(|schema| schema.open_api_v3_schema);
    let root = serde_json::to_value(root.expect("a definition has a schema")).expect("a schema is JSON");
    Schema {
        json: schema::compile(&root).expect("the schema compiles"),
        rules: compile_schema(&root),
        root,
    }
});

fn check(document: &Value, stored: Option<&Value>) -> Result<RegistryMirror, Violations> {
    refuse(identity(document))?;
    refuse(unknown::fields(&SCHEMA.root, document))?;
    let object = complete(document, stored);
    let stored = stored.map(|stored| complete(stored, Some(stored)));

    let mut violations = schema::violations(&SCHEMA.json, &object);
    violations.extend(lists::duplicates(&SCHEMA.root, &object));
    if !violations.iter().any(|violation| violation.blocking) {
        violations.extend(broken_rules(&object, stored.as_ref()));
    }
    refuse(violations)?;
    serde_json::from_value(object).map_err(|error| Violations(vec![Violation::new("", error.to_string())]))
}

fn refuse(violations: Vec<Violation>) -> Result<(), Violations> {
    if violations.is_empty() {
        Ok(())
    } else {
        Err(Violations(violations))
    }
}

/// Checks the fields that a request has in its path and a document has to contain itself.
fn identity(document: &Value) -> Vec<Violation> {
    let Some(object) = document.as_object() else {
        return vec![Violation::new(
            "",
            "must be a RegistryMirror: a mapping with apiVersion, kind, metadata and spec",
        )];
    };
    let mut violations = Vec::new();
    for (field, wanted) in [
        ("apiVersion", RegistryMirror::api_version(&())),
        ("kind", RegistryMirror::kind(&())),
    ] {
        if object.get(field).and_then(Value::as_str) != Some(&wanted) {
            violations.push(Violation::new(field, format!("must be {wanted}")));
        }
    }
    let name = object.get("metadata").and_then(|metadata| metadata.get("name"));
    if name.is_none_or(|name| name.is_null() || name == "") {
        violations.push(Violation::new(
            "metadata.name",
            "Required value: name or generateName is required",
        ));
    }
    violations
}

/// Returns the document as the API server stores it on creation: without null values, and with defaults.
pub fn completed(document: &Value) -> Value {
    complete(document, None)
}

/// Returns the object as the API server stores it: with the stored status, without null values, and with defaults.
fn complete(document: &Value, stored: Option<&Value>) -> Value {
    let mut object = document.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if let Some(status) = stored.and_then(|stored| stored.get("status")) {
            fields.insert("status".to_owned(), status.clone());
        }
    }
    defaults::apply(&SCHEMA.root, &mut object);
    object
}

fn broken_rules(object: &Value, stored: Option<&Value>) -> Vec<Violation> {
    let verdict = Validator::new().validate_compiled(&SCHEMA.rules, object, stored);
    let errors = verdict.err().into_iter().flatten();
    // A field that a rule of the root names comes with the dot that every rule puts before it.
    errors
        .map(|error| Violation::new(error.field_path.trim_start_matches('.'), error.message))
        .collect()
}
