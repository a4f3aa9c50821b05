//! Walking a value along its schema.

use serde_json::Value;

/// The schema of one field of an object: a declared one, or that of a map's values.
pub(super) fn field<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let declared = schema
        .get("properties")
        .and_then(|properties| properties.get(name));
    declared.or_else(|| {
        schema
            .get("additionalProperties")
            .filter(|values| values.is_object())
    })
}

/// The schema of an array's items.
pub(super) fn items(schema: &Value) -> Option<&Value> {
    schema.get("items")
}

/// A path with one more field.
pub(super) fn child(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// A path with an index.
pub(super) fn index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}
