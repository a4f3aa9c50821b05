//! A mirror's objects come, follow the spec, are repaired, and go.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use crate::bench::{Bench, belongs_to, ephemeral, soon, text, with_claims};

/// A mirror gets all its objects and owns them.
#[tokio::test]
async fn mirror_owns_all_its_objects() {
    let bench = Bench::start("create").await;
    let mirror = bench.mirror("hub", with_claims("1Gi")).await;
    let status = bench.until_accepted("hub").await;
    assert!(belongs_to(
        &bench.get::<ConfigMap>("hub-config").await.unwrap(),
        &mirror
    ));
    assert!(belongs_to(
        &bench.get::<Secret>("hub-credentials").await.unwrap(),
        &mirror
    ));
    assert!(belongs_to(
        &bench.get::<ServiceAccount>("hub").await.unwrap(),
        &mirror
    ));
    assert!(belongs_to(
        &bench.get::<Service>("hub-headless").await.unwrap(),
        &mirror
    ));
    assert!(belongs_to(
        &bench.get::<StatefulSet>("hub").await.unwrap(),
        &mirror
    ));
    assert!(belongs_to(
        &bench.get::<PersistentVolumeClaim>("cache-hub-0").await.unwrap(),
        &mirror
    ));
    assert!(bench.get::<Deployment>("hub").await.is_none());
    let service = bench.get::<Service>("hub").await.unwrap();
    assert!(belongs_to(&service, &mirror));
    let address = service.spec.unwrap().cluster_ip.unwrap();
    assert_eq!(status.endpoint.unwrap().url, format!("http://{address}:5000"));
    assert!(
        status
            .selector
            .unwrap()
            .contains("app.kubernetes.io/instance=hub")
    );
    let pending = bench
        .until_hub(ConditionType::Ready, "False", Reason::ClaimPending)
        .await;
    assert!(pending.message.contains("cache-hub-0"), "{}", pending.message);
}

/// An ephemeral mirror runs as a Deployment.
#[tokio::test]
async fn ephemeral_mirror_is_a_deployment() {
    let bench = Bench::start("ephemeral").await;
    let mirror = bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    assert!(belongs_to(
        &bench.get::<Deployment>("hub").await.unwrap(),
        &mirror
    ));
    assert!(bench.get::<StatefulSet>("hub").await.is_none());
    let status = bench
        .until_hub(ConditionType::Ready, "False", Reason::NoReadyReplicas)
        .await;
    assert!(
        status.message.contains("0 of 1 replicas are ready"),
        "{}",
        status.message
    );
}

/// The secret that the servers share is created once, and stays as a user rotates it.
#[tokio::test]
async fn peer_secret_is_created_once_and_kept() {
    let bench = Bench::start("peers").await;
    let mut spec = ephemeral();
    let mirror = bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    let secret = bench.get::<Secret>("hub-peers").await.unwrap();
    assert!(belongs_to(&secret, &mirror));
    let first = text(&secret, "secret").unwrap();
    assert!(first.len() >= 32, "{} characters", first.len());
    let rotating = format!("another-secret-of-them\n{first}\n");
    let data = json!({"stringData": {"secret": rotating}});
    bench.merge::<Secret>("hub-peers", data).await;
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec.clone()).await;
    bench
        .until("hub", "two replicas", |deployment: &Deployment| {
            (deployment.spec.as_ref()?.replicas == Some(2)).then_some(())
        })
        .await;
    bench.until_accepted("hub").await;
    let kept = bench.get::<Secret>("hub-peers").await.unwrap();
    assert_eq!(text(&kept, "secret"), Some(rotating));
    spec["peers"] = json!({"mode": "Disabled"});
    bench.mirror("hub", spec).await;
    bench.until_gone::<Secret>("hub-peers").await;
}

/// A setting that servers reload reaches the pods without a rollout.
#[tokio::test]
async fn reloadable_setting_reaches_pods_without_rollout() {
    let bench = Bench::start("reload").await;
    let mut spec = ephemeral();
    bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    let pod = pod_of(&bench, "hub").await;
    assert!(
        !pod.annotations().contains_key("registrymirror.io/reload"),
        "nothing changed yet"
    );
    let before = bench.get::<Deployment>("hub").await.unwrap();

    spec["cache"] = json!({"tagTTL": "10s"});
    bench.mirror("hub", spec).await;
    bench
        .until("hub-config", "new configuration", |map: &ConfigMap| {
            map.data.as_ref()?["config.yml"]
                .contains("tagttl: 10s")
                .then_some(())
        })
        .await;
    bench
        .until(&pod.name_any(), "word to the Pod", |pod: &Pod| {
            pod.annotations().get("registrymirror.io/reload").cloned()
        })
        .await;
    bench.until_accepted("hub").await;
    let after = bench.get::<Deployment>("hub").await.unwrap();
    assert_eq!(after.spec.unwrap().template, before.spec.unwrap().template);
}

/// A setting that servers do not reload rolls the pods.
#[tokio::test]
async fn static_setting_rolls_the_pods() {
    let bench = Bench::start("roll").await;
    let mut spec = ephemeral();
    bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    spec["observability"] = json!({"logFormat": "text"});
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    bench
        .until("hub", "new template", |deployment: &Deployment| {
            let spec = deployment.spec.as_ref()?;
            let env = spec.template.spec.as_ref()?.containers[0].env.as_ref()?;
            let rolled = env
                .iter()
                .any(|v| v.name == "REGISTRY_LOG_FORMATTER" && v.value.as_deref() == Some("text"));
            (rolled && spec.replicas == Some(2)).then_some(())
        })
        .await;
    bench
        .until_hub(ConditionType::Progressing, "True", Reason::RollingOut)
        .await;
}

/// A field that the spec drops is removed from the objects.
#[tokio::test]
async fn removed_spec_field_is_removed_from_objects() {
    let bench = Bench::start("drop").await;
    let mut spec = ephemeral();
    spec["pod"] = json!({"nodeSelector": {"disk": "ssd"}});
    spec["service"] = json!({"annotations": {"a": "b"}});
    bench.mirror("hub", spec).await;
    let selector = |deployment: &Deployment| {
        deployment
            .spec
            .as_ref()?
            .template
            .spec
            .as_ref()?
            .node_selector
            .clone()
    };
    bench
        .until("hub", "node selector", |deployment| selector(deployment))
        .await;
    bench.mirror("hub", ephemeral()).await;
    bench
        .until("hub", "end of the node selector", |deployment| {
            selector(deployment).is_none().then_some(())
        })
        .await;
    bench
        .until("hub", "end of the annotation", |service: &Service| {
            (!service.annotations().contains_key("a")).then_some(())
        })
        .await;
}

/// An object that a user deletes is created again.
#[tokio::test]
async fn deleted_object_is_recreated() {
    let bench = Bench::start("deleted").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let uid = bench.get::<Service>("hub").await.unwrap().uid();
    bench.delete::<Service>("hub").await;
    bench.delete::<ConfigMap>("hub-config").await;
    bench
        .until("hub", "new Service", |service: &Service| {
            (service.uid() != uid).then_some(())
        })
        .await;
    bench
        .until("hub-config", "new ConfigMap", |_: &ConfigMap| Some(()))
        .await;
}

/// An object that a user edits is repaired, and keeps the fields of others.
#[tokio::test]
async fn edited_object_is_repaired_keeping_additions() {
    let bench = Bench::start("edited").await;
    let mirror = bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    bench
        .merge::<ConfigMap>(
            "hub-config",
            json!({"data": {"config.yml": "version: 0.1", "note": "kept"}}),
        )
        .await;
    let repaired = bench.until("hub-config", "repair", |map: &ConfigMap| {
        map.data.as_ref()?["config.yml"]
            .contains("quay.io")
            .then(|| map.clone())
    });
    assert_eq!(repaired.await.data.unwrap()["note"], "kept");

    bench
        .merge::<Secret>("hub-credentials", json!({"data": {"config.json": "e30="}}))
        .await;
    bench
        .until("hub-credentials", "repair", |secret: &Secret| {
            text(secret, "config.json").filter(|json| json.contains("auths"))
        })
        .await;

    // Without its label it is watched no more: the operator still sees its end, and reads the name.
    let labels = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}});
    bench.merge::<Deployment>("hub", labels).await;
    let labelled = bench.until("hub", "repair", |deployment: &Deployment| {
        deployment
            .labels()
            .contains_key("app.kubernetes.io/managed-by")
            .then(|| deployment.clone())
    });
    assert!(belongs_to(&labelled.await, &mirror));
}

/// The operator changes no object of a paused mirror.
#[tokio::test]
async fn paused_mirror_is_not_changed() {
    let mut bench = Bench::start("paused").await;
    let mut spec = ephemeral();
    bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    spec["paused"] = json!(true);
    spec["replicas"] = json!(3);
    bench.mirror("hub", spec.clone()).await;
    bench
        .until_hub(ConditionType::Paused, "True", Reason::PausedBySpec)
        .await;
    bench.delete::<ConfigMap>("hub-config").await;
    // An operator that starts reads everything.
    bench.stop_operator().await;
    bench.start_operator().await;
    soon("reconcile", async || (bench.reconciles() > 0).then_some(())).await;
    assert!(bench.get::<ConfigMap>("hub-config").await.is_none());
    assert_eq!(
        bench
            .get::<Deployment>("hub")
            .await
            .unwrap()
            .spec
            .unwrap()
            .replicas,
        Some(1)
    );

    spec["paused"] = json!(false);
    bench.mirror("hub", spec).await;
    bench
        .until("hub-config", "new ConfigMap", |_: &ConfigMap| Some(()))
        .await;
    bench
        .until("hub", "end of the pause", |mirror: &RegistryMirror| {
            crate::bench::condition(mirror, ConditionType::Paused)
                .is_none()
                .then_some(())
        })
        .await;
}

/// A mirror that is deleted takes its objects with it.
#[tokio::test]
async fn deleted_mirror_deletes_its_objects() {
    let bench = Bench::start("delete").await;
    bench.mirror("hub", with_claims("1Gi")).await;
    bench.until_accepted("hub").await;
    bench.delete::<RegistryMirror>("hub").await;
    bench.until_gone::<RegistryMirror>("hub").await;
    bench.until_gone::<ConfigMap>("hub-config").await;
    bench.until_gone::<Secret>("hub-credentials").await;
    bench.until_gone::<ServiceAccount>("hub").await;
    bench.until_gone::<Service>("hub").await;
    bench.until_gone::<Service>("hub-headless").await;
    bench.until_gone::<StatefulSet>("hub").await;
    let claims = bench.api::<PersistentVolumeClaim>();
    // A claim that a Pod still names goes with that Pod.
    soon("end of the claim", async || {
        let claim = claims.get_opt("cache-hub-0").await.unwrap();
        claim
            .is_none_or(|claim| claim.metadata.deletion_timestamp.is_some())
            .then_some(())
    })
    .await;
}

/// A retained PersistentVolumeClaim outlives its mirror, and the next mirror adopts it.
#[tokio::test]
async fn retained_pvc_is_adopted_by_the_next_mirror() {
    let bench = Bench::start("retain").await;
    let mut spec = with_claims("1Gi");
    spec["storage"]["persistentVolumeClaim"]["retentionPolicy"] = json!("Retain");
    bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    let claim = bench.get::<PersistentVolumeClaim>("cache-hub-0").await.unwrap();
    assert!(claim.owner_references().is_empty());
    bench.delete::<RegistryMirror>("hub").await;
    bench.until_gone::<StatefulSet>("hub").await;
    bench.until_gone::<ConfigMap>("hub-config").await;
    spec["storage"]["persistentVolumeClaim"]["retentionPolicy"] = json!("Delete");
    let next = bench.mirror("hub", spec).await;
    bench.until_accepted("hub").await;
    let adopted = bench.until("cache-hub-0", "adoption", |claim: &PersistentVolumeClaim| {
        belongs_to(claim, &next).then(|| claim.clone())
    });
    assert_eq!(adopted.await.uid(), claim.uid());
}

/// Scaling creates `PersistentVolumeClaims` and never deletes them.
#[tokio::test]
async fn scaling_creates_and_never_deletes_pvcs() {
    let bench = Bench::start("scale").await;
    let mut spec = with_claims("1Gi");
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    assert!(bench.get::<PersistentVolumeClaim>("cache-hub-1").await.is_some());
    spec["replicas"] = json!(0);
    bench.mirror("hub", spec).await;
    bench.until_accepted("hub").await;
    bench
        .until("hub", "end of the replicas", |set: &StatefulSet| {
            (set.spec.as_ref()?.replicas == Some(0)).then_some(())
        })
        .await;
    bench
        .until_hub(ConditionType::Available, "False", Reason::ScaledToZero)
        .await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::ScaledToZero)
        .await;
    for claim in ["cache-hub-0", "cache-hub-1"] {
        let claim = bench.get::<PersistentVolumeClaim>(claim).await.unwrap();
        assert_eq!(claim.metadata.deletion_timestamp, None);
    }
}

async fn pod_of(bench: &Bench, mirror: &str) -> Pod {
    let pods = bench.api::<Pod>();
    let labels = ListParams::default().labels(&format!("app.kubernetes.io/instance={mirror}"));
    soon("Pod", async || pods.list(&labels).await.unwrap().items.pop()).await
}
