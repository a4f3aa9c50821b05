//! The cooperation of a mirror's servers.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The cooperation of the servers: one of them asks the upstream for each blob, manifest and tag, for all of them.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Peers {
    /// `Auto` (the servers find each other by the headless Service, with a Secret named like the mirror with -peers behind
    /// it) or `Disabled` (each server asks the upstreams for itself).
    #[serde(default)]
    pub mode: PeersMode,
}

/// The way in which the servers of a mirror cooperate.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeersMode {
    /// They ask each other.
    #[default]
    Auto,
    /// Each one acts alone.
    Disabled,
}
