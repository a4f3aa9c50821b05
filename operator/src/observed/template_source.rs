//! The source of a workload's Pod template, stored in an annotation: it distinguishes a change of the spec from a change of the
//! operator.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The source of a Pod template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTemplateSource {
    /// The hash of the Pod template.
    pub template: String,
    /// The generation of the spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The default server image of the operator.
    pub server_image: String,
    /// The time of its admission to the rollout of a new version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<Timestamp>,
}
