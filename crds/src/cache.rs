//! The retention and the limits of cached content.

use std::time;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rules, schema};

/// The retention and the limits of cached content.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// The time for which unused content is kept, such as `30m` or `168h`. `0s`: it never expires. A change also
    /// applies to content that is already cached.
    #[serde(default = "one_week")]
    #[x_kube(validation = rules::duration())]
    #[schemars(schema_with = "schema::duration", extend("default" = "168h"))]
    pub ttl: Duration,

    /// From when ttl counts: `LastUse` (content in use never expires) or `FirstFetch`.
    #[serde(default)]
    pub ttl_from: TtlFrom,

    /// The time for which a tag is served without a revalidation at the upstream. `0s`: every request revalidates it.
    #[serde(default = "five_minutes", rename = "tagTTL")]
    #[x_kube(validation = rules::duration())]
    #[schemars(schema_with = "schema::duration", extend("default" = "5m"))]
    pub tag_ttl: Duration,

    /// The time after the last successful revalidation for which a tag may be served while the upstream fails, never
    /// beyond ttl. `0s`: not at all.
    #[serde(default = "one_week")]
    #[x_kube(validation = rules::duration())]
    #[schemars(schema_with = "schema::duration", extend("default" = "168h"))]
    pub stale_if_error: Duration,

    /// Serves cached content although the upstream refuses it (401 or 403), for as long as while the upstream fails.
    /// Default: a refusal ends the serving.
    #[serde(default)]
    pub stale_if_denied: bool,

    /// The maximum size of the cache, such as `40Gi`; beyond it the least recently used content is evicted. Default: 90
    /// % of the size of the storage, of its sizeLimit, or of the file system of the existing PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::quantity())]
    #[schemars(schema_with = "schema::quantity")]
    pub max_size: Option<Quantity>,

    /// Content that is neither expired nor evicted: `host/name:tag` or `host/name@digest`, where `*` stays within a
    /// path component and `**` crosses them, as in `docker.io/library/*:*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 512)))]
    #[x_kube(validation = rules::image_globs())]
    pub pinned: Vec<String>,

    /// Serve what is cached and ask no upstream. Content does not expire by ttl, as it could not be fetched again.
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
