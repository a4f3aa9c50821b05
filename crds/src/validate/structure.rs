//! Walking a value along its schema.

use serde_json::Value;

/// Returns the schema of a field of an object: a declared one, or that of the values of a map.
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

/// Returns the schema of an array's items.
pub(super) fn items(schema: &Value) -> Option<&Value> {
    schema.get("items")
}

/// Appends a field to a path.
pub(super) fn child(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Appends an index to a path.
pub(super) fn index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}
