//! Requests that a cluster refuses to the operator, and the operator's reports of them.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
use serde_json::json;

use crate::bench::{Bench, condition, ephemeral, soon};
use crate::pods::kubelet;

/// Sets a quota that lets none of a resource be made, and waits until it counts.
async fn allow_none(bench: &Bench, resource: &str) {
    let hard = format!("count/{resource}");
    let quota = json!({"metadata": {"name": "no-more"}, "spec": {"hard": {hard: "0"}}});
    bench.apply::<ResourceQuota>(quota).await;
    let counted = |quota: &ResourceQuota| quota.status.as_ref()?.hard.clone();
    bench.until("no-more", "count", counted).await;
}

/// Servers to which no Service routes do not make a mirror ready.
#[tokio::test]
async fn servers_without_service_make_no_mirror_ready() {
    let bench = Bench::start("no-service").await;
    let _kubelet = kubelet(&bench).await;
    allow_none(&bench, "services").await;
    bench.mirror("hub", ephemeral()).await;
    bench
        .until_hub(ConditionType::Available, "True", Reason::ReplicasReady)
        .await;
    let observed = bench
        .until_hub(ConditionType::Ready, "False", Reason::ApplyRejected)
        .await;
    assert!(
        observed
            .message
            .contains("Service hub rejected by the API server: "),
        "{}",
        observed.message
    );
    bench.delete::<ResourceQuota>("no-more").await;
    bench.until_ready().await;
}

/// A quota that refuses a child is reported in the conditions, and the child is created later.
#[tokio::test]
async fn quota_refusal_is_reported_then_repaired() {
    let bench = Bench::start("quota").await;
    allow_none(&bench, "secrets").await;
    bench.mirror("hub", ephemeral()).await;
    let observed = |kind| {
        move |mirror: &RegistryMirror| {
            let message = condition(mirror, kind)?.message.clone();
            message
                .contains("Secret hub-credentials rejected by the API server: ")
                .then_some(message)
        }
    };
    for kind in [ConditionType::Progressing, ConditionType::Ready] {
        let message = bench.until("hub", "the quota", observed(kind)).await;
        assert!(message.contains("quota"), "{message}");
    }
    bench.until_accepted("hub").await;
    let rejected = |number| {
        let metrics = bench.metrics();
        let series = |line: &&str| line.starts_with("registry_mirror_operator_apply_rejected{");
        let rejected = metrics.lines().filter(series).filter(|line| line.ends_with(" 1"));
        (rejected.count() == number).then_some(())
    };
    soon("a mirror with a rejected object", async || rejected(1)).await;
    bench.mirror("other", ephemeral()).await;
    soon("another one", async || rejected(2)).await;
    bench.delete::<RegistryMirror>("other").await;
    soon("what is deleted no longer counted", async || rejected(1)).await;
    bench.delete::<ResourceQuota>("no-more").await;
    bench
        .until("hub-credentials", "the Secret", |secret: &Secret| {
            secret.data.clone()
        })
        .await;
    bench
        .until("hub", "a status without the quota", |mirror: &RegistryMirror| {
            let message = &condition(mirror, ConditionType::Progressing)?.message;
            (!message.contains("rejected by the API server")).then_some(())
        })
        .await;
    soon("no mirror with a rejected object", async || rejected(0)).await;
}
