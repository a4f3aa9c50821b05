//! Changes of a mirror's objects by users and other controllers: each is repaired, and none stops a later update.

use std::fmt;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use operator::kind::Kind;
use serde_json::{Value, json};

use crate::bench::{Bench, condition, ephemeral, soon, with_claims};
use crate::policies::Policy;

/// A change that a user makes to an object of a mirror.
struct Change {
    kind: Kind,
    /// The end of the object's name, after the mirror's.
    suffix: &'static str,
    /// A merge patch.
    patch: Value,
    /// The part of the object that has to be as before.
    repaired: &'static str,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} *{}: {}", self.kind, self.suffix, self.patch)
    }
}

fn change(kind: Kind, suffix: &'static str, patch: Value, repaired: &'static str) -> Change {
    Change {
        kind,
        suffix,
        patch,
        repaired,
    }
}

fn changes_of_services() -> Vec<Change> {
    let service =
        |suffix, spec: Value, repaired| change(Kind::Service, suffix, json!({"spec": spec}), repaired);
    let other_port = json!([{"name": "registry", "port": 6000, "protocol": "TCP", "targetPort": 80}]);
    vec![
        service("", json!({"selector": {"team": "none"}}), "/spec/selector"),
        service("", json!({"selector": null}), "/spec/selector"),
        service("", json!({"ports": other_port}), "/spec/ports"),
        service("", json!({"type": "NodePort"}), "/spec/type"),
        service(
            "",
            json!({"type": "ExternalName", "externalName": "evil.example", "clusterIP": null, "clusterIPs": null}),
            "/spec/clusterIP",
        ),
        service(
            "",
            json!({"sessionAffinity": "ClientIP"}),
            "/spec/sessionAffinity",
        ),
        service(
            "",
            json!({"publishNotReadyAddresses": true}),
            "/spec/publishNotReadyAddresses",
        ),
        service(
            "",
            json!({"internalTrafficPolicy": "Local"}),
            "/spec/internalTrafficPolicy",
        ),
        service(
            "-headless",
            json!({"selector": {"team": "none"}}),
            "/spec/selector",
        ),
        service("-headless", json!({"ports": other_port}), "/spec/ports"),
        service(
            "-headless",
            json!({"publishNotReadyAddresses": false}),
            "/spec/publishNotReadyAddresses",
        ),
        service(
            "-headless",
            json!({"type": "ExternalName", "externalName": "evil.example", "clusterIP": null, "clusterIPs": null}),
            "/spec/clusterIP",
        ),
    ]
}

fn changes_of_workloads() -> Vec<Change> {
    let (pod, volumes) = ("/spec/template/spec", "/spec/template/spec/volumes");
    let workload = |spec: Value, repaired| change(Kind::Deployment, "", json!({"spec": spec}), repaired);
    let template = |spec: Value, repaired| workload(json!({"template": {"spec": spec}}), repaired);
    vec![
        workload(json!({"paused": true}), "/spec/paused"),
        workload(json!({"replicas": 5}), "/spec/replicas"),
        workload(json!({"minReadySeconds": 60}), "/spec/minReadySeconds"),
        workload(
            json!({"strategy": {"type": "Recreate", "rollingUpdate": null}}),
            "/spec/strategy",
        ),
        workload(
            json!({"template": {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}}),
            "/spec/template/metadata/labels",
        ),
        template(json!({"hostNetwork": true}), pod),
        template(json!({"hostPID": true, "hostIPC": true}), pod),
        template(json!({"nodeName": "node-1"}), "/spec/template/spec/nodeName"),
        template(
            json!({"readinessGates": [{"conditionType": "example.com/never"}]}),
            pod,
        ),
        template(
            json!({"serviceAccountName": "default"}),
            "/spec/template/spec/serviceAccountName",
        ),
        template(json!({"automountServiceAccountToken": true}), pod),
        template(
            json!({"volumes": [{"name": "config", "hostPath": {"path": "/"}, "configMap": null}]}),
            volumes,
        ),
        change(
            Kind::PodDisruptionBudget,
            "",
            json!({"spec": {"maxUnavailable": null, "minAvailable": 2}}),
            "/spec",
        ),
        change(
            Kind::PodDisruptionBudget,
            "",
            json!({"spec": {"selector": {"matchLabels": {"team": "none"}}}}),
            "/spec/selector",
        ),
        change(
            Kind::ServiceAccount,
            "",
            json!({"automountServiceAccountToken": true}),
            "/automountServiceAccountToken",
        ),
        change(
            Kind::ConfigMap,
            "-config",
            json!({"data": {"config.yml": null}, "binaryData": {"config.yml": "YQ=="}}),
            "/data/config.yml",
        ),
        change(
            Kind::Secret,
            "-credentials",
            json!({"data": {"config.json": "e30="}}),
            "/data/config.json",
        ),
    ]
}

/// Changes that the operator repairs by other means than fields, and those that stay and harm nothing.
fn changes_of_metadata() -> Vec<Change> {
    let metadata = |kind, suffix, metadata: Value, repaired| {
        change(kind, suffix, json!({"metadata": metadata}), repaired)
    };
    let kinds = [
        (Kind::Service, ""),
        (Kind::Service, "-headless"),
        (Kind::ServiceAccount, ""),
        (Kind::ConfigMap, "-config"),
        (Kind::Secret, "-credentials"),
        (Kind::PodDisruptionBudget, ""),
        (Kind::Deployment, ""),
    ];
    let each = kinds.into_iter().flat_map(|(kind, suffix)| {
        let unlabelled = json!({"labels": {"app.kubernetes.io/managed-by": null}});
        [
            metadata(
                kind,
                suffix,
                json!({"ownerReferences": null}),
                "/metadata/ownerReferences",
            ),
            metadata(kind, suffix, unlabelled, "/metadata/labels"),
            metadata(
                kind,
                suffix,
                json!({"finalizers": ["example.com/mine"]}),
                "/metadata/labels",
            ),
        ]
    });
    each.collect()
}

fn objects(bench: &Bench, kind: Kind) -> Api<DynamicObject> {
    let resource = kind.resource();
    Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), &resource)
}

/// Returns a part of an object, which no object of these kinds lacks for long.
async fn part(bench: &Bench, kind: Kind, name: &str, pointer: &str) -> Option<Value> {
    let object = objects(bench, kind).get(name).await.unwrap();
    serde_json::to_value(object).unwrap().pointer(pointer).cloned()
}

/// Makes a change to a mirror of its own, and waits until it is repaired.
async fn is_repaired(bench: &Bench, mirror: &str, change: &Change) {
    let name = format!("{mirror}{}", change.suffix);
    let before = part(bench, change.kind, &name, change.repaired).await;
    let patch = if change.repaired.ends_with("/volumes") {
        // Changes one volume of the list.
        Patch::Strategic(&change.patch)
    } else {
        Patch::Merge(&change.patch)
    };
    let objects = objects(bench, change.kind);
    let patched = objects.patch(&name, &PatchParams::default(), &patch).await;
    patched.unwrap_or_else(|error| panic!("{change}: {error}"));
    soon(&format!("repair of {change}"), async || {
        (part(bench, change.kind, &name, change.repaired).await == before).then_some(())
    })
    .await;
}

/// Starts a mirror for each change, makes all changes, and then rolls out a change of each spec.
async fn all_are_repaired(bench: &Bench, changes: &[Change]) {
    let spec = |label: &str| {
        let mut spec = ephemeral();
        spec["replicas"] = json!(2);
        spec["pod"] = json!({"labels": {"team": label}});
        spec
    };
    let names: Vec<_> = (0..changes.len()).map(|index| format!("m{index}")).collect();
    join_all(names.iter().map(|name| bench.mirror(name, spec("a")))).await;
    for name in &names {
        bench.until_accepted(name).await;
    }
    bench.until_nothing_is_written().await;
    join_all(
        names
            .iter()
            .zip(changes)
            .map(|(name, change)| is_repaired(bench, name, change)),
    )
    .await;
    join_all(names.iter().map(|name| bench.mirror(name, spec("b")))).await;
    for (name, change) in names.iter().zip(changes) {
        let what = format!("an update after {change}");
        bench
            .until(name, &what, |deployment: &Deployment| {
                let template = &deployment.spec.as_ref()?.template;
                let labels = template.metadata.as_ref()?.labels.as_ref()?;
                (labels.get("team")? == "b").then_some(())
            })
            .await;
        bench.until_accepted(name).await;
    }
    let finalizers = json!({"metadata": {"finalizers": null}});
    for (name, change) in names.iter().zip(changes) {
        let (params, patch) = (PatchParams::default(), Patch::Merge(&finalizers));
        let name = format!("{name}{}", change.suffix);
        objects(bench, change.kind)
            .patch(&name, &params, &patch)
            .await
            .unwrap();
    }
}

/// Each foreign change of a Service is repaired.
#[tokio::test]
async fn foreign_change_of_a_service_is_repaired() {
    let bench = Bench::start("foreign-service").await;
    all_are_repaired(&bench, &changes_of_services()).await;
}

/// Each foreign change of a workload, its configuration and its budget is repaired; the admission policies refuse no write.
#[tokio::test]
async fn foreign_change_of_a_workload_is_repaired() {
    let bench = Bench::start("foreign-workload").await;
    all_are_repaired(&bench, &changes_of_workloads()).await;
}

/// Owners and labels come back, and a finalizer stops no update.
#[tokio::test]
async fn foreign_change_of_metadata_stops_no_update() {
    let bench = Bench::start("foreign-metadata").await;
    all_are_repaired(&bench, &changes_of_metadata()).await;
}

/// The partition and the ordinals of a `StatefulSet` are repaired, too.
#[tokio::test]
async fn foreign_change_of_a_stateful_set_is_repaired() {
    let bench = Bench::start("foreign-set").await;
    bench.mirror("hub", with_claims("1Gi")).await;
    bench.until_accepted("hub").await;
    let changes = [
        json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 9}}}}),
        json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}),
        json!({"spec": {"ordinals": {"start": 4}}}),
    ];
    for patch in changes {
        bench.merge::<StatefulSet>("hub", patch.clone()).await;
        let what = format!("repair of {patch}");
        bench
            .until("hub", &what, |set: &StatefulSet| {
                let spec = set.spec.as_ref()?;
                let strategy = spec.update_strategy.as_ref()?;
                let rolling = strategy.rolling_update.as_ref();
                let is_whole = rolling.is_none_or(|rolling| rolling.partition.unwrap_or(0) == 0);
                let is_repaired =
                    strategy.type_.as_deref() == Some("RollingUpdate") && is_whole && spec.ordinals.is_none();
                is_repaired.then_some(())
            })
            .await;
    }
}

/// A `ConfigMap` or Secret that a user made immutable is replaced with the next change.
#[tokio::test]
async fn immutable_object_is_replaced_on_change() {
    let bench = Bench::start("immutable").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    bench
        .merge::<ConfigMap>("hub-config", json!({"immutable": true}))
        .await;
    bench
        .merge::<Secret>("hub-credentials", json!({"immutable": true}))
        .await;
    let mut spec = ephemeral();
    spec["cache"] = json!({"tagTTL": "7s"});
    spec["upstreams"] = json!([{"host": "quay.io"}, {"host": "ghcr.io"}]);
    bench.mirror("hub", spec).await;
    bench
        .until("hub-config", "the change", |map: &ConfigMap| {
            map.data.as_ref()?["config.yml"].contains("ghcr.io").then_some(())
        })
        .await;
    bench.until_accepted("hub").await;
    assert!(bench.get::<Secret>("hub-credentials").await.is_some());
}

/// An immutable object that a finalizer keeps after its deletion is named with the action, and replaced once it is gone.
#[tokio::test]
async fn immutable_object_with_finalizer_is_named() {
    let bench = Bench::start("kept").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let kept = json!({"immutable": true, "metadata": {"finalizers": ["example.com/mine"]}});
    bench.merge::<ConfigMap>("hub-config", kept).await;
    let mut spec = ephemeral();
    spec["cache"] = json!({"tagTTL": "7s"});
    bench.mirror("hub", spec).await;
    let words = "ConfigMap hub-config not replaced: it is immutable, and a finalizer keeps it";
    bench
        .until("hub", "the finalizer", |mirror: &RegistryMirror| {
            let observed = &condition(mirror, ConditionType::Progressing)?.message;
            observed.contains(words).then_some(())
        })
        .await;
    bench
        .merge::<ConfigMap>("hub-config", json!({"metadata": {"finalizers": null}}))
        .await;
    bench
        .until("hub-config", "the change", |map: &ConfigMap| {
            map.data.as_ref()?["config.yml"].contains("7s").then_some(())
        })
        .await;
    bench
        .until("hub", "a status without it", |mirror: &RegistryMirror| {
            let observed = &condition(mirror, ConditionType::Progressing)?.message;
            (!observed.contains(words)).then_some(())
        })
        .await;
}

/// A write that the API server keeps refusing has a condition with its own reason, and an event.
#[tokio::test]
async fn lasting_refusal_has_a_reason_and_an_event() {
    let bench = Bench::start("lasting").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let expression = "!has(object.spec.template.metadata.labels.team)";
    let policy = Policy::require(&bench, ("apps", "v1", "deployments"), expression, "Forbidden").await;
    let mut spec = ephemeral();
    spec["pod"] = json!({"labels": {"team": "a"}});
    let deployments = bench.api::<Deployment>();
    // The policy is in force some time after its binding.
    soon("a refusal of the workload", async || {
        let dry = PatchParams::default().dry_run();
        let patch = json!({"spec": {"template": {"metadata": {"labels": {"team": "a"}}}}});
        let patched = deployments.patch("hub", &dry, &Patch::Merge(&patch)).await;
        patched.is_err().then_some(())
    })
    .await;
    bench.mirror("hub", spec).await;
    let observed = bench
        .until_hub(ConditionType::Progressing, "False", Reason::ApplyRejected)
        .await;
    for part in [
        "Deployment hub rejected by the API server: ",
        "not in this house",
        "have the quota, policy",
    ] {
        assert!(observed.message.contains(part), "{}", observed.message);
    }
    let events = bench.api::<k8s_openapi::api::events::v1::Event>();
    soon("an event", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        let mut reasons = events.iter().filter_map(|event| event.reason.as_deref());
        reasons.any(|reason| reason == "ApplyRejected").then_some(())
    })
    .await;
    policy.end().await;
    bench
        .until("hub", "the end of the refusal", |mirror: &RegistryMirror| {
            let progressing = condition(mirror, ConditionType::Progressing)?;
            (progressing.reason != Reason::ApplyRejected.as_str()).then_some(())
        })
        .await;
    assert!(bench.get::<Service>("hub").await.is_some());
}
