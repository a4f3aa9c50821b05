//! The tables of docs/api.md.

use std::fmt::Write;

use serde_json::Value;

/// Fields with types of Kubernetes, which its own documentation describes.
const KUBERNETES_TYPES: [(&str, &str); 7] = [
    ("spec.pod.affinity", "Affinity"),
    ("spec.pod.containerSecurityContext", "SecurityContext"),
    ("spec.pod.resources", "ResourceRequirements"),
    ("spec.pod.securityContext", "PodSecurityContext"),
    ("spec.pod.tolerations", "list of Toleration"),
    (
        "spec.pod.topologySpreadConstraints",
        "list of TopologySpreadConstraint",
    ),
    ("status.conditions", "list of Condition"),
];

/// Returns all fields of a schema as Markdown, each with its type, default and meaning, and every rule.
pub(crate) fn markdown(schema: &Value) -> String {
    let mut out = String::new();
    for part in ["spec", "status"] {
        let _ = write!(
            out,
            "## {part}\n\n| Field | Type | Default | Meaning |\n|---|---|---|---|\n"
        );
        rows(&schema["properties"][part], part, &mut out);
        out.push('\n');
    }
    out.push_str(
        "## What is refused\n\nBeside unknown fields, other types and values beyond the bounds above.\n\n",
    );
    out.push_str("| Field | Message |\n|---|---|\n");
    rules(schema, "", &mut out);
    out
}

fn rows(schema: &Value, path: &str, out: &mut String) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let kubernetes = KUBERNETES_TYPES
            .iter()
            .find(|(other, _)| *other == path)
            .map(|(_, kind)| *kind);
        let required = schema["required"]
            .as_array()
            .is_some_and(|names| names.contains(&Value::from(name.as_str())));
        let _ = writeln!(
            out,
            "| `{path}` | {} | {} | {} |",
            kubernetes.map_or_else(|| kind(field), str::to_owned),
            if required {
                "required".to_owned()
            } else {
                default(field)
            },
            cell(&field["description"])
        );
        if kubernetes.is_none() {
            let items = if field["type"] == "array" {
                (&field["items"], "[]")
            } else {
                (field, "")
            };
            rows(items.0, &format!("{path}{}", items.1), out);
        }
    }
}

fn kind(field: &Value) -> String {
    if let Some(options) = field["enum"].as_array() {
        return options
            .iter()
            .map(|option| format!("`{}`", option.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ");
    }
    match field["type"].as_str().unwrap_or_default() {
        "string" if asks_for(field, "a duration") => "duration".to_owned(),
        "string" if asks_for(field, "a size") => "quantity".to_owned(),
        "array" => format!("list of {}s", kind(&field["items"])),
        "object" if field["additionalProperties"].is_object() => "map of strings".to_owned(),
        "integer" => match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
            (Some(low), Some(high)) if high < f64::from(i32::MAX) => format!("integer, {low} to {high}"),
            (Some(low), _) => format!("integer, {low} or more"),
            _ => "integer".to_owned(),
        },
        other => other.to_owned(),
    }
}

/// Returns true if a rule of the field begins with `what`.
fn asks_for(field: &Value, what: &str) -> bool {
    let rules = field["x-kubernetes-validations"].as_array().into_iter().flatten();
    let messages = rules.filter_map(|rule| rule["message"].as_str());
    messages
        .filter_map(|message| message.strip_prefix("must be "))
        .any(|rest| rest.starts_with(what))
}

fn default(field: &Value) -> String {
    match &field["default"] {
        Value::Null | Value::Object(_) => String::new(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn rules(schema: &Value, path: &str, out: &mut String) {
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let field = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        let _ = writeln!(
            out,
            "| `{}` | {} |",
            field.trim_start_matches('.'),
            cell(&rule["message"])
        );
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules(field, format!("{path}.{name}").trim_start_matches('.'), out);
    }
    if schema["items"].is_object() {
        rules(&schema["items"], &format!("{path}[]"), out);
    }
}

fn cell(text: &Value) -> String {
    text.as_str()
        .unwrap_or_default()
        .replace('|', "\\|")
        .replace('\n', " ")
}
