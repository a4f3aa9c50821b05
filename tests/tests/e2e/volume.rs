//! A volume that is small, fills, and grows, with what grows volumes where a driver would.

use std::path::PathBuf;

use serde_json::json;
use testbed::wait;

use crate::cluster::{Cluster, SOON};
use crate::mirror::MIRRORS;

/// The mirror's claim, and the only volume that fits it.
pub(crate) const CLAIM: &str = "cache-hub-0";
const VOLUME: &str = "small";
/// Its class, which lets claims grow.
pub(crate) const CLASS: &str = "small";

impl Cluster {
    fn volume(&self) -> PathBuf {
        self.node.directory().join("volume")
    }

    /// Makes the class and its volume, in memory.
    pub(crate) async fn provide_volume(&self, mebibytes: u32) {
        let path = self.volume().display().to_string();
        let mount = format!("mkdir -p {path} && mount -t tmpfs -o size={mebibytes}m,mode=0777 tmpfs {path}");
        self.run(&["sh", "-c", &mount]).await;
        self.apply(&[
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
                "provisioner": "test.invalid/none", "allowVolumeExpansion": true}),
            json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": VOLUME}, "spec": {
                "capacity": {"storage": format!("{mebibytes}Mi")}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": CLASS, "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": path}}}),
        ])
        .await;
    }

    /// Fills it with something that is not the mirror's, up to the last byte.
    pub(crate) async fn fill_volume(&self) {
        let file = self.volume().join("ballast").display().to_string();
        let script = format!("cat /dev/zero >{file} 2>/dev/null || true");
        self.run(&["sh", "-c", &script]).await;
    }

    /// Waits until the claim asks for so much, and gives it, as a driver's resizer would.
    pub(crate) async fn resize_volume(&self, mebibytes: u32) {
        let size = format!("{mebibytes}Mi");
        let path = "jsonpath={.spec.resources.requests.storage}";
        let asked = async || {
            let now = self.kubectl(&["get", "pvc", CLAIM, MIRRORS, "-o", path]).await;
            (now == size).then_some(())
        };
        if let Err(error) = wait::until("claim that asks for more", SOON, asked).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
        let options = format!("remount,size={mebibytes}m");
        self.run(&["mount", "-o", &options, &self.volume().display().to_string()])
            .await;
        let volume = json!({"spec": {"capacity": {"storage": size}}}).to_string();
        self.kubectl(&["patch", "pv", VOLUME, "--type=merge", "-p", &volume])
            .await;
        let claim = json!({"status": {"capacity": {"storage": size}}}).to_string();
        self.kubectl(&[
            "patch",
            "pvc",
            CLAIM,
            MIRRORS,
            "--subresource=status",
            "--type=merge",
            "-p",
            &claim,
        ])
        .await;
    }
}
