//! Renders the workload that runs the servers.

use crds::{
    RegistryMirror,
    storage::{RetentionPolicy, Volume},
};
use k8s_openapi::{
    api::apps::v1::{
        Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment, StatefulSet,
        StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt;

use super::{child::Child, pod, storage};
use crate::names;
use crate::{desired::Release, kind::Kind, observed::Observed, validate::Accepted};

/// A port of the server.
#[derive(Clone, Copy)]
pub(super) struct Port {
    pub(super) name: &'static str,
    pub(super) number: u16,
}

/// The port for pulls.
pub(super) const REGISTRY_PORT: Port = Port {
    name: "registry",
    number: 5000,
};
/// The port of the admin endpoints.
pub(super) const ADMIN_PORT: Port = Port {
    name: "admin",
    number: 5001,
};

/// The port of actions. It is no port of the container: only a port-forward reaches the loopback address of a Pod.
pub(super) const ACTIONS_PORT: u16 = 5003;

/// The port for the other servers of the mirror.
pub(super) const PEER_PORT: Port = Port {
    name: "peers",
    number: 5002,
};

/// The progress deadline of the workload, below Kubernetes' default of 600 s.
const PROGRESS_DEADLINE_SECONDS: i32 = 300;
/// The number of revisions that are kept; each is an object in the API server.
const REVISIONS_KEPT: i32 = 3;

/// Returns the workload. The storage type determines its kind, which never changes.
pub(super) fn object(accepted: &Accepted<'_>, observed: &Observed, release: &Release, reload: &str) -> Child {
    let name = accepted.mirror.name_any();
    if accepted.mirror.spec.storage.is_ephemeral() {
        return Child::new(Kind::Deployment, name, &deployment(accepted, release, reload));
    }
    let set = stateful_set(accepted, observed, release, reload);
    Child::new(Kind::StatefulSet, name, &set)
}

fn stateful_set(
    accepted: &Accepted<'_>,
    observed: &Observed,
    release: &Release,
    reload: &str,
) -> StatefulSet {
    let mirror = accepted.mirror;
    StatefulSet {
        metadata: metadata(mirror, reload),
        spec: Some(StatefulSetSpec {
            replicas: Some(mirror.spec.replicas),
            service_name: Some(names::headless(&mirror.name_any())),
            selector: selector(mirror),
            // Each replica has a cache of its own: none has to wait for another.
            pod_management_policy: Some("Parallel".to_owned()),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(when_deleted(&accepted.volume).to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            revision_history_limit: Some(REVISIONS_KEPT),
            template: pod::template(accepted, release),
            volume_claim_templates: storage::claim_templates(accepted, observed),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

/// Returns the policy for PVCs that kube-controller-manager creates from the claim template. A template of an earlier
/// release has no owner.
fn when_deleted(volume: &Volume<'_>) -> &'static str {
    match volume {
        Volume::Claims { claim, .. } if claim.retention_policy == RetentionPolicy::Delete => "Delete",
        Volume::Claims { .. } | Volume::ExistingClaim { .. } | Volume::Ephemeral(_) => "Retain",
    }
}

fn deployment(accepted: &Accepted<'_>, release: &Release, reload: &str) -> Deployment {
    let mirror = accepted.mirror;
    Deployment {
        metadata: metadata(mirror, reload),
        spec: Some(DeploymentSpec {
            replicas: Some(mirror.spec.replicas),
            selector: selector(mirror),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                // The new server starts first, so that pulls continue, with an empty cache.
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
            revision_history_limit: Some(REVISIONS_KEPT),
            template: pod::template(accepted, release),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

/// Returns the metadata. The reload annotation is not part of the Pod template: it records the change that Pods were
/// notified of, and replaces no Pod.
fn metadata(mirror: &RegistryMirror, reload: &str) -> ObjectMeta {
    let mut metadata = names::owned(mirror, mirror.name_any());
    metadata
        .annotations
        .get_or_insert_default()
        .insert(names::RELOAD.to_owned(), reload.to_owned());
    metadata
}

fn selector(mirror: &RegistryMirror) -> LabelSelector {
    LabelSelector {
        match_labels: Some(names::selector(&mirror.name_any())),
        ..LabelSelector::default()
    }
}
