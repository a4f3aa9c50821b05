//! Changes by others to a mirror and its objects in bad moments.

use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;
use testbed::faults::Faults;

use crate::bench::{Bench, belongs_to, condition, ephemeral, soon, with_claims};
use crate::pods::{kubelet, pods};

/// Keeps an object that is deleted, as a backup or a mesh may.
fn with_finalizer(held: bool) -> Value {
    let finalizers = if held {
        json!(["example.com/mine"])
    } else {
        Value::Null
    };
    json!({"metadata": {"finalizers": finalizers}})
}

/// A child whose deletion hangs costs no write, and is created again once it is gone.
#[tokio::test]
async fn hanging_child_deletion_costs_no_write() {
    if skip_on_existing_cluster("hanging_child_deletion_costs_no_write") {
        return;
    }
    let mut bench = Bench::idle("hanging").await;
    bench.options.resync = Duration::from_millis(500);
    bench.start_operator().await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    bench.until_nothing_is_written().await;
    let before = bench.get::<Service>("hub").await.unwrap().uid();
    bench.merge::<Service>("hub", with_finalizer(true)).await;
    bench.merge::<Deployment>("hub", with_finalizer(true)).await;
    bench.delete::<Service>("hub").await;
    bench.delete::<Deployment>("hub").await;
    bench.until_looks(2).await;
    let mark = bench.mark().await;
    bench.until_looks(10).await;
    assert_eq!(bench.writes(mark), [""; 0]);
    // The operator applies other changes of the spec in the meantime.
    let mut spec = ephemeral();
    spec["cache"] = json!({"tagTTL": "7s"});
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    bench
        .until("hub", "the second replica", |deployment: &Deployment| {
            (deployment.spec.as_ref()?.replicas == Some(2)).then_some(())
        })
        .await;
    bench.until_accepted("hub").await;
    bench.until_nothing_is_written().await;
    bench.merge::<Service>("hub", with_finalizer(false)).await;
    bench.merge::<Deployment>("hub", with_finalizer(false)).await;
    bench
        .until("hub", "a new Service", |service: &Service| {
            (service.uid() != before).then_some(())
        })
        .await;
    bench
        .until("hub", "a new Deployment", |deployment: &Deployment| {
            let lives = deployment.metadata.deletion_timestamp.is_none();
            (lives && deployment.spec.as_ref()?.replicas == Some(2)).then_some(())
        })
        .await;
    bench.until_nothing_is_written().await;
}

/// A mirror whose deletion hangs is not changed, and its end deletes all its objects.
#[tokio::test]
async fn mirror_with_hanging_deletion_is_not_changed() {
    if skip_on_existing_cluster("mirror_with_hanging_deletion_is_not_changed") {
        return;
    }
    let mut bench = Bench::start("ending").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    bench.merge::<RegistryMirror>("hub", with_finalizer(true)).await;
    bench.delete::<RegistryMirror>("hub").await;
    bench.until_nothing_is_written().await;
    let mark = bench.mark().await;
    bench.delete::<ConfigMap>("hub-config").await;
    // Another operator, which watches it from the start.
    bench.stop_operator().await;
    bench.start_operator().await;
    bench.mirror("next", ephemeral()).await;
    bench.until_accepted("next").await;
    bench.until_nothing_is_written().await;
    let writes = bench.writes(mark);
    assert!(writes.iter().all(|write| !write.contains(" hub")), "{writes:#?}");
    bench.merge::<RegistryMirror>("hub", with_finalizer(false)).await;
    bench.until_gone::<RegistryMirror>("hub").await;
    bench.until_gone::<Service>("hub").await;
    bench.until_gone::<Secret>("hub-credentials").await;
}

/// A mirror that is deleted in any way while it changes leaves only orphans that were requested.
#[tokio::test]
async fn changing_mirror_is_deleted_completely() {
    if skip_on_existing_cluster("changing_mirror_is_deleted_completely") {
        return;
    }
    let bench = Bench::start("cascades").await;
    for (name, how, stays) in [
        ("hub", DeleteParams::foreground(), false),
        ("hub", DeleteParams::background(), false),
        ("hub", DeleteParams::orphan(), true),
    ] {
        let made = bench.mirror(name, ephemeral()).await;
        bench.until_accepted(name).await;
        bench.until_nothing_is_written().await;
        let ((), ()) = tokio::join!(
            async {
                bench.api::<RegistryMirror>().delete(name, &how).await.unwrap();
            },
            // Changes at that very moment: a deletion and an edit.
            async {
                let anything = DeleteParams::default();
                drop(bench.api::<ConfigMap>().delete("hub-config", &anything).await);
                let patch = Patch::Merge(json!({"spec": {"replicas": 3}}));
                let params = PatchParams::default();
                drop(bench.api::<RegistryMirror>().patch(name, &params, &patch).await);
                drop(bench.api::<Service>().delete("hub-headless", &anything).await);
            }
        );
        soon("its end", async || {
            let there = bench.get::<RegistryMirror>(name).await;
            there.is_none_or(|there| there.uid() != made.uid()).then_some(())
        })
        .await;
        if stays {
            let service = bench.get::<Service>("hub").await.unwrap();
            assert!(!belongs_to(&service, &made));
            bench.mirror(name, ephemeral()).await;
            let next = bench.get::<RegistryMirror>(name).await.unwrap();
            bench.until_accepted(name).await;
            let after = bench.get::<Service>("hub").await.unwrap();
            assert!(after.uid() == service.uid() && belongs_to(&after, &next));
        } else {
            bench.until_gone::<Deployment>("hub").await;
            bench.until_gone::<Service>("hub").await;
            bench.until_gone::<Service>("hub-headless").await;
            bench.until_gone::<ConfigMap>("hub-config").await;
            bench.until_gone::<Secret>("hub-credentials").await;
            bench.until_gone::<ServiceAccount>("hub").await;
        }
    }
}

/// An object without an owner is the mirror's by its marks; without these it is a user's.
#[tokio::test]
async fn unowned_object_is_adopted_by_marks_only() {
    let mut bench = Bench::start("disowned").await;
    let mirror = bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let before = bench.get::<Secret>("hub-credentials").await.unwrap();
    let no_owner = json!({"metadata": {"ownerReferences": null}});
    bench.merge::<Secret>("hub-credentials", no_owner).await;
    let adopted = bench.until("hub-credentials", "an owner", |secret: &Secret| {
        belongs_to(secret, &mirror).then(|| secret.uid())
    });
    assert_eq!(adopted.await, before.uid());
    bench.until_accepted("hub").await;

    bench.stop_operator().await;
    let stranger = json!({"metadata": {
        "ownerReferences": null, "labels": {"app.kubernetes.io/managed-by": null},
    }});
    bench.merge::<Secret>("hub-credentials", stranger).await;
    bench.start_operator().await;
    let reported = bench
        .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    let words = "Secret hub-credentials exists already";
    assert!(reported.message.starts_with(words), "{}", reported.message);
    let secret = bench.get::<Secret>("hub-credentials").await.unwrap();
    assert!(secret.owner_references().is_empty());
    bench.delete::<Secret>("hub-credentials").await;
    bench.until_accepted("hub").await;
}

/// With its owner back, an object that a mirror left behind would be deleted with the mirror.
#[tokio::test]
async fn orphan_made_during_reconcile_is_not_adopted() {
    let mut bench = Bench::idle("let-go").await;
    let faults = Faults::default();
    bench.start_operator_through(faults.client(bench.config().await).unwrap());
    for name in ["hub", "other"] {
        bench.mirror(name, ephemeral()).await;
        bench.until_accepted(name).await;
    }
    let other = bench.get::<Deployment>("other").await.unwrap().uid();
    let mut spec = ephemeral();
    spec["cache"] = json!({"tagTTL": "7s"});
    spec["pod"] = json!({"labels": {"team": "a"}});
    // The workload comes after what its Pods mount.
    let (held, _) = tokio::join!(faults.hold("/configmaps/hub-config"), bench.mirror("hub", spec));
    let mirrors = bench.api::<RegistryMirror>();
    mirrors.delete("hub", &DeleteParams::orphan()).await.unwrap();
    bench.until_gone::<RegistryMirror>("hub").await;
    // The operator has seen it once it has seen what came later.
    bench.delete::<Deployment>("other").await;
    bench
        .until("other", "a new Deployment", |deployment: &Deployment| {
            (deployment.uid() != other).then_some(())
        })
        .await;
    drop(held);
    bench.until_nothing_is_written().await;
    let deployment = bench.get::<Deployment>("hub").await.unwrap();
    assert!(deployment.owner_references().is_empty());
    assert!(deployment.metadata.deletion_timestamp.is_none());
}

/// A PersistentVolumeClaim that is deleted while its pod runs is created again once the pod is gone.
#[tokio::test]
async fn lost_pvc_is_recreated_after_its_pod() {
    let bench = Bench::start("lost-claim").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", with_claims("1Gi")).await;
    bench.until_ready().await;
    let before = bench
        .get::<PersistentVolumeClaim>("cache-hub-0")
        .await
        .unwrap()
        .uid();
    bench.delete::<PersistentVolumeClaim>("cache-hub-0").await;
    for pod in pods(&bench).await {
        let same = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        bench.api::<Pod>().delete(&pod.name_any(), &same).await.unwrap();
    }
    bench
        .until("cache-hub-0", "a new claim", |claim: &PersistentVolumeClaim| {
            let lives = claim.metadata.deletion_timestamp.is_none();
            (lives && claim.uid() != before).then_some(())
        })
        .await;
    bench.until_ready().await;
}

/// A terminating namespace removes a mirror with a bounded number of writes.
#[tokio::test]
async fn terminating_namespace_removes_mirror_quietly() {
    if skip_on_existing_cluster("terminating_namespace_removes_mirror_quietly") {
        return;
    }
    let mut bench = Bench::idle("last-days").await;
    // A user with permissions for the whole cluster, which do not end with the namespace.
    let everywhere = bench
        .control_plane
        .client_as(&bench.user, &["system:masters"])
        .await;
    bench.start_operator_through(everywhere);
    bench.mirror("hub", with_claims("1Gi")).await;
    bench.until_accepted("hub").await;
    bench.until_nothing_is_written().await;
    // The mirror outlives its objects, as a finalizer holds it.
    bench.merge::<RegistryMirror>("hub", with_finalizer(true)).await;
    let audit = bench.control_plane.audit().unwrap();
    let mark = audit.mark().unwrap();
    let namespaces: Api<Namespace> = Api::all(bench.namespace.client());
    let name = bench.namespace.name();
    namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    bench.until_gone::<Service>("hub").await;
    bench.until_gone::<StatefulSet>("hub").await;
    bench.merge::<RegistryMirror>("hub", with_finalizer(false)).await;
    // The namespace itself ends when its controller comes to it, which may be long on a busy machine.
    bench.until_gone::<RegistryMirror>("hub").await;
    let writes = audit.writes(mark, &bench.user, name).unwrap();
    // Each object that goes is a reason to look again, and each look is refused what is gone; then ever later.
    assert!(writes.len() < 100, "{} writes: {writes:#?}", writes.len());
}

/// The message of a `LimitRange` that prevents pods is reported.
#[tokio::test]
async fn limit_range_refusal_of_pods_is_reported() {
    let bench = Bench::idle("limits").await;
    let limit = json!({
        "metadata": {"name": "small"},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]},
    });
    bench.apply::<LimitRange>(limit).await;
    let mut bench = bench;
    bench.start_operator().await;
    bench.mirror("hub", ephemeral()).await;
    let observed = bench
        .until("hub", "the limit's words", |mirror: &RegistryMirror| {
            let observed = condition(mirror, ConditionType::Ready)?;
            observed
                .message
                .contains("maximum memory usage")
                .then(|| observed.clone())
        })
        .await;
    assert_eq!(
        (observed.status.as_str(), observed.reason.as_str()),
        ("False", "NoReadyReplicas")
    );
}
