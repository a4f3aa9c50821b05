//! The Node object and the lease that keeps it alive.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::config::Kubeconfig;
use serde_json::json;

use super::{Kubelet, USER};
use crate::control_plane::{Error, access};

/// As a real kubelet: the node counts as lost after four of these.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Makes the Node, Ready from the start.
pub(super) async fn register(kubelet: &Kubelet) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(kubelet.client.clone());
    let manager = PatchParams::apply("fake-kubelet").force();
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": kubelet.node, "labels": kubelet.labels()},
    });
    nodes.patch(&kubelet.node, &manager, &Patch::Apply(&node)).await?;
    nodes
        .patch_status(&kubelet.node, &manager, &Patch::Apply(&status(kubelet)))
        .await?;
    renew(kubelet).await
}

fn status(kubelet: &Kubelet) -> serde_json::Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let room = json!({"cpu": "64", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "1000Gi"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": kubelet.node},
        "status": {
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "runs Pods as processes",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": kubelet.node},
            ],
            "capacity": room,
            "allocatable": room,
        },
    })
}

/// Renews the lease for ever.
pub(super) async fn heartbeat(kubelet: std::sync::Arc<Kubelet>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        // Missed beats are what leases are for.
        let _ = renew(&kubelet).await;
    }
}

async fn renew(kubelet: &Kubelet) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(kubelet.client.clone(), "kube-node-lease");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": kubelet.node},
        "spec": {
            "holderIdentity": kubelet.node,
            "leaseDurationSeconds": HEARTBEAT.as_secs() * 4,
            "renewTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        },
    });
    let manager = PatchParams::apply("fake-kubelet").force();
    leases
        .patch(&kubelet.node, &manager, &Patch::Apply(&lease))
        .await
        .map(drop)
}

/// Takes the Node away.
pub(super) async fn deregister(kubeconfig: &Kubeconfig, name: &str) -> Result<(), Error> {
    let client = access::client(kubeconfig, Some((USER, &["system:masters"]))).await?;
    Api::<Node>::all(client)
        .delete(name, &DeleteParams::default())
        .await?;
    Ok(())
}
