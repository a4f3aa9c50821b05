//! Step 2: what is null is dropped, what is absent gets its default.

use serde_json::{Map, Value};

use super::structure;

/// Completes a value in place. No field of the schema can be null, so null means absent.
pub(super) fn apply(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|name, value| !value.is_null() || structure::field(schema, name).is_none());
            insert_absent(schema, object);
            for (name, value) in object {
                if let Some(schema) = structure::field(schema, name) {
                    apply(schema, value);
                }
            }
        }
        Value::Array(values) => {
            if let Some(items) = structure::items(schema) {
                for value in values {
                    apply(items, value);
                }
            }
        }
        _ => {}
    }
}

fn insert_absent(schema: &Value, object: &mut Map<String, Value>) {
    for (name, schema) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        if let Some(default) = schema.get("default") {
            object.entry(name).or_insert_with(|| default.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn completed(schema: &Value, mut value: Value) -> Value {
        apply(schema, &mut value);
        value
    }

    #[test]
    fn defaults_apply_inside_defaults() {
        let schema = json!({"properties": {"cache": {
            "default": {}, "properties": {"ttl": {"type": "string", "default": "168h"}},
        }}});
        assert_eq!(completed(&schema, json!({})), json!({"cache": {"ttl": "168h"}}));
    }

    #[test]
    fn null_is_replaced_by_the_default() {
        let schema = json!({"properties": {"size": {"type": "string"}, "replicas": {"default": 1}}});
        assert_eq!(
            completed(&schema, json!({"size": null, "replicas": null})),
            json!({"replicas": 1})
        );
    }

    #[test]
    fn list_items_are_completed_not_invented() {
        let item = json!({"properties": {"key": {"default": "ca.crt"}}});
        let schema = json!({"properties": {"list": {"items": item}, "map": {"additionalProperties": item}}});
        assert_eq!(
            completed(&schema, json!({"list": [{}], "map": {"a": {}}})),
            json!({"list": [{"key": "ca.crt"}], "map": {"a": {"key": "ca.crt"}}})
        );
        assert_eq!(
            completed(&schema, json!({"list": [], "map": {}})),
            json!({"list": [], "map": {}})
        );
    }
}
