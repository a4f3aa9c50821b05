//! Faults between the operator and the API server: kills between any two writes, interrupted watches, compacted
//! history, an API server or an etcd that is away.

use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::api::{DynamicObject, ListParams};
use kube::{Api, ResourceExt};
use operator::kind::Kind;
use serde_json::{Value, json};
use testbed::ControlPlane;
use testbed::control_plane::{Options, skip_on_existing_cluster};
use testbed::faults::Faults;

use crate::bench::{Bench, condition, ephemeral, soon, text, with_claims};

/// More writes than any change here takes.
const MANY: usize = 60;
/// As long as a disk may hang.
const ETCD_AWAY: Duration = Duration::from_secs(30);
/// Long enough for every watch to be asked for in vain.
const API_SERVER_AWAY: Duration = Duration::from_secs(5);

/// Every object of a mirror, without what differs from one namespace and one moment to the next.
async fn children(bench: &Bench) -> Vec<Value> {
    let service = bench.get::<Service>("hub").await.unwrap();
    let address = service.spec.unwrap().cluster_ip.unwrap();
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    let uid = mirror.uid().unwrap();
    let mut all = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pod) {
        let api: Api<DynamicObject> =
            Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), &kind.resource());
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=registry-mirror");
        for object in api.list(&ours).await.unwrap() {
            let mut object = json!({
                "kind": kind.to_string(), "name": object.name_any(), "labels": object.labels(),
                "annotations": object.annotations(), "data": object.data,
            });
            object["data"].as_object_mut().unwrap().remove("status");
            // A cluster has a default class from when a test beside this one needs one.
            let moving = ["clusterIP", "clusterIPs", "volumeName", "storageClassName"];
            if let Some(spec) = object.pointer_mut("/data/spec").and_then(Value::as_object_mut) {
                spec.retain(|field, _| !moving.contains(&field.as_str()));
            }
            // No two mirrors have the same keys.
            let data = object.pointer_mut("/data/data").and_then(Value::as_object_mut);
            for (name, value) in data.into_iter().flatten() {
                let ends = [".crt", ".key", ".pem", "secret"];
                let drawn = ends.iter().any(|end| name.ends_with(end));
                if drawn {
                    *value = json!("DRAWN");
                }
            }
            if let Some(annotations) = object["annotations"].as_object_mut() {
                annotations.retain(|name, _| name == "registrymirror.io/cache-of");
            }
            let text = object.to_string().replace(bench.namespace.name(), "NAMESPACE");
            let text = text.replace(&address, "ADDRESS").replace(&uid, "UID");
            all.push(serde_json::from_str(&text).unwrap());
        }
    }
    all
}

/// A mirror of a namespace of its own, made and then changed in all that can be.
struct Life {
    bench: Bench,
}

impl Life {
    async fn begin(name: &str) -> Self {
        let bench = Bench::idle(name).await;
        bench.login("quay", "ann", "old").await;
        Self { bench }
    }

    async fn made(&self) {
        let mut spec = with_claims("1Gi");
        spec["upstreams"][0]["credentialsSecretRef"] = json!({"name": "quay"});
        spec["tls"] = json!({"mode": "SelfSigned"});
        self.bench.mirror("hub", spec).await;
    }

    /// Another password, another cache, another shape.
    async fn changed(&self) {
        self.bench.login("quay", "ann", "new").await;
        let mut spec = with_claims("1Gi");
        spec["upstreams"][0]["credentialsSecretRef"] = json!({"name": "quay"});
        spec["tls"] = json!({"mode": "SelfSigned"});
        spec["cache"] = json!({"tagTTL": "10s"});
        spec["replicas"] = json!(2);
        spec["nodeConfiguration"] = json!({"mode": "None"});
        spec["observability"] = json!({"logFormat": "text"});
        self.bench.mirror("hub", spec).await;
    }

    /// Through a connection that dies after so many writes; how many there were in the end, if it did not.
    async fn operated(&mut self, writes: usize, done: impl AsyncFn(&Bench)) -> Option<usize> {
        let faults = Faults::after(writes);
        let config = self.bench.config().await;
        self.bench.start_operator_through(faults.client(config).unwrap());
        tokio::select! {
            () = faults.died() => {
                self.bench.kill_operator();
                None
            }
            () = done(&self.bench) => {
                self.bench.kill_operator();
                Some(faults.writes())
            }
        }
    }
}

/// All is there that the first spec asks for, and said.
async fn made(bench: &Bench) {
    settled(bench, 1, 1).await;
}

/// The same of the second.
async fn changed(bench: &Bench) {
    settled(bench, 2, 2).await;
    bench
        .until("hub-credentials", "second version", |secret: &Secret| {
            (text(secret, "version").as_deref() == Some("2")).then_some(())
        })
        .await;
}

async fn settled(bench: &Bench, generation: i64, replicas: i32) {
    bench
        .until("hub", "a status that says it all", |mirror: &RegistryMirror| {
            let status = mirror.status.as_ref()?;
            let reported = condition(mirror, ConditionType::Progressing)?;
            let credentials = status.upstreams.first()?.credentials.as_ref()?;
            (mirror.metadata.generation == Some(generation)
                && status.observed_generation == Some(generation)
                && status.replicas == replicas
                && credentials.version == i64::from(replicas)
                && status.endpoint.is_some()
                && reported.message.contains(&format!(" of {replicas} replicas")))
            .then_some(())
        })
        .await;
    bench.until_nothing_is_written().await;
}

/// An operator that is killed between any two writes leaves what the next one completes.
#[tokio::test]
async fn operator_killed_between_writes_is_completed() {
    if skip_on_existing_cluster("operator_killed_between_writes_is_completed") {
        return;
    }
    let mut undisturbed = Life::begin("prefix").await;
    undisturbed.made().await;
    let to_make = undisturbed.operated(MANY, made).await.expect("it lives");
    let all_made = children(&undisturbed.bench).await;
    undisturbed.changed().await;
    let to_change = undisturbed.operated(MANY, changed).await.expect("it lives");
    let all_changed = children(&undisturbed.bench).await;
    assert!(to_make > 8 && to_change > 5, "{to_make} {to_change}");

    let lives = (0..to_make.max(to_change)).map(|writes| {
        let (all_made, all_changed) = (&all_made, &all_changed);
        async move {
            let mut life = Life::begin("prefix").await;
            life.made().await;
            life.operated(writes, made).await;
            life.operated(MANY, made).await.expect("it lives");
            assert_eq!(
                &children(&life.bench).await,
                all_made,
                "killed after {writes} writes"
            );
            life.changed().await;
            life.operated(writes, changed).await;
            life.operated(MANY, changed).await.expect("it lives");
            assert_eq!(
                &children(&life.bench).await,
                all_changed,
                "killed after {writes} writes"
            );
        }
    });
    stream::iter(lives).buffer_unordered(4).collect::<Vec<()>>().await;
}

/// Changes are noticed that happen while watches are cut and their history is gone.
#[tokio::test]
async fn changes_during_watch_gaps_are_noticed() {
    let mut bench = Bench::idle("gone").await;
    let faults = Faults::default();
    let config = bench.config().await;
    bench.start_operator_through(faults.client(config).unwrap());
    bench.login("quay", "ann", "old").await;
    let mut spec = ephemeral();
    spec["upstreams"][0]["credentialsSecretRef"] = json!({"name": "quay"});
    bench.mirror("hub", spec).await;
    bench.until_accepted("hub").await;
    bench.mirror("other", ephemeral()).await;
    bench.until_accepted("other").await;

    faults.cut_watches(true);
    bench.delete::<ConfigMap>("hub-config").await;
    bench.delete::<RegistryMirror>("other").await;
    bench.login("quay", "ann", "new").await;
    bench.mirror("next", ephemeral()).await;
    soon("a watch with an old resource version", async || {
        (faults.answered_gone() > 0).then_some(())
    })
    .await;
    faults.cut_watches(false);
    bench
        .until("hub-config", "new ConfigMap", |_: &ConfigMap| Some(()))
        .await;
    bench
        .until("hub-credentials", "second version", |secret: &Secret| {
            (text(secret, "version").as_deref() == Some("2")).then_some(())
        })
        .await;
    bench.until_accepted("next").await;
    bench.until_gone::<Service>("other").await;
}

/// An API server of the test's own, which is let down in several ways; an operator in this process, which has no Lease
/// to lose.
#[tokio::test]
async fn api_server_outage_costs_only_its_duration() {
    if skip_on_existing_cluster("api_server_outage_costs_only_its_duration") {
        return;
    }
    let control_plane: &'static ControlPlane =
        Box::leak(Box::new(ControlPlane::start(Options::default()).await.unwrap()));
    let mut bench = Bench::on(control_plane, "away").await;
    bench.start_operator().await;
    bench.mirror("one", ephemeral()).await;
    bench.until_accepted("one").await;

    control_plane.hang_etcd().unwrap();
    tokio::time::sleep(ETCD_AWAY).await;
    control_plane.wake_etcd().unwrap();
    soon("an answer", async || {
        bench.api::<Pod>().list(&ListParams::default()).await.ok()
    })
    .await;
    bench.mirror("two", ephemeral()).await;
    bench.until_accepted("two").await;

    control_plane.kill_api_server();
    tokio::time::sleep(API_SERVER_AWAY).await;
    control_plane.start_api_server().await.unwrap();
    // A restarted API server no longer has the watched history.
    bench.delete::<ConfigMap>("one-config").await;
    bench.mirror("three", ephemeral()).await;
    bench.until_accepted("three").await;
    bench
        .until("one-config", "new ConfigMap", |_: &ConfigMap| Some(()))
        .await;
    bench
        .until("one", "as before", |deployment: &Deployment| {
            (deployment.spec.as_ref()?.replicas == Some(1)).then_some(())
        })
        .await;
    bench
        .until_condition(
            "three",
            ConditionType::Available,
            "False",
            Reason::NoReadyReplicas,
        )
        .await;
    bench.until_nothing_is_written().await;
}
