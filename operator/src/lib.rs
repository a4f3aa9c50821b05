//! The operator of `RegistryMirror` resources.
