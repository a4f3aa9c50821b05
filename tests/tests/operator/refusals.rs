//! What a cluster does not let the operator do, and where that is told.

use crds::RegistryMirror;
use crds::conditions::ConditionType;
use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
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
                .contains("refuses Secret hub-credentials: ")
                .then_some(message)
        }
    };
    for kind in [ConditionType::Progressing, ConditionType::Ready] {
        let message = bench.until("hub", "the quota", told(kind)).await;
        assert!(message.contains("quota"), "{message}");
    }
    bench.until_accepted("hub").await;
    bench.delete::<ResourceQuota>("no-secrets").await;
    bench
        .until("hub-credentials", "the Secret", |secret: &Secret| {
            secret.data.clone()
        })
        .await;
    bench
        .until("hub", "a status without the quota", |mirror: &RegistryMirror| {
            let message = &condition(mirror, ConditionType::Progressing)?.message;
            (!message.contains("refuses")).then_some(())
        })
        .await;
}
