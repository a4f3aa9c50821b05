//! Writes of others to a mirror while the operator reconciles it.

use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::faults::Faults;
use tokio::time::Instant;

use crate::bench::{Bench, condition, ephemeral};

/// A status that a user edits is corrected once.
#[tokio::test]
async fn foreign_status_edit_is_corrected_once() {
    if skip_on_existing_cluster("foreign_status_edit_is_corrected_once") {
        return;
    }
    let mut bench = Bench::idle("status").await;
    bench.options.resync = Duration::from_millis(500);
    bench.start_operator().await;
    bench.mirror("hub", ephemeral()).await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::NoReadyReplicas)
        .await;
    let of = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": "Mine", "message": "all is well",
            "lastTransitionTime": "2020-01-01T00:00:00Z",
        })
    };
    let forged = json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "hub"},
        "status": {
            "replicas": 9, "readyReplicas": 9, "conditions": [of("Ready"), of("Mine")],
            "storage": {"capacity": "9Ti"}, "upstreams": [{"host": "mine.example", "state": "Reachable"}],
        },
    });
    let params = PatchParams::apply("other").force();
    let mirrors = bench.api::<RegistryMirror>();
    mirrors
        .patch_status("hub", &params, &Patch::Apply(&forged))
        .await
        .unwrap();
    let recovered = bench
        .until("hub", "its own status", |mirror: &RegistryMirror| {
            let ready = condition(mirror, ConditionType::Ready)?;
            let status = mirror.status.clone()?;
            let recovered = ready.reason == Reason::NoReadyReplicas.as_str() && status.replicas == 1;
            recovered.then_some(status)
        })
        .await;
    assert_eq!(recovered.ready_replicas, 0);
    assert!(
        recovered.conditions.iter().any(|c| c.type_ == "Mine"),
        "fields of other owners stay"
    );
    bench.until_looks(2).await;
    let mark = bench.mark().await;
    bench.until_looks(10).await;
    assert_eq!(bench.writes(mark), [""; 0]);
}

/// Its deletion in each manner, while an object of it is being written.
#[tokio::test]
async fn mirror_deleted_during_reconcile_leaves_nothing() {
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        let mut bench = Bench::idle("midst").await;
        let faults = Faults::default();
        let client = faults.client(bench.config().await).unwrap();
        bench.start_operator_through(client);
        let mirrors = bench.api::<RegistryMirror>();
        let (held, _) = tokio::join!(faults.hold("/deployments/hub"), bench.mirror("hub", ephemeral()));
        mirrors.delete("hub", &params).await.unwrap();
        bench.until_gone::<RegistryMirror>("hub").await;
        drop(held);
        bench.until_looks(1).await;
        bench.until_nothing_is_written().await;
        bench.until_gone::<Deployment>("hub").await;
        bench.until_gone::<ConfigMap>("hub-config").await;
        bench.until_gone::<Service>("hub").await;
    }
}

const CHANGES: u32 = 100;

/// A spec that changes twenty times a second is followed at a limited rate, and its last state is applied.
#[tokio::test]
async fn rapidly_changing_spec_is_followed() {
    if skip_on_existing_cluster("rapidly_changing_spec_is_followed") {
        return;
    }
    let bench = Bench::start("haste").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    bench.until_nothing_is_written().await;
    let mark = bench.mark().await;
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    for seconds in 1..=CHANGES {
        ticks.tick().await;
        let spec = json!({"spec": {"cache": {"tagTTL": format!("{seconds}s")}}});
        bench.merge::<RegistryMirror>("hub", spec).await;
    }
    bench
        .until("hub-config", "the last change", |map: &ConfigMap| {
            let last = format!("tagttl: {CHANGES}s");
            let config = &map.data.as_ref()?["config.yml"];
            (config.contains(&last) || config.contains("tagttl: 1m40s")).then_some(())
        })
        .await;
    bench.until_accepted("hub").await;
    bench.until_nothing_is_written().await;
    let writes = bench.writes(mark);
    let of_the_map = writes.iter().filter(|write| write.contains("hub-config"));
    // A burst, and four looks a second.
    let most = 40 + 4 * (began.elapsed().as_secs() + 1);
    assert!(of_the_map.count() as u64 <= most, "{writes:#?}");
}
