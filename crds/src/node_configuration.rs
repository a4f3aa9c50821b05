//! The configuration of nodes to pull through the mirror.

use std::time;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rules, schema};

/// The configuration of nodes to pull through the mirror: files for their container runtimes, in a `ConfigMap`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfiguration {
    /// `Publish` (a ConfigMap named like the mirror with -hosts behind it), `Manage` (the ConfigMap, and node agents that
    /// write the files) or `None`.
    #[serde(default)]
    pub mode: NodeConfigurationMode,

    /// The behavior of nodes while the mirror does not respond: `Allow` (they pull from the registry itself) or
    /// `Never`.
    #[serde(default)]
    pub fallback: Fallback,

    /// The time for which containerd waits for a connection to the mirror.
    #[serde(default = "two_seconds")]
    #[x_kube(validation = rules::duration())]
    #[schemars(schema_with = "schema::duration", extend("default" = "2s"))]
    pub dial_timeout: Duration,
}

impl Default for NodeConfiguration {
    fn default() -> Self {
        Self {
            mode: NodeConfigurationMode::default(),
            fallback: Fallback::default(),
            dial_timeout: two_seconds(),
        }
    }
}

fn two_seconds() -> Duration {
    time::Duration::from_secs(2).into()
}

/// The publication of files for nodes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeConfigurationMode {
    /// In a `ConfigMap`.
    #[default]
    Publish,
    /// In a `ConfigMap`, and on each node by its agent.
    Manage,
    /// Not at all.
    None,
}

impl NodeConfigurationMode {
    /// Returns whether a `ConfigMap` holds the files.
    pub fn is_published(self) -> bool {
        self != Self::None
    }
}

/// The behavior of nodes while the mirror does not respond.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// They ask the registry itself.
    #[default]
    Allow,
    /// The pull fails.
    Never,
}
