//! Compares a live object with its desired manifest.

use serde_json::{Map, Value};

use crate::quantity;

/// The fields with a map from resource names to quantities.
const QUANTITIES: [&str; 3] = ["limits", "requests", "capacity"];
/// The maps that one field manager owns as a whole: a foreign key changes their meaning.
const WHOLE: [&str; 4] = ["selector", "labelSelector", "matchLabels", "nodeSelector"];
/// The fields with one quantity.
const QUANTITY: [&str; 1] = ["sizeLimit"];

/// Returns whether `live` contains all fields of `desired`. Fields of other managers do not count.
///
/// The API server writes quantities in a canonical form, omits zero values, and merges lists of objects by key, so that
/// elements of other managers may come in between.
pub fn contains(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(key, desired)| field(live, key, desired))
        }
        (Value::Array(live), Value::Array(desired)) if desired.iter().any(Value::is_object) => desired
            .iter()
            .all(|desired| live.iter().any(|live| contains(live, desired))),
        (live, desired) => live == desired,
    }
}

fn field(live: &Map<String, Value>, key: &str, desired: &Value) -> bool {
    let Some(live) = live.get(key) else {
        return is_zero(desired);
    };
    if QUANTITY.contains(&key) {
        return is_quantity_of(live, desired);
    }
    match (live.as_object(), desired.as_object()) {
        (Some(live), Some(desired)) if WHOLE.contains(&key) => {
            live.keys().all(|key| desired.contains_key(key))
                && desired.iter().all(|(key, desired)| field(live, key, desired))
        }
        (Some(live), Some(desired)) if QUANTITIES.contains(&key) => {
            desired.iter().all(|(resource, desired)| {
                live.get(resource)
                    .is_some_and(|live| is_quantity_of(live, desired))
            })
        }
        _ => contains(live, desired),
    }
}

fn is_quantity_of(live: &Value, desired: &Value) -> bool {
    let texts = live.as_str().zip(desired.as_str());
    live == desired || texts.is_some_and(|(live, desired)| quantity::is_stored_as(desired, live))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0),
        Value::String(value) => value.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn compared(live: &str, desired: &str) -> bool {
        let parse = |json| serde_json::from_str::<Value>(json).unwrap();
        contains(&parse(live), &parse(desired))
    }

    /// An object whose desired fields are equal needs no write.
    #[test_case(r#"{"a": 1}"#, r#"{"a": 1, "b": 2}"# ; "a field of others")]
    #[test_case(r#"{"limits": {"cpu": "1000m"}}"#, r#"{"limits": {"cpu": "1"}}"# ; "a quantity in canonical form")]
    #[test_case(r#"{"requests": {"memory": "1.12345678Gi"}}"#, r#"{"requests": {"memory": "1206302532143m"}}"# ; "a quantity that is rounded up")]
    #[test_case(r#"{"sizeLimit": "1024Mi"}"#, r#"{"sizeLimit": "1Gi"}"# ; "a single quantity")]
    #[test_case(r#"{"replicas": 0, "flag": false, "list": [], "map": {}}"#, "{}" ; "zero values left out")]
    #[test_case(r#"[{"name": "b"}]"#, r#"[{"name": "a"}, {"name": "b", "x": 1}]"# ; "an injected element")]
    #[test_case(r#"{"emptyDir": {}}"#, r#"{"emptyDir": {}}"# ; "an empty object that means something")]
    fn equal_fields_need_no_apply(desired: &str, live: &str) {
        assert!(compared(live, desired));
    }

    /// An object with different fields needs a write.
    #[test_case(r#"{"a": 1}"#, r#"{"a": 2}"# ; "a changed value")]
    #[test_case(r#"{"a": 1}"#, "{}" ; "a missing value")]
    #[test_case(r#"{"replicas": 0}"#, r#"{"replicas": 1}"# ; "a zero that is not zero")]
    #[test_case(r#"{"limits": {"cpu": "1"}}"#, r#"{"limits": {"cpu": "2"}}"# ; "another quantity")]
    #[test_case(r#"{"limits": {"cpu": "1"}}"#, r#"{"limits": {}}"# ; "a missing quantity")]
    #[test_case(r#"{"label": "1000m"}"#, r#"{"label": "1"}"# ; "a text that only looks like a quantity")]
    #[test_case(r#"{"selector": {"a": "b"}}"#, r#"{"selector": {"a": "b", "c": "d"}}"# ; "a narrower selector")]
    #[test_case(r#"{"selector": {"matchLabels": {"a": "b"}}}"#,
        r#"{"selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c"}]}}"# ; "an added expression")]
    #[test_case(r#"["a"]"#, r#"["a", "b"]"# ; "added arguments")]
    #[test_case(r#"[{"name": "a"}]"#, r#"[{"name": "b"}]"# ; "a missing element")]
    fn different_fields_need_apply(desired: &str, live: &str) {
        assert!(!compared(live, desired));
    }
}
