//! Several servers are not evicted at once.

use crds::RegistryMirror;
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt;

use super::child::Child;
use crate::kind::Kind;
use crate::names;

/// A server that is not ready serves nothing: its eviction costs nothing, and without this policy a node on which no
/// replica is ready could not be drained.
const UNHEALTHY_PODS: &str = "AlwaysAllow";

/// Returns the `PodDisruptionBudget` for more than one replica. With one replica a budget would allow every eviction, or
/// none, which blocks the drain of its node.
pub(super) fn object(mirror: &RegistryMirror) -> Option<Child> {
    if mirror.spec.replicas < 2 {
        return None;
    }
    let name = mirror.name_any();
    let budget = PodDisruptionBudget {
        metadata: names::owned(mirror, name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            unhealthy_pod_eviction_policy: Some(UNHEALTHY_PODS.to_owned()),
            selector: Some(LabelSelector {
                match_labels: Some(names::selector(&name)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    };
    Some(Child::new(Kind::PodDisruptionBudget, name, &budget))
}
