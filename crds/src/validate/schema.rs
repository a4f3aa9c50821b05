//! Step 3: the schema, through a JSON Schema validator.

use jsonschema::{
    ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind},
    paths::{Location, LocationSegment},
};
use serde_json::{Map, Value, json};

use super::{Violation, structure};

/// Compiles what JSON Schema can say of a structural schema.
///
/// # Errors
/// A schema that is not one.
pub(super) fn compile(root: &Value) -> Result<Validator, Box<ValidationError<'static>>> {
    jsonschema::draft7::new(&translate(root)).map_err(Box::new)
}

/// Translates a schema of Kubernetes into JSON Schema. Later steps check the extensions of Kubernetes.
fn translate(schema: &Value) -> Value {
    let Some(fields) = schema.as_object() else {
        return schema.clone();
    };
    let mut out = Map::new();
    for (keyword, value) in fields {
        let value = match keyword.as_str() {
            "properties" => values(value),
            "items" | "additionalProperties" => translate(value),
            "type" | "required" | "enum" | "pattern" | "minimum" | "maximum" | "minLength" | "maxLength"
            | "minItems" | "maxItems" | "minProperties" | "maxProperties" => value.clone(),
            _ => continue,
        };
        out.insert(keyword.clone(), value);
    }
    if fields.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        out.insert("type".to_owned(), json!(["integer", "string"]));
    }
    if fields.get("format") == Some(&json!("int32")) {
        out.entry("minimum").or_insert(json!(i32::MIN));
        out.entry("maximum").or_insert(json!(i32::MAX));
    }
    Value::Object(out)
}

fn values(properties: &Value) -> Value {
    let translated = |(name, schema): (&String, &Value)| (name.clone(), translate(schema));
    properties
        .as_object()
        .into_iter()
        .flatten()
        .map(translated)
        .collect::<Map<_, _>>()
        .into()
}

/// Returns the violations of the schema, in the words of the API server.
pub(super) fn violations(validator: &Validator, object: &Value) -> Vec<Violation> {
    validator
        .iter_errors(object)
        .map(|error| violation(&error))
        .collect()
}

fn violation(error: &ValidationError<'_>) -> Violation {
    let path = path(error.instance_path());
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let path = structure::child(&path, property.as_str().unwrap_or_default());
            Violation::blocking(path, "Required value")
        }
        ValidationErrorKind::Enum { options } => Violation::blocking(
            path,
            format!(
                "Unsupported value: {}: supported values: {}",
                error.instance(),
                list(options)
            ),
        ),
        ValidationErrorKind::Type { kind } => {
            let message = format!("{path} in body must be of type {}", expected(kind));
            Violation::blocking(path, message)
        }
        ValidationErrorKind::MaxLength { limit } => {
            Violation::blocking(path, format!("Too long: may not be more than {limit} bytes"))
        }
        ValidationErrorKind::MaxItems { limit } | ValidationErrorKind::MaxProperties { limit } => {
            Violation::blocking(path, format!("must have at most {limit} items"))
        }
        kind => {
            let message = format!("{path} in body {}", shortfall(kind, error));
            Violation::new(path, message)
        }
    }
}

/// Returns the message of a violation after which CEL rules are still evaluated.
fn shortfall(kind: &ValidationErrorKind, error: &ValidationError<'_>) -> String {
    match kind {
        ValidationErrorKind::MinLength { limit } => format!("should be at least {limit} chars long"),
        ValidationErrorKind::MinItems { limit } => format!("should have at least {limit} items"),
        ValidationErrorKind::Minimum { limit } => {
            format!("should be greater than or equal to {}", plain(limit))
        }
        ValidationErrorKind::Maximum { limit } => format!("should be less than or equal to {}", plain(limit)),
        ValidationErrorKind::Pattern { pattern } => format!("should match '{pattern}'"),
        _ => error.to_string(),
    }
}

/// Formats a limit without the fraction that the type of the CRD adds.
fn plain(limit: &Value) -> String {
    limit
        .as_f64()
        .map_or_else(|| limit.to_string(), |limit| limit.to_string())
}

fn expected(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(single) => single.to_string(),
        TypeKind::Multiple(set) => set
            .iter()
            .map(|one| one.to_string())
            .collect::<Vec<_>>()
            .join(","),
    }
}

fn list(options: &Value) -> String {
    let options = options.as_array().into_iter().flatten();
    options.map(Value::to_string).collect::<Vec<_>>().join(", ")
}

/// Formats a JSON pointer as a path of Kubernetes.
fn path(location: &Location) -> String {
    location
        .segments()
        .fold(String::new(), |path, segment| match segment {
            LocationSegment::Property(name) => structure::child(&path, &name),
            LocationSegment::Index(index) => structure::index(&path, index),
        })
}
