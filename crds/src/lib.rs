//! The `RegistryMirror` API.
