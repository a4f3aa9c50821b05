//! Step 1: fields that the schema does not know.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{Violation, structure};

/// Returns the fields that the schema does not have.
pub(super) fn fields(root: &Value, document: &Value) -> Vec<Violation> {
    let mut violations = Vec::new();
    let Some(object) = document.as_object() else {
        return violations;
    };
    for (name, value) in object {
        match name.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => metadata(value, &mut violations),
            _ => visit_field(root, "", name, value, &mut violations),
        }
    }
    violations
}

/// Checks the fields of the metadata with their type, because the schema has only the name.
fn metadata(metadata: &Value, violations: &mut Vec<Violation>) {
    match serde_json::from_value::<ObjectMeta>(metadata.clone()).and_then(serde_json::to_value) {
        Ok(known) => violations.extend(
            metadata
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(name, value)| !value.is_null() && known.get(name).is_none())
                .map(|(name, _)| unknown(structure::child("metadata", name))),
        ),
        Err(error) => violations.push(Violation::new("metadata", error.to_string())),
    }
}

fn visit(schema: &Value, path: &str, value: &Value, violations: &mut Vec<Violation>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                visit_field(schema, path, name, value, violations);
            }
        }
        Value::Array(values) => {
            // Nothing is known of the items of what should not be an array.
            let items = structure::items(schema).unwrap_or(&Value::Null);
            for (index, value) in values.iter().enumerate() {
                visit(items, &structure::index(path, index), value, violations);
            }
        }
        _ => {}
    }
}

fn visit_field(schema: &Value, path: &str, name: &str, value: &Value, violations: &mut Vec<Violation>) {
    let path = structure::child(path, name);
    if let Some(schema) = structure::field(schema, name) {
        return visit(schema, &path, value, violations);
    }
    let known = schema.get("properties").and_then(Value::as_object);
    let known = known.into_iter().flat_map(|properties| properties.keys());
    let similar = super::closest(name, known.map(String::as_str)).map(str::to_owned);
    violations.push(Violation {
        similar,
        ..unknown(path)
    });
}

fn unknown(path: String) -> Violation {
    let message = format!("unknown field {path:?}");
    Violation::new(path, message)
}
