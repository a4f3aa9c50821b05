//! Renders the storage of the caches.

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    RegistryMirror,
    storage::{ClaimStorage, RetentionPolicy, Volume},
};
use k8s_openapi::{
    api::core::v1::{
        EmptyDirVolumeSource, PersistentVolumeClaim, PersistentVolumeClaimSpec,
        PersistentVolumeClaimVolumeSource, Volume as PodVolume, VolumeResourceRequirements,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{Resource, ResourceExt};

use super::child::Child;
use crate::names;
use crate::{
    kind::Kind,
    observed::{Claim, Observed},
    quantity::amount,
    validate::Accepted,
};

/// The name of the volume and of the claim template, part of the name of each PVC.
pub(super) const VOLUME: &str = "cache";

/// Returns the PVCs of wanted and of former replicas: scaling in keeps a PVC, which still follows the retention policy.
pub(super) fn claims(accepted: &Accepted<'_>, observed: &Observed) -> Vec<Child> {
    let Volume::Claims { size, claim } = &accepted.volume else {
        return Vec::new();
    };
    let wanted = 0..u32::try_from(accepted.mirror.spec.replicas).unwrap_or(0);
    let ordinals: BTreeSet<u32> = wanted
        .chain(observed.claims.iter().map(|claim| claim.ordinal))
        .collect();
    let one = |ordinal| {
        let there = observed.claims.iter().find(|claim| claim.ordinal == ordinal);
        one(accepted, ordinal, at_least(size, there), claim)
    };
    ordinals.into_iter().map(one).collect()
}

/// Returns the size that a PVC requests. A volume can't shrink: a PVC with more than the spec asks for keeps it. A
/// growth that has not happened yet can be reduced to any size above the capacity.
fn at_least<'a>(size: &'a Quantity, there: Option<&'a Claim>) -> &'a Quantity {
    let Some(claim) = there.filter(|claim| claim.bound) else {
        return size;
    };
    let more = |requested: &&Quantity| amount(&requested.0) > amount(&size.0);
    let keeps = claim.requested.as_ref().filter(more);
    keeps.filter(|_| !claim.exceeds_capacity(size)).unwrap_or(size)
}

fn one(accepted: &Accepted<'_>, ordinal: u32, size: &Quantity, claim: &ClaimStorage) -> Child {
    let mirror = accepted.mirror;
    let name = names::claim(&mirror.name_any(), ordinal);
    let mut metadata = match claim.retention_policy {
        RetentionPolicy::Delete => names::owned(mirror, name.clone()),
        RetentionPolicy::Retain => names::kept(mirror, name.clone()),
    };
    metadata
        .labels
        .get_or_insert_default()
        .insert(names::CACHE_OF.to_owned(), mirror.name_any());
    let object = PersistentVolumeClaim {
        metadata,
        spec: Some(spec(size, claim)),
        ..PersistentVolumeClaim::default()
    };
    Child::new(Kind::PersistentVolumeClaim, name, &object)
}

/// Returns the claim template of the `StatefulSet`. It is immutable, so it stays as created; the operator creates the
/// PVCs before the Pods. kube-controller-manager can still create a PVC of a mirror that is deleted a moment after its
/// creation. The template names the mirror as owner, because kube-controller-manager sets the owner that
/// `persistentVolumeClaimRetentionPolicy` asks for only after the creation, and not in a `StatefulSet` that is gone by then.
pub(super) fn claim_templates(
    accepted: &Accepted<'_>,
    observed: &Observed,
) -> Option<Vec<PersistentVolumeClaim>> {
    let Volume::Claims { size, claim } = &accepted.volume else {
        return None;
    };
    if let Some(templates) = &observed.claim_templates {
        return Some(templates.clone());
    }
    let name = accepted.mirror.name_any();
    let mut labels = names::labels(&name);
    labels.insert(names::CACHE_OF.to_owned(), name);
    Some(vec![PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME.to_owned()),
            labels: Some(labels),
            owner_references: claim_owner(accepted.mirror, claim),
            ..ObjectMeta::default()
        },
        spec: Some(spec(size, claim)),
        ..PersistentVolumeClaim::default()
    }])
}

fn claim_owner(mirror: &RegistryMirror, claim: &ClaimStorage) -> Option<Vec<OwnerReference>> {
    match claim.retention_policy {
        RetentionPolicy::Delete => mirror.controller_owner_ref(&()).map(|owner| vec![owner]),
        RetentionPolicy::Retain => None,
    }
}

/// Returns the Pod's volume, unless the claim template provides it.
pub(super) fn pod_volume(volume: &Volume<'_>) -> Option<PodVolume> {
    let mut pod_volume = PodVolume {
        name: VOLUME.to_owned(),
        ..PodVolume::default()
    };
    match volume {
        Volume::Claims { .. } => return None,
        Volume::ExistingClaim { name } => {
            pod_volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name: (*name).to_owned(),
                ..PersistentVolumeClaimVolumeSource::default()
            });
        }
        Volume::Ephemeral(ephemeral) => {
            pod_volume.empty_dir = Some(EmptyDirVolumeSource {
                size_limit: Some(ephemeral.size_limit.clone()),
                ..EmptyDirVolumeSource::default()
            });
        }
    }
    Some(pod_volume)
}

fn spec(size: &Quantity, claim: &ClaimStorage) -> PersistentVolumeClaimSpec {
    PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
        resources: Some(VolumeResourceRequirements {
            requests: Some(BTreeMap::from([("storage".to_owned(), size.clone())])),
            ..VolumeResourceRequirements::default()
        }),
        storage_class_name: claim.storage_class_name.clone(),
        ..PersistentVolumeClaimSpec::default()
    }
}
