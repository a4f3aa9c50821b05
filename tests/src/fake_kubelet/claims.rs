//! Claims get a directory each: a provisioner with a default StorageClass, as small clusters have it.

use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::Kubelet;

/// The default class, and the name that it gives its provisioner.
const CLASS: &str = "standard";
const PROVISIONER: &str = "registrymirror.io/test-directory";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const NODE_LABEL: &str = "registrymirror.io/test-node";

/// Makes the class known. Every kubelet makes the same one.
pub(super) async fn publish_class(kubelet: &Kubelet) -> Result<(), kube::Error> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "volumeBindingMode": "Immediate",
        // A directory has no size limit; the kubelet also writes the new size into the status of the PVC.
        "allowVolumeExpansion": true,
    });
    let classes: Api<StorageClass> = Api::all(kubelet.client.clone());
    let manager = PatchParams::apply("fake-kubelet").force();
    classes
        .patch(CLASS, &manager, &Patch::Apply(&class))
        .await
        .map(drop)
}

/// Provisions claims for ever; kube-controller-manager binds them.
pub(super) async fn provision(kubelet: Arc<Kubelet>) {
    let claims = kubelet.api::<PersistentVolumeClaim>();
    let mut claims = watcher(claims, watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(claim) = claims.next().await {
        if let Ok(claim) = claim
            && waits_for_us(&kubelet, &claim).await
        {
            // A claim that gets no volume shows that in its status.
            let _ = make_volume(&kubelet, &claim).await;
        }
    }
}

async fn waits_for_us(kubelet: &Kubelet, claim: &PersistentVolumeClaim) -> bool {
    let Some(spec) = &claim.spec else { return false };
    let Some(class) = spec
        .storage_class_name
        .as_deref()
        .filter(|_| spec.volume_name.is_none())
    else {
        return false;
    };
    let classes: Api<StorageClass> = Api::all(kubelet.client.clone());
    classes
        .get(class)
        .await
        .is_ok_and(|class| class.provisioner == PROVISIONER)
}

async fn make_volume(kubelet: &Kubelet, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
    let uid = claim.uid().unwrap_or_default();
    let name = format!("pvc-{uid}");
    let spec = claim.spec.clone().unwrap_or_default();
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "labels": {NODE_LABEL: kubelet.node},
            "annotations": {PROVISIONED_BY: PROVISIONER},
        },
        "spec": {
            "capacity": spec.resources.and_then(|resources| resources.requests),
            "accessModes": spec.access_modes,
            "storageClassName": spec.storage_class_name,
            "persistentVolumeReclaimPolicy": "Delete",
            "hostPath": {"path": directory(kubelet, &name)},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name_any(), "uid": uid,
            },
        },
    });
    let volumes: Api<PersistentVolume> = Api::all(kubelet.client.clone());
    let manager = PatchParams::apply("fake-kubelet").force();
    volumes
        .patch(&name, &manager, &Patch::Apply(&volume))
        .await
        .map(drop)
}

fn directory(kubelet: &Kubelet, volume: &str) -> PathBuf {
    kubelet.scratch.path().join("claims").join(volume)
}

/// Removes volumes whose claims are gone, for ever.
pub(super) async fn reclaim(kubelet: Arc<Kubelet>) {
    let volumes: Api<PersistentVolume> = Api::all(kubelet.client.clone());
    let ours = watcher::Config::default().labels(&format!("{NODE_LABEL}={}", kubelet.node));
    let mut changes = watcher(volumes.clone(), ours)
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(volume) = changes.next().await {
        let Ok(volume) = volume else { continue };
        let released = volume
            .status
            .as_ref()
            .is_some_and(|s| s.phase.as_deref() == Some("Released"));
        let spec = volume.spec.as_ref();
        let delete = spec.is_some_and(|s| s.persistent_volume_reclaim_policy.as_deref() == Some("Delete"));
        if released && delete && volume.metadata.deletion_timestamp.is_none() {
            // No Pod may have used it.
            let _ = tokio::fs::remove_dir_all(directory(&kubelet, &volume.name_any())).await;
            let _ = volumes.delete(&volume.name_any(), &DeleteParams::default()).await;
        }
    }
}
