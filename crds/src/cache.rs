//! What is kept and for how long.

use std::time;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rules, schema};

/// What is kept, for how long, and how much of it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// How long unused content stays, such as `30m` or `168h`. `0s`: never expires. A change applies to what is
    /// already cached, too.
    #[serde(default = "one_week")]
    #[x_kube(validation = rules::duration())]
    #[schemars(schema_with = "schema::duration", extend("default" = "168h"))]
    pub ttl: Duration,

    /// From when ttl counts: `LastUse` (content in use never expires) or `FirstFetch`.
    #[serde(default)]
    pub ttl_from: TtlFrom,

    /// How long a tag is served without asking upstream whether it moved. `0s`: asks every time.
    #[serde(default = "five_minutes", rename = "tagTTL")]
    #[x_kube(validation = rules::duration())]
    #[schemars(schema_with = "schema::duration", extend("default" = "5m"))]
    pub tag_ttl: Duration,

    /// How long after it was last known to be current a tag may still be served while upstream fails, never beyond
    /// ttl. `0s`: not at all.
    #[serde(default = "one_week")]
    #[x_kube(validation = rules::duration())]
    #[schemars(schema_with = "schema::duration", extend("default" = "168h"))]
    pub stale_if_error: Duration,

    /// Go on serving what is cached although upstream refuses it (401 or 403), for as long as while upstream fails. By
    /// default a refusal ends that.
    #[serde(default)]
    pub stale_if_denied: bool,

    /// How much is kept, such as `40Gi`; beyond it what was used least recently goes first. Default: 90 % of the
    /// storage's size, of its sizeLimit, or of the existing claim's file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::quantity())]
    #[schemars(schema_with = "schema::quantity")]
    pub max_size: Option<Quantity>,

    /// What neither expires nor gives way to newer content: `host/name:tag` or `host/name@digest`, where `*` stays
    /// within a path component and `**` crosses them, as in `docker.io/library/*:*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 512)))]
    #[x_kube(validation = rules::image_globs())]
    pub pinned: Vec<String>,

    /// Serve what is cached and ask no upstream.
    #[serde(default)]
    pub offline: bool,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            ttl: one_week(),
            ttl_from: TtlFrom::default(),
            tag_ttl: five_minutes(),
            stale_if_error: one_week(),
            stale_if_denied: false,
            max_size: None,
            pinned: Vec::new(),
            offline: false,
        }
    }
}

fn one_week() -> Duration {
    time::Duration::from_hours(168).into()
}

fn five_minutes() -> Duration {
    time::Duration::from_mins(5).into()
}

/// From when the time to live counts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TtlFrom {
    /// From the last time that it was pulled.
    #[default]
    LastUse,
    /// From the time that it was fetched from upstream.
    FirstFetch,
}
