//! Schemas of values that are strings on the wire and more than that in meaning.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A quantity. Always a string: the API server's `quantity()` fails on the integers that it also accepts elsewhere.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 32})
}

/// A duration in Go's syntax.
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
