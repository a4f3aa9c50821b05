//! Step 4: lists with a key for each item.

use serde_json::{Map, Value};

use super::{Violation, structure};

/// Items whose keys another item has already.
pub(super) fn duplicates(schema: &Value, value: &Value) -> Vec<Violation> {
    let mut violations = Vec::new();
    visit(schema, "", value, &mut violations);
    violations
}

fn visit(schema: &Value, path: &str, value: &Value, violations: &mut Vec<Violation>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                if let Some(schema) = structure::field(schema, name) {
                    visit(schema, &structure::child(path, name), value, violations);
                }
            }
        }
        Value::Array(values) => {
            let by_key = schema
                .get("x-kubernetes-list-type")
                .is_some_and(|kind| kind == "map");
            if by_key && values.iter().all(|value| value.is_object() || value.is_null()) {
                compare(&keys(schema), path, values, violations);
            }
            for (index, value) in values.iter().enumerate() {
                if let Some(items) = structure::items(schema) {
                    visit(items, &structure::index(path, index), value, violations);
                }
            }
        }
        _ => {}
    }
}

fn keys(schema: &Value) -> Vec<&str> {
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    keys.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Reports each key that occurs more than once, at its second occurrence.
fn compare(keys: &[&str], path: &str, values: &[Value], violations: &mut Vec<Violation>) {
    let mut seen: Vec<Map<String, Value>> = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let own: Map<_, _> = keys
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), value.get(key)?.clone())))
            .collect();
        if seen.iter().filter(|other| **other == own).count() == 1 {
            let message = format!("Duplicate value: {}", Value::Object(own.clone()));
            violations.push(Violation::new(structure::index(path, index), message));
        }
        seen.push(own);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A key that occurs several times in a list is reported once, at its first repetition.
    #[test]
    fn duplicate_key_is_reported_once() {
        let schema = json!({"properties": {"upstreams": {
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["host"],
            "items": {"properties": {"host": {"type": "string"}}},
        }}});
        let value = json!({"upstreams": [{"host": "a"}, {"host": "b"}, {"host": "a"}, {"host": "a"}]});
        let found = duplicates(&schema, &value);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            r#"spec.upstreams[2]: Duplicate value: {"host":"a"}"#.replace("spec.", "")
        );
    }
}
