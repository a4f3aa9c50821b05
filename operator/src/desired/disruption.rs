//! Several servers are not evicted at once.

use crds::RegistryMirror;
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt;

use super::{child::Child, names};
use crate::kind::Kind;

/// The budget, with more than one replica: with one it would mean nothing, or that its node can't be drained.
pub(super) fn object(mirror: &RegistryMirror) -> Option<Child> {
    if mirror.spec.replicas < 2 {
        return None;
    }
    let name = mirror.name_any();
    let budget = PodDisruptionBudget {
        metadata: names::owned(mirror, name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
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
