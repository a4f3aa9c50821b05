//! The status that the operator reports.

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{Condition, Time},
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// The state of the mirror. States only: bytes and counts are metrics.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RegistryMirrorStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The operator that manages the mirror, by its Lease as `NAMESPACE/NAME`. Another one changes nothing of the mirror.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub managed_by: Option<String>,

    /// The number of Pods.
    #[serde(default)]
    pub replicas: i32,

    /// The number of ready Pods.
    #[serde(default)]
    pub ready_replicas: i32,

    /// The label selector of the Pods, for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,

    /// The address that clients pull from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,

    /// Each upstream's state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["host".into()]))]
    pub upstreams: Vec<UpstreamStatus>,

    /// The storage that is bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStatus>,

    /// The nodes, with nodeConfiguration.mode Manage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesStatus>,

    /// The version of the servers that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub server_version: Option<String>,

    /// Ready, Accepted, Available, Progressing, CredentialsValid, UpstreamReachable, StorageReady, TLSReady, NodesConfigured,
    /// Paused, OperatorConflict; one that does not apply is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The maximum length of the version of a server.
const MAX_SERVER_VERSION: usize = 64;

impl RegistryMirrorStatus {
    /// Returns the version of the servers, if it is one: the text comes from a Pod.
    pub fn known_server_version(&self) -> Option<&str> {
        self.server_version
            .as_deref()
            .filter(|text| is_server_version(text))
    }
}

/// Returns whether a text has only the characters of a semantic version, and at most 64 of them.
pub fn is_server_version(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-');
    text.len() <= MAX_SERVER_VERSION
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(is_allowed)
}

/// The address that clients pull from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The mirror's address for nodes, by IP, as nodes do not resolve the cluster's names.
    #[schemars(length(max = 1024))]
    pub url: String,

    /// Every address of the Service in the cluster, that of the url first. A Service that was deleted is made again with
    /// these.
    #[serde(rename = "clusterIPs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 45)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub cluster_ips: Vec<String>,

    /// The Service's port on every node, with type NodePort or LoadBalancer. A Service that was deleted is made again with
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port: Option<i32>,

    /// The ConfigMap with the CA certificates (`ca.crt`) of the mirror's certificate, if clients need them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub ca_config_map: Option<String>,

    /// The ConfigMap with files for the nodes' container runtimes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub hosts_config_map: Option<String>,
}

/// One upstream's state.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamStatus {
    /// The upstream's host, as in the spec.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,

    /// `Reachable`, `Unreachable`, `RateLimited` or `Unknown`.
    #[serde(default)]
    pub state: UpstreamState,

    /// The credentials that it is asked with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsStatus>,
}

/// The state of an upstream.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// It answered.
    Reachable,
    /// It did not.
    Unreachable,
    /// It answered that it was asked too often.
    RateLimited,
    /// It was not asked yet.
    #[default]
    Unknown,
}

/// The credentials of an upstream. Never a value of them.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsStatus {
    /// The Secret that they came from.
    #[schemars(length(max = 253))]
    pub secret: String,

    /// A counter that moves whenever their bytes change.
    pub version: i64,

    /// The number of replicas that use this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded_replicas: Option<i32>,

    /// The time at which the last replica loaded the current version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_rotation_time: Option<Time>,
}

/// The numbers of nodes, as their agents report.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodesStatus {
    /// The nodes with an agent.
    #[serde(default)]
    pub total: i32,

    /// The nodes whose container runtime has the files.
    #[serde(default)]
    pub configured: i32,

    /// The nodes that pull from the registries, because the mirror does not answer there.
    #[serde(default)]
    pub bypassed: i32,

    /// The nodes that can't be configured, or whose agent does not answer. The condition NodesConfigured names some.
    #[serde(default)]
    pub failing: i32,

    /// The nodes that pulled through the mirror in the last 24 hours.
    #[serde(default)]
    pub pulling: i32,
}

/// The storage of a mirror.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageStatus {
    /// The smallest capacity among the bound claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub capacity: Option<Quantity>,

    /// With storage type ObjectStore: the bucket that the servers use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketStatus>,
}

/// The bucket that the servers use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BucketStatus {
    /// Provider, bucket and prefix, and the endpoint if the spec has one: `s3://BUCKET/PREFIX at ENDPOINT`. No other mirror
    /// can use the same one.
    #[schemars(length(max = 2560))]
    pub location: String,

    /// With maxSize: the pieces of content that the servers uploaded and that are in the bucket, rounded to two digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub objects: Option<i64>,

    /// The size of this content in bytes, rounded to two digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub bytes: Option<i64>,

    /// The objects that wait for their upload, rounded to two digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub pending_uploads: Option<i64>,
}
