//! What is noted on a workload of how its Pods were rendered: whether a change of them comes from the spec or from the
//! operator could not be told otherwise.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How the Pods of a workload were rendered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rendered {
    /// The Pod template's hash.
    pub template: String,
    /// The spec's generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The image that the operator had for mirrors whose spec names none.
    pub server_image: String,
    /// Since when it takes up what a new version of the operator brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<Timestamp>,
}
