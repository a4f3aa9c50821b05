//! Drains of nodes.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{EvictParams, Patch, PatchParams};
use serde_json::json;

use crate::bench::{Bench, ephemeral, soon};
use crate::pods::pods;

/// Marks a Pod as one that runs and is not ready: the budget of Pods that are pending never counts.
async fn run_unready(bench: &Bench, pod: &str) {
    let status =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}});
    bench
        .api::<Pod>()
        .patch_status(pod, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

/// A node whose replicas are all broken can be drained.
#[tokio::test]
async fn unready_pods_are_evicted() {
    let bench = Bench::start("evictions").await;
    let mut spec = ephemeral();
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    let pods = soon("two Pods", async || {
        let pods = pods(&bench).await;
        (pods.len() == 2).then_some(pods)
    })
    .await;
    for pod in &pods {
        run_unready(&bench, &pod.name_any()).await;
    }
    // Without the policy, the API server refuses evictions as long as the budget counts no healthy Pod.
    bench
        .until("hub", "a budget that counts", |budget: &PodDisruptionBudget| {
            let status = budget.status.as_ref()?;
            (status.expected_pods == 2 && status.current_healthy == 0 && status.disruptions_allowed == 0)
                .then_some(())
        })
        .await;
    for pod in &pods {
        let evicted = bench
            .api::<Pod>()
            .evict(&pod.name_any(), &EvictParams::default())
            .await;
        assert!(evicted.is_ok(), "{}: {evicted:?}", pod.name_any());
    }
}
