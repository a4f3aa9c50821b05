//! Objects as a backup restores them: created without owners, UIDs and status, in an order of the tool's own.

use std::collections::BTreeMap;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, ResourceExt};
use operator::kind::Kind;
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;

use crate::bench::{Bench, belongs_to, ephemeral, soon, with_claims};
use crate::pods::{kubelet, pods};
use crate::storage::forbid_deletion;

/// The kinds of a backup, in the order in which Velero restores them; mirrors come where the alphabet has them.
const ORDER: [Kind; 8] = [
    Kind::PersistentVolumeClaim,
    Kind::Secret,
    Kind::ConfigMap,
    Kind::ServiceAccount,
    Kind::Deployment,
    Kind::PodDisruptionBudget,
    Kind::Service,
    Kind::StatefulSet,
];

fn api(bench: &Bench, resource: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), resource)
}

/// Objects by kind, without what a backup tool leaves out.
type Backup = BTreeMap<Kind, Vec<Value>>;

async fn back_up(bench: &Bench) -> Backup {
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=registry-mirror");
    let mut backup = Backup::new();
    for kind in ORDER {
        let objects = api(bench, &kind.resource()).list(&ours).await.unwrap();
        let objects = objects.into_iter().map(|object| restorable(kind, &object));
        backup.insert(kind, objects.collect());
    }
    backup
}

fn restorable(kind: Kind, object: &DynamicObject) -> Value {
    let mut value = json!(object);
    let fields = value.as_object_mut().unwrap();
    fields.remove("status");
    let metadata = fields["metadata"].as_object_mut().unwrap();
    for field in [
        "ownerReferences",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
        "namespace",
        "finalizers",
    ] {
        metadata.remove(field);
    }
    value["apiVersion"] = json!(kind.resource().api_version);
    value["kind"] = json!(kind.resource().kind);
    match kind {
        Kind::Service if value["spec"]["clusterIP"] != "None" => {
            let spec = value["spec"].as_object_mut().unwrap();
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
        Kind::PersistentVolumeClaim => {
            value["spec"].as_object_mut().unwrap().remove("volumeName");
            let annotations = value["metadata"]["annotations"].as_object_mut().unwrap();
            annotations.retain(|name, _| !name.contains("kubernetes.io/"));
        }
        _ => {}
    }
    value
}

/// Creates the objects of some kinds, and keeps existing ones unchanged.
async fn restore(bench: &Bench, backup: &Backup, kinds: &[Kind]) {
    let params = PostParams {
        field_manager: Some("velero-server".to_owned()),
        ..PostParams::default()
    };
    for kind in kinds {
        for object in &backup[kind] {
            let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
            match api(bench, &kind.resource()).create(&params, &object).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => panic!("{kind} {}: {error}", object.name_any()),
            }
        }
    }
}

/// Deletes the mirrors with all that they had.
async fn lose(bench: &Bench, names: &[&str]) {
    for name in names {
        bench.delete::<RegistryMirror>(name).await;
    }
    for kind in ORDER.into_iter().chain([Kind::Pod]) {
        let objects = api(bench, &kind.resource());
        let ours = ListParams::default().labels("app.kubernetes.io/component=mirror");
        let at_once = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        soon(&format!("end of each {kind}"), async || {
            if kind == Kind::PersistentVolumeClaim {
                objects
                    .delete_collection(&DeleteParams::default(), &ours)
                    .await
                    .unwrap();
            }
            if kind == Kind::Pod {
                objects.delete_collection(&at_once, &ours).await.unwrap();
            }
            objects.list(&ours).await.unwrap().items.is_empty().then_some(())
        })
        .await;
    }
}

async fn until_serving(bench: &Bench, names: &[&str]) {
    for name in names {
        bench
            .until_condition(name, ConditionType::Ready, "True", Reason::Serving)
            .await;
    }
}

fn specs() -> [(&'static str, Value); 2] {
    let mut claims = with_claims("16Mi");
    claims["tls"] = json!({"mode": "SelfSigned"});
    claims["replicas"] = json!(2);
    [("hub", claims), ("fleeting", ephemeral())]
}

async fn names_of_adopted(bench: &Bench) -> Vec<String> {
    let events = bench.api::<Event>().list(&ListParams::default()).await.unwrap();
    let adopted = events
        .items
        .into_iter()
        .filter(|event| event.reason.as_deref() == Some("Adopted"));
    adopted
        .filter_map(|event| event.action?.strip_prefix("Adopt ").map(ToOwned::to_owned))
        .collect()
}

/// All objects come before their mirrors: each is adopted, and no Pod is replaced.
#[tokio::test]
async fn restored_objects_are_adopted_without_restart() {
    let bench = Bench::start("restored").await;
    let _kubelet = kubelet(&bench).await;
    for (name, spec) in specs() {
        bench.mirror(name, spec).await;
    }
    until_serving(&bench, &["hub", "fleeting"]).await;
    let backup = back_up(&bench).await;
    let authority = bench.get::<Secret>("hub-ca-key").await.unwrap().data;
    lose(&bench, &["hub", "fleeting"]).await;

    restore(&bench, &backup, &ORDER).await;
    let ready = soon("Pods of the restored workloads", async || {
        let pods = pods(&bench).await;
        (pods.len() == 3 && pods.iter().all(crate::pods::is_ready)).then_some(pods)
    })
    .await;
    let set = bench.get::<StatefulSet>("hub").await.unwrap();
    let deployment = bench.get::<Deployment>("fleeting").await.unwrap();
    for (name, spec) in specs() {
        bench.mirror(name, spec).await;
    }
    until_serving(&bench, &["hub", "fleeting"]).await;
    bench.until_nothing_is_written().await;

    let uids = |pods: &[Pod]| pods.iter().map(|pod| pod.uid().unwrap()).collect::<Vec<_>>();
    assert_eq!(uids(&pods(&bench).await), uids(&ready), "no Pod is replaced");
    let set_now = bench.get::<StatefulSet>("hub").await.unwrap();
    let (before, now) = (set.spec.unwrap().template, set_now.spec.unwrap().template);
    assert_eq!(now, before);
    let now = bench.get::<Deployment>("fleeting").await.unwrap();
    assert_eq!(now.spec.unwrap().template, deployment.spec.unwrap().template);
    let key = bench.get::<Secret>("hub-ca-key").await.unwrap();
    assert_eq!(key.data, authority, "clients trust the same authority");
    let adopted = names_of_adopted(&bench).await;
    for (kind, objects) in &backup {
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap();
            let live = api(&bench, &kind.resource()).get(name).await.unwrap();
            let mirror = &live.labels()["app.kubernetes.io/instance"];
            let mirror = bench.get::<RegistryMirror>(mirror).await.unwrap();
            let owned = live
                .owner_references()
                .iter()
                .any(|owner| Some(&owner.uid) == mirror.metadata.uid.as_ref());
            assert!(owned, "{kind} {name}");
            assert!(
                adopted.contains(&format!("{kind} {name}")),
                "{kind} {name}: {adopted:?}"
            );
        }
    }
}

/// Mirrors that come between their objects, or before all of them, become ready as well.
#[tokio::test]
async fn restore_in_any_order_converges() {
    let bench = Bench::start("orders").await;
    let _kubelet = kubelet(&bench).await;
    let (name, spec) = ("fleeting", ephemeral());
    bench.mirror(name, spec.clone()).await;
    until_serving(&bench, &[name]).await;
    let backup = back_up(&bench).await;
    // The number of kinds that are restored before the mirror.
    for before in [5, 0] {
        lose(&bench, &[name]).await;
        restore(&bench, &backup, &ORDER[..before]).await;
        let mirror = bench.mirror(name, spec.clone()).await;
        restore(&bench, &backup, &ORDER[before..]).await;
        until_serving(&bench, &[name]).await;
        bench.until_accepted(name).await;
        bench.until_nothing_is_written().await;
        for kind in ORDER {
            for object in &backup[&kind] {
                let object = object["metadata"]["name"].as_str().unwrap();
                let live = api(&bench, &kind.resource()).get(object).await.unwrap();
                let owners = live.owner_references();
                assert!(
                    owners
                        .iter()
                        .any(|owner| Some(&owner.uid) == mirror.metadata.uid.as_ref()),
                    "{kind} {object}"
                );
            }
        }
    }
}

/// Of a claim the mirror that it was made for is marked, whatever else is restored; a namespace may have another name.
#[tokio::test]
async fn pvcs_restored_to_other_namespace_are_adopted() {
    let before = Bench::start("moved-from").await;
    before.mirror("hub", with_claims("16Mi")).await;
    before.until_accepted("hub").await;
    let backup = back_up(&before).await;
    let after = Bench::start("moved-to").await;
    restore(&after, &backup, &[Kind::PersistentVolumeClaim]).await;
    let claim = after.get::<PersistentVolumeClaim>("cache-hub-0").await.unwrap();
    let mirror = after.mirror("hub", with_claims("16Mi")).await;
    after.until_accepted("hub").await;
    let adopted = after.get::<PersistentVolumeClaim>("cache-hub-0").await.unwrap();
    assert!(adopted.uid() == claim.uid() && belongs_to(&adopted, &mirror));
}

/// An object that the operator may not adopt is reported with the cause, and all other objects are adopted.
#[tokio::test]
async fn refused_adoption_is_a_name_conflict() {
    if skip_on_existing_cluster("refused_adoption_is_a_name_conflict") {
        return;
    }
    let bench = Bench::start("unadopted").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let backup = back_up(&bench).await;
    lose(&bench, &["hub"]).await;
    forbid_deletion(&bench, "serviceaccounts").await;
    restore(&bench, &backup, &ORDER).await;
    let mirror = bench.mirror("hub", ephemeral()).await;
    let reported = bench
        .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    let cause = "ServiceAccount hub not adopted, rejected by the API server: ";
    assert!(reported.message.contains(cause), "{}", reported.message);
    let map = bench.get::<ConfigMap>("hub-config").await.unwrap();
    let deployment = bench.get::<Deployment>("hub").await.unwrap();
    assert!(belongs_to(&map, &mirror) && belongs_to(&deployment, &mirror));
}

/// An object with one mark missing is a user's: the instance, or the annotation that each write of the operator leaves.
#[tokio::test]
async fn object_without_all_marks_is_not_adopted() {
    for (instance, annotations) in [
        ("other", json!({"registrymirror.io/applied": "0"})),
        ("hub", json!({})),
    ] {
        let bench = Bench::start("unmarked").await;
        let labels = json!({
            "app.kubernetes.io/managed-by": "registry-mirror", "app.kubernetes.io/instance": instance,
            "app.kubernetes.io/name": "registry-mirror", "app.kubernetes.io/component": "mirror",
        });
        let metadata = json!({"name": "hub-config", "labels": labels, "annotations": annotations});
        let before: ConfigMap = bench
            .apply(json!({"metadata": metadata, "data": {"mine": "yes"}}))
            .await;
        bench.mirror("hub", ephemeral()).await;
        bench
            .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
            .await;
        let after = bench.get::<ConfigMap>("hub-config").await.unwrap();
        assert_eq!(after.resource_version(), before.resource_version());
    }
}

/// The key of a CA can't be made again: a mirror that asks for none neither adopts nor deletes it.
#[tokio::test]
async fn backup_ca_key_survives_mirror_without_tls() {
    let bench = Bench::start("kept-key").await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "SelfSigned"});
    bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    let backup = back_up(&bench).await;
    let key = bench.get::<Secret>("hub-ca-key").await.unwrap().data;
    lose(&bench, &["hub"]).await;
    restore(&bench, &backup, &ORDER).await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    bench.until_nothing_is_written().await;
    let kept = bench.get::<Secret>("hub-ca-key").await.unwrap();
    assert!(kept.data == key && kept.owner_references().is_empty());
    let mirror = bench.mirror("hub", spec).await;
    bench.until_accepted("hub").await;
    bench
        .until("hub-ca-key", "its owner", |secret: &Secret| {
            belongs_to(secret, &mirror).then_some(())
        })
        .await;
    assert_eq!(bench.get::<Secret>("hub-ca-key").await.unwrap().data, key);
}
