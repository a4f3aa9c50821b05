//! What a cluster does not let the operator do, and where that is told.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::json;

use crate::bench::{Bench, condition, ephemeral};

#[tokio::test]
async fn a_quota_that_keeps_a_child_from_being_made_is_told_in_the_conditions_and_then_made_up_for() {
    let bench = Bench::start("quota").await;
    let quota = json!({"metadata": {"name": "no-secrets"}, "spec": {"hard": {"count/secrets": "0"}}});
    bench.apply::<ResourceQuota>(quota).await;
    let counted = |quota: &ResourceQuota| quota.status.as_ref()?.hard.clone();
    bench.until("no-secrets", "count", counted).await;
    bench.mirror("hub", ephemeral()).await;
    let told = |kind| {
        move |mirror: &RegistryMirror| {
            let message = condition(mirror, kind)?.message.clone();
            message
                .contains("applying Secret hub-credentials: ")
                .then_some(message)
        }
    };
    for kind in [ConditionType::Ready, ConditionType::Progressing] {
        let message = bench.until("hub", "the quota", told(kind)).await;
        assert!(message.contains("quota"), "{message}");
    }
    bench.delete::<ResourceQuota>("no-secrets").await;
    bench
        .until_condition("hub", ConditionType::Accepted, "True", Reason::SpecAccepted)
        .await;
}
