//! Schemas of values that are strings on the wire and more than that in meaning.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Returns the schema of a quantity. It is always a string: `quantity()` of the API server fails on integers, which it
/// accepts elsewhere.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 32})
}

/// Returns the schema of a duration in Go's syntax.
pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 32})
}

/// Labels: Kubernetes' own bounds, which the cost of the rules about them counts on.
pub(crate) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}
