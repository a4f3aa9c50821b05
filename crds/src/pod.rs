//! Settings of the mirror's Pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, PodSecurityContext, ResourceRequirements, SecurityContext, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{names::kubernetes_names, rules, schema};

/// Settings of the mirror's Pods. They go into the Pod template unchanged.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// The server's image. Absent: the image that was released with the operator. The operator's policy allows the
    /// repository of that image, and those that an administrator adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^[^[:space:]]+$')").message("must be an image reference, without spaces"))]
    pub image: Option<String>,

    /// The pull policy of the server's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// Secrets in the mirror's namespace for pulling the server's own image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<PullSecretReference>,

    /// The resource requests and limits of the server's container. Absent: the operator's defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// The security context of the Pods. Absent: a fixed user, group and fsGroup, or those that OpenShift assigns. Any
    /// value, also `{}`, replaces them. What it leaves out of `runAsNonRoot`, `seccompProfile` and
    /// `fsGroupChangePolicy` is `true`, `RuntimeDefault` and `OnRootMismatch`. Rights on the node are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::no_host_process())]
    pub security_context: Option<PodSecurityContext>,

    /// The security context of the server's container. What it leaves out of `allowPrivilegeEscalation`,
    /// `readOnlyRootFilesystem` and `capabilities` is `false`, `true` and to drop all. Rights on the node and further
    /// capabilities are refused: a mirror needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::no_privileges(), validation = rules::no_host_process())]
    pub container_security_context: Option<SecurityContext>,

    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    #[x_kube(validation = rules::labels())]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the Pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,

    /// The affinity of the Pods to nodes and other Pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// The topology spread constraints of the Pods. Absent: several replicas are spread over nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["topologyKey".into(), "whenUnsatisfiable".into()]))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,

    /// The Pods' priority class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub priority_class_name: Option<String>,

    /// Annotations of the Pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = rules::annotations(), validation = rules::annotations_size(), validation = rules::not_ours())]
    pub annotations: BTreeMap<String, String>,

    /// Further labels of the Pods. The labels that select them (`app.kubernetes.io/name`, `/instance`, `/component`,
    /// `/managed-by`) can't be set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    #[x_kube(validation = rules::labels(), validation = rules::not_ours(), validation = rules::not_the_selector())]
    pub labels: BTreeMap<String, String>,
}

/// A Secret for pulling the server's own image.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PullSecretReference {
    /// Name of a Secret in the mirror's namespace, of type `kubernetes.io/dockerconfigjson`.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub name: String,
}

/// The ServiceAccount of the mirror's Pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    /// Annotations of the ServiceAccount, by which a cloud gives the Pods an identity, such as
    /// `eks.amazonaws.com/role-arn`. A change replaces the Pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = rules::annotations(), validation = rules::annotations_size(), validation = rules::not_ours())]
    pub annotations: BTreeMap<String, String>,
}

/// The pull policy of the server's image: `Always`, `IfNotPresent` or `Never`. Absent: Kubernetes' default for the
/// image's tag.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// Every time that a container starts.
    Always,
    /// A node pulls the image if it does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

kubernetes_names! {
    ImagePullPolicy { Always, IfNotPresent, Never }
}
