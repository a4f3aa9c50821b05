//! A new version of the operator reaches mirrors some at a time, and no more of them once one fails.

use std::cell::Cell;
use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use operator::rollout::RolloutConfig;
use serde_json::json;
use testbed::FakeKubelet;
use testbed::fake_kubelet::{Image, Options};

use crate::bench::{Bench, IMAGE, condition, ephemeral, soon};
use crate::pods::{admin, is_ready, pods, restarts};

const NEXT: &str = "registry-mirror:next";
/// One that no node can get.
const BROKEN: &str = "registry-mirror:broken";
const MIRRORS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn config(max_concurrent: usize, progress_deadline: u64) -> RolloutConfig {
    RolloutConfig {
        max_concurrent,
        progress_deadline: Duration::from_secs(progress_deadline),
    }
}

async fn kubelet(bench: &Bench) -> FakeKubelet {
    let program = || Image::new("/mirror", env!("CARGO_BIN_EXE_mirror-under-test"));
    let options = Options::for_namespace(bench.namespace.name())
        .image(IMAGE, program())
        .image(NEXT, program());
    FakeKubelet::start(bench.control_plane.kubeconfig(), options)
        .await
        .unwrap()
}

/// Mirrors that serve with the first image.
async fn serving(name: &str) -> (Bench, FakeKubelet) {
    let bench = Bench::start(name).await;
    let kubelet = kubelet(&bench).await;
    for mirror in MIRRORS {
        bench.mirror(mirror, ephemeral()).await;
    }
    until_all_rolled_out(&bench).await;
    (bench, kubelet)
}

async fn until_all_rolled_out(bench: &Bench) {
    for mirror in MIRRORS {
        bench
            .until_condition(mirror, ConditionType::Progressing, "False", Reason::RolledOut)
            .await;
        bench
            .until_condition(mirror, ConditionType::Ready, "True", Reason::Serving)
            .await;
    }
}

fn image(deployment: &Deployment) -> Option<&str> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    pod.containers.first()?.image.as_deref()
}

fn is_rolled_out(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation >= deployment.metadata.generation
        && (status.updated_replicas, status.ready_replicas, status.replicas) == (Some(1), Some(1), Some(1))
}

async fn deployments(bench: &Bench) -> Vec<Deployment> {
    let list = bench
        .api::<Deployment>()
        .list(&ListParams::default())
        .await
        .unwrap();
    list.items
}

/// The mirrors that were given an image.
async fn given(bench: &Bench, wanted: &str) -> Vec<String> {
    let all = deployments(bench).await;
    let given = all.iter().filter(|deployment| image(deployment) == Some(wanted));
    given.map(ResourceExt::name_any).collect()
}

/// A new image is rolled out to a limited number of mirrors at a time, until all have it.
#[tokio::test]
async fn new_image_is_rolled_out_in_stages() {
    let (mut bench, _kubelet) = serving("staged").await;
    bench.stop_operator().await;
    bench.start_operator_with(NEXT, config(2, 600)).await;
    let most = Cell::new(0);
    let api = bench.api::<Deployment>();
    soon("the new image in all mirrors", async || {
        // One list is one moment.
        let all = api.list(&ListParams::default()).await.unwrap().items;
        let new = |deployment: &&Deployment| image(deployment) == Some(NEXT);
        let rolling = all
            .iter()
            .filter(new)
            .filter(|deployment| !is_rolled_out(deployment))
            .count();
        most.set(most.get().max(rolling));
        (all.iter().filter(new).count() == MIRRORS.len() && rolling == 0).then_some(())
    })
    .await;
    assert!((1..=2).contains(&most.get()), "{} at a time", most.get());
    until_all_rolled_out(&bench).await;
    // A new operator finds nothing to do.
    bench.stop_operator().await;
    let mark = bench.mark().await;
    bench.start_operator_with(NEXT, config(2, 600)).await;
    soon("a look at every mirror", async || {
        (bench.reconciles() >= MIRRORS.len() as u64).then_some(())
    })
    .await;
    assert_eq!(bench.writes(mark), Vec::<String>::new());
}

/// A namespace whose nodes can't get the new image keeps no other namespace from it, and learns of no other one.
#[tokio::test]
async fn failed_namespace_pauses_no_other_namespace() {
    let (mut bench, tenant) = (Bench::idle("innocent").await, Bench::idle("a-tenant").await);
    let program = || Image::new("/mirror", env!("CARGO_BIN_EXE_mirror-under-test"));
    let options = Options::for_namespace(tenant.namespace.name()).image(IMAGE, program());
    let _tenants = FakeKubelet::start(bench.control_plane.kubeconfig(), options)
        .await
        .unwrap();
    let _kubelet = kubelet(&bench).await;
    bench.cover(&tenant).await;
    bench.start_operator().await;
    for mirror in ["a", "b"] {
        tenant.mirror(mirror, ephemeral()).await;
        bench.mirror(mirror, ephemeral()).await;
    }
    for mirror in ["a", "b"] {
        for bench in [&bench, &tenant] {
            bench
                .until_condition(mirror, ConditionType::Ready, "True", Reason::Serving)
                .await;
        }
    }
    bench.stop_operator().await;
    bench.start_operator_with(NEXT, config(1, 5)).await;
    for mirror in ["a", "b"] {
        bench
            .until(mirror, "the new image", |deployment: &Deployment| {
                (image(deployment) == Some(NEXT) && is_rolled_out(deployment)).then_some(())
            })
            .await;
    }
    let words = soon("the pause of the tenant's namespace", async || {
        let mirrors = tenant.api::<RegistryMirror>().list(&ListParams::default()).await;
        let all = mirrors.unwrap().items;
        let progress = all
            .iter()
            .filter_map(|one| condition(one, ConditionType::Progressing));
        let mut said: Vec<_> = progress
            .map(|one| (one.reason.clone(), one.message.clone()))
            .collect();
        said.sort();
        let reasons: Vec<_> = said.iter().map(|(reason, _)| reason.as_str()).collect();
        (reasons == ["UpgradeFailed", "UpgradeWaiting"]).then(|| said[1].1.clone())
    })
    .await;
    assert!(
        words.contains("the rollout is paused in this namespace, because RegistryMirror "),
        "{words}"
    );
    assert!(!words.contains(bench.namespace.name()), "{words}");
}

/// An image that does not run stops at the first mirrors, and a good one continues the rollout.
#[tokio::test]
async fn broken_image_stops_the_rollout() {
    let (mut bench, _kubelet) = serving("broken").await;
    bench.stop_operator().await;
    bench.start_operator_with(BROKEN, config(2, 5)).await;
    let failed = soon("two mirrors that failed", async || {
        let mirrors = bench
            .api::<RegistryMirror>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let reason = |mirror: &RegistryMirror| {
            condition(mirror, ConditionType::Progressing).map(|condition| condition.reason.clone())
        };
        let failed = mirrors
            .iter()
            .filter(|mirror| reason(mirror) == Some(Reason::UpgradeFailed.to_string()));
        let failed: Vec<_> = failed.map(ResourceExt::name_any).collect();
        (failed.len() == 2).then_some(failed)
    })
    .await;
    let waiting: Vec<_> = MIRRORS
        .iter()
        .filter(|mirror| !failed.iter().any(|f| f == *mirror))
        .collect();
    for mirror in &failed {
        bench
            .until_condition(mirror, ConditionType::Progressing, "False", Reason::UpgradeFailed)
            .await;
    }
    for mirror in &waiting {
        bench
            .until_condition(
                mirror,
                ConditionType::Progressing,
                "False",
                Reason::UpgradeWaiting,
            )
            .await;
        let paused = |mirror: &RegistryMirror| {
            let message = &condition(mirror, ConditionType::Progressing)?.message;
            message
                .contains("the rollout is paused in this namespace, because ")
                .then_some(())
        };
        bench.until(mirror, "word of the pause", paused).await;
        let ready = bench.get::<RegistryMirror>(mirror).await.unwrap();
        assert_eq!(condition(&ready, ConditionType::Ready).unwrap().status, "True");
    }
    assert_eq!(given(&bench, BROKEN).await, failed, "no other server has it");
    let metrics = bench.metrics();
    for line in [r#"upgrades{state="failed"} 2"#, r#"upgrades{state="waiting"} 3"#] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let events = bench.api::<Event>();
    soon("an event of the failure", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        let reported = |event: &Event| event.reason.as_deref() == Some("UpgradeFailed");
        events.iter().any(reported).then_some(())
    })
    .await;

    // A mirror gets the changes of its own spec at once, and no others.
    let own = waiting[0];
    bench
        .merge::<RegistryMirror>(own, json!({"spec": {"pod": {"labels": {"team": "a"}}}}))
        .await;
    let labelled = |deployment: &Deployment| {
        let metadata = deployment.spec.as_ref()?.template.metadata.as_ref()?;
        let labels = metadata.labels.as_ref()?;
        labels
            .contains_key("team")
            .then(|| image(deployment).map(ToOwned::to_owned))
    };
    let kept = bench
        .until(own, "the label that the spec asks for", labelled)
        .await;
    assert_eq!(kept.as_deref(), Some(IMAGE));

    // An operator that starts now knows of the pause.
    bench.stop_operator().await;
    bench.start_operator_with(BROKEN, config(2, 5)).await;
    soon("a look at every mirror", async || {
        (bench.reconciles() >= MIRRORS.len() as u64).then_some(())
    })
    .await;
    assert_eq!(given(&bench, BROKEN).await, failed);

    // Another image: those that failed get it first, and when they are well the others follow.
    bench.stop_operator().await;
    bench.start_operator_with(NEXT, config(2, 600)).await;
    soon("a good image in all mirrors", async || {
        (given(&bench, NEXT).await.len() == MIRRORS.len()).then_some(())
    })
    .await;
    until_all_rolled_out(&bench).await;
}

/// The rollback to the previous image repairs the mirrors that failed and restarts no other.
#[tokio::test]
async fn rollback_repairs_only_failed_mirrors() {
    let (mut bench, _kubelet) = serving("back").await;
    let before: Vec<_> = deployments(&bench)
        .await
        .iter()
        .map(template_generation)
        .collect();
    bench.stop_operator().await;
    bench.start_operator_with(BROKEN, config(1, 600)).await;
    let broken = soon("one mirror with the broken image", async || {
        given(&bench, BROKEN).await.pop()
    })
    .await;
    bench.stop_operator().await;
    bench.start_operator().await;
    until_all_rolled_out(&bench).await;
    assert_eq!(given(&bench, BROKEN).await, Vec::<String>::new());
    let after: Vec<_> = deployments(&bench)
        .await
        .iter()
        .map(template_generation)
        .collect();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before == after, before.0 != broken, "{before:?} {after:?}");
    }
}

/// The generation moves with the spec.
fn template_generation(deployment: &Deployment) -> (String, Option<i64>) {
    (deployment.name_any(), deployment.metadata.generation)
}

/// A mirror that waits in the rollout is still repaired.
#[tokio::test]
async fn waiting_mirror_is_still_repaired() {
    let (mut bench, _kubelet) = serving("kept").await;
    bench.stop_operator().await;
    bench.start_operator_with(BROKEN, config(1, 600)).await;
    let (waiting, message) = soon("a mirror that waits", async || {
        let mirrors = bench
            .api::<RegistryMirror>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let waits = |mirror: &RegistryMirror| {
            let condition = condition(mirror, ConditionType::Progressing)?;
            let message = condition.message.clone();
            (condition.reason == Reason::UpgradeWaiting.to_string()).then(|| (mirror.name_any(), message))
        };
        mirrors.iter().find_map(waits)
    })
    .await;
    assert!(
        message.ends_with("at most 1 mirror rolls out at the same time"),
        "{message}"
    );
    // One more: with none that is ready it would wait no longer.
    bench
        .merge::<Deployment>(&waiting, json!({"spec": {"replicas": 2}}))
        .await;
    let repaired = |deployment: &Deployment| {
        let spec = deployment.spec.as_ref()?;
        (spec.replicas == Some(1)).then(|| image(deployment).map(ToOwned::to_owned))
    };
    let kept = bench
        .until(&waiting, "the replicas that the spec asks for", repaired)
        .await;
    assert_eq!(kept.as_deref(), Some(IMAGE));
}

/// An operator of a later version writes a key that the previous servers do not know; it has not given them another
/// image yet, or that one does not run.
#[tokio::test]
async fn old_servers_fall_back_to_last_good_config() {
    let mut bench = Bench::start("last-good").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("a", ephemeral()).await;
    let rolled_out = async |bench: &Bench| {
        bench
            .until_condition("a", ConditionType::Progressing, "False", Reason::RolledOut)
            .await;
    };
    rolled_out(&bench).await;
    let yaml = |map: &ConfigMap, key: &str| map.data.as_ref()?.get(key).cloned();
    let first = bench
        .until("a-config", "a configuration", |map: &ConfigMap| {
            yaml(map, "config.yml")
        })
        .await;
    bench
        .merge::<RegistryMirror>("a", json!({"spec": {"cache": {"tagTTL": "7m"}}}))
        .await;
    let kept = bench
        .until(
            "a-config",
            "the one before beside the new one",
            |map: &ConfigMap| yaml(map, "last-good.yml"),
        )
        .await;
    assert_eq!(kept, first);
    rolled_out(&bench).await;

    bench.stop_operator().await;
    let second = bench
        .until("a-config", "a configuration", |map: &ConfigMap| {
            yaml(map, "config.yml")
        })
        .await;
    let later = json!({"data": {"config.yml": format!("{second}future: {{key: 1}}\n")}});
    bench.merge::<ConfigMap>("a-config", later).await;
    let before = pods(&bench).await.remove(0);
    bench.delete::<Pod>(&before.name_any()).await;
    let after = soon("another Pod that serves", async || {
        pods(&bench)
            .await
            .into_iter()
            .find(|pod| pod.uid() != before.uid() && is_ready(pod))
    })
    .await;
    let status = admin(&after, "status").await.unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(
        status["configurationError"].as_str().unwrap().contains("future"),
        "{status}"
    );
    assert_eq!(restarts(&after), 0);

    // The operator that is there again repairs what it did not write, and the server takes it.
    bench.start_operator().await;
    bench
        .until("a-config", "repair", |map: &ConfigMap| {
            (yaml(map, "config.yml")? == second).then_some(())
        })
        .await;
    rolled_out(&bench).await;
    bench
        .until_condition("a", ConditionType::Ready, "True", Reason::Serving)
        .await;
}
