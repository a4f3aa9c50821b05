//! The resource's root and its spec.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{Cache, Observability, Pod, RegistryMirrorStatus, Service, Storage, Upstream};

/// What an admin asks for.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "registrymirror.io",
    version = "v1alpha1",
    kind = "RegistryMirror",
    plural = "registrymirrors",
    shortname = "rmir",
    namespaced,
    status = "RegistryMirrorStatus",
    derive = "PartialEq",
    doc = "A pull-through mirror of container registries: pulls are answered from its cache, and what is missing is fetched from upstream once.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Upstream", type_ = "string", json_path = ".spec.upstreams[0].host"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint.url"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(
        name = "Storage",
        type_ = "string",
        json_path = ".spec.storage.type",
        priority = 1
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.serverVersion",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RegistryMirrorSpec {
    /// Leave everything that belongs to this mirror as it is: spec changes are not acted on until this is false
    /// again. The mirror itself goes on serving.
    #[serde(default)]
    pub paused: bool,

    /// The registries that this mirror may reach, and no other. The first one answers requests that name none.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["host".into()]))]
    pub upstreams: Vec<Upstream>,

    /// What is kept, for how long, and how much of it.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub cache: Cache,

    /// Where cached content lives.
    pub storage: Storage,

    /// How many servers run; 0 stops them and keeps claims and their content. Each replica has a cache of its own.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    pub replicas: i32,

    /// The Service that nodes and other clients pull through. It is never deleted and made again, as nodes hold
    /// its address.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub service: Service,

    /// How the mirror's Pods run.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub pod: Pod,

    /// Logs.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub observability: Observability,
}

fn one() -> i32 {
    1
}
