//! A pull-through OCI registry.
