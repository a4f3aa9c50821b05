//! A steady state, in which the operator writes nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use operator::kind::Kind;
use operator::policy::{AffinityScope, ExistingClaimMode, PatternList, PodSecurity, Policy};
use serde_json::{Value, json};
use testbed::control_plane::{dry_run, skip_on_existing_cluster};

use crate::bench::{Bench, soon, with_claims, with_credentials};

/// A second reconcile of unchanged mirrors writes nothing.
#[tokio::test]
async fn second_reconcile_writes_nothing() {
    if skip_on_existing_cluster("second_reconcile_writes_nothing") {
        return;
    }
    let mut bench = Bench::start("quiet").await;
    bench.login("quay", "ann", "pw").await;
    bench.mirror("claims", with_claims("1Gi")).await;
    bench.mirror("secret", with_credentials("quay")).await;
    bench.mirror("missing", with_credentials("nowhere")).await;
    until_settled(&bench).await;

    // An operator that starts reconciles every mirror.
    bench.stop_operator().await;
    let mark = bench.mark().await;
    bench.start_operator().await;
    soon("look at every mirror", async || {
        (bench.reconciles() >= 3).then_some(())
    })
    .await;
    // So does a Secret that changes in nothing that counts.
    let looks = bench.reconciles();
    bench
        .merge::<Secret>("quay", json!({"metadata": {"annotations": {"note": "x"}}}))
        .await;
    soon("look at one mirror", async || {
        (bench.reconciles() > looks).then_some(())
    })
    .await;
    assert_eq!(bench.writes(mark), [""; 0]);
}

/// Ten resyncs of all mirrors write nothing, also if conditions are false.
#[tokio::test]
async fn ten_resyncs_write_nothing() {
    if skip_on_existing_cluster("ten_resyncs_write_nothing") {
        return;
    }
    let mut bench = Bench::idle("resync").await;
    bench.options.resync = Duration::from_millis(500);
    bench.login("quay", "ann", "pw").await;
    bench.secret("bad", json!({"user": "ann"})).await;
    bench.secret("taken-credentials", json!({"mine": "yes"})).await;
    bench.start_operator().await;
    for (name, spec) in [
        ("claims", with_claims("1Gi")),
        ("secret", with_credentials("quay")),
        ("missing", with_credentials("nowhere")),
        ("malformed", with_credentials("bad")),
    ] {
        bench.mirror(name, spec).await;
    }
    until_settled(&bench).await;
    let mut refused = with_claims("1Gi");
    refused["service"] = json!({"clusterIP": "192.0.2.1"});
    for (name, spec, reason) in [
        ("taken", with_claims("1Gi"), Reason::NameConflict),
        ("refused", refused, Reason::InvalidSpec),
    ] {
        bench.mirror(name, spec).await;
        bench
            .until_condition(name, ConditionType::Accepted, "False", reason)
            .await;
    }
    // All but the Service is there.
    bench
        .until("refused", "one Pod", |mirror: &crds::RegistryMirror| {
            (mirror.status.as_ref()?.replicas == 1).then_some(())
        })
        .await;
    // A claim without a volume can't grow.
    bench.mirror("claims", with_claims("2Gi")).await;
    bench
        .until(
            "claims",
            "word of the refusal",
            |mirror: &crds::RegistryMirror| {
                let reported = crate::bench::condition(mirror, ConditionType::StorageReady)?;
                reported.message.contains("is immutable").then_some(())
            },
        )
        .await;
    let mut paused = with_claims("1Gi");
    paused["paused"] = json!(true);
    bench.mirror("paused", paused).await;
    bench
        .until_condition("paused", ConditionType::Paused, "True", Reason::PausedBySpec)
        .await;
    bench.until_looks(2 * 7).await;
    let mark = bench.mark().await;
    bench.until_looks(10 * 7).await;
    assert_eq!(bench.writes(mark), [""; 0]);
}

/// Repeated edits of a user are repaired with a growing back-off, and at the end.
#[tokio::test]
async fn repeated_edits_are_repaired_with_backoff() {
    if skip_on_existing_cluster("repeated_edits_are_repaired_with_backoff") {
        return;
    }
    let bench = Bench::start("contest").await;
    bench.mirror("hub", with_claims("1Gi")).await;
    until_settled(&bench).await;
    let mark = bench.mark().await;
    let looks = bench.reconciles();
    let started = Instant::now();
    let mut edits = 0;
    // Longer than an event takes to arrive.
    let reported = async || {
        let events = bench.api::<k8s_openapi::api::events::v1::Event>();
        let events = events.list(&ListParams::default()).await.unwrap();
        events.iter().any(|event| {
            let note = event.note.as_deref().unwrap_or_default();
            note.contains("ConfigMap hub-config not kept as applied")
        })
    };
    while edits < 50 || !reported().await {
        assert!(edits < 5_000, "no event after {edits} edits");
        let note = format!("version: {edits}");
        bench
            .merge::<ConfigMap>("hub-config", json!({"data": {"config.yml": note}}))
            .await;
        edits += 1;
    }
    let fought = started.elapsed();
    // A change of the spec is no part of the quarrel.
    let mut spec = with_claims("1Gi");
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    bench
        .until("hub", "second replica", |set: &StatefulSet| {
            (set.spec.as_ref()?.replicas == Some(2)).then_some(())
        })
        .await;
    bench
        .until("hub-config", "repair", |map: &ConfigMap| {
            map.data.as_ref()?["config.yml"].contains("quay.io").then_some(())
        })
        .await;
    let writes = bench.writes(mark);
    let repairs = writes
        .iter()
        .filter(|write| write.contains("configmaps hub-config"))
        .count();
    // Three at once, then after 1, 2, 4… s: the waits add up to less than the whole time.
    let waits = (started.elapsed().as_secs() + 2).ilog2() as usize + 1;
    assert!(
        repairs <= 3 + waits,
        "{repairs} repairs of {edits} edits within {fought:?}: {writes:#?}"
    );
    assert!(bench.reconciles() > looks);
}

/// A user who edits irrelevant fields without end costs a few reconciles a second and no write.
#[tokio::test]
async fn irrelevant_edits_cost_few_reconciles_no_write() {
    if skip_on_existing_cluster("irrelevant_edits_cost_few_reconciles_no_write") {
        return;
    }
    let bench = Bench::start("hot-loop").await;
    bench.login("quay", "ann", "pw").await;
    bench.mirror("hub", with_credentials("quay")).await;
    until_settled(&bench).await;
    let (mark, looks, started) = (bench.mark().await, bench.reconciles(), Instant::now());
    let mut edits = 0;
    // More than the rate limit admits without a pause.
    while edits < 300 || started.elapsed() < Duration::from_secs(5) {
        let note = json!({"metadata": {"annotations": {"edit": edits.to_string()}}});
        bench.merge::<ConfigMap>("hub-config", note).await;
        edits += 1;
    }
    let seconds = started.elapsed().as_secs();
    let looks = bench.reconciles() - looks;
    let most = 40 + 4 * (seconds + 2);
    assert!(
        looks <= most,
        "{looks} reconciles for {edits} edits within {seconds} s"
    );
    assert_eq!(bench.writes(mark), [""; 0]);
    let requests = bench.requests(mark);
    // Each look reads what the spec refers to, and what servers were handed.
    assert!(
        requests <= 4 * looks + 20,
        "{requests} requests for {looks} looks"
    );
}

/// A mirror of the sample spec takes twelve writes at most.
#[tokio::test]
async fn sample_mirror_takes_twelve_writes_at_most() {
    if skip_on_existing_cluster("sample_mirror_takes_twelve_writes_at_most") {
        return;
    }
    let bench = Bench::start("writes").await;
    bench.login("quay", "ann", "pw").await;
    let mark = bench.mark().await;
    let mut spec = with_claims("1Gi");
    spec["upstreams"][0]["credentialsSecretRef"] = json!({"name": "quay"});
    bench.mirror("hub", spec).await;
    until_settled(&bench).await;
    let writes = bench.writes(mark);
    assert!(writes.len() <= 12, "{}: {writes:#?}", writes.len());
}

/// Waits until every mirror says what its workload has come to without a kubelet, and nothing more is written.
async fn until_settled(bench: &Bench) {
    let mirrors = bench.api::<crds::RegistryMirror>();
    for mirror in mirrors.list(&ListParams::default()).await.unwrap() {
        let name = mirror.name_any();
        bench.until_accepted(&name).await;
        bench
            .until(
                &name,
                "one Pod that is not ready",
                |mirror: &crds::RegistryMirror| {
                    let status = mirror.status.as_ref()?;
                    let reported = crate::bench::condition(mirror, ConditionType::Progressing)?;
                    (status.replicas == 1 && reported.message.starts_with("1 of 1")).then_some(())
                },
            )
            .await;
    }
}

/// The specs of the golden files.
fn specs() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/tests/specs");
    let files = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let specs = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    specs
        .map(|path| {
            let document: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            (
                path.file_stem().unwrap().to_str().unwrap().to_owned(),
                document["spec"].clone(),
            )
        })
        .collect()
}

/// The objects of the golden files, as they stand there.
fn golden(name: &str) -> Vec<Value> {
    let path = format!("../operator/tests/snapshots/desired__{name}.snap");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let yaml = text.splitn(3, "---\n").nth(2).unwrap();
    serde_saphyr::from_str(yaml).unwrap()
}

/// A restricted namespace accepts every golden set, and pods of every template.
#[tokio::test]
async fn restricted_namespace_accepts_golden_objects() {
    let bench = Bench::idle("restricted").await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(bench.namespace.client());
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    namespaces
        .patch(
            bench.namespace.name(),
            &PatchParams::default(),
            &Patch::Merge(&labels),
        )
        .await
        .unwrap();
    bench
        .apply::<k8s_openapi::api::core::v1::ServiceAccount>(json!({"metadata": {"name": "hub"}}))
        .await;
    for (name, _) in specs() {
        for object in golden(&name) {
            accepted(&bench, &name, object).await;
        }
    }
}

async fn accepted(bench: &Bench, spec: &str, mut object: Value) {
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.resource().kind == object["kind"])
        .unwrap();
    object["metadata"]["namespace"] = json!(bench.namespace.name());
    if kind == Kind::Secret {
        // The golden files have them in clear.
        for value in object["data"].as_object_mut().unwrap().values_mut() {
            *value = json!(STANDARD.encode(value.as_str().unwrap()));
        }
    }
    if let Some(address) = object
        .pointer_mut("/spec/clusterIP")
        .filter(|address| *address != "None")
    {
        // One of this cluster's range, and of one family.
        *address = json!("10.96.200.200");
        object["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    }
    let template = object.pointer("/spec/template").cloned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let api: Api<DynamicObject> =
        Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), &kind.resource());
    let params = PatchParams::apply("test").dry_run().validation_strict();
    let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
    let applied = applied.unwrap_or_else(|error| panic!("{spec}: {kind} {name}: {error}"));
    let live = serde_json::to_value(&applied).unwrap();
    assert!(
        operator::apply::diff::contains(&live, &object),
        "{spec}: {kind} {name}: {live:#} lacks {object:#}"
    );
    if let Some(mut template) = template {
        template["apiVersion"] = json!("v1");
        template["kind"] = json!("Pod");
        template["metadata"]["name"] = json!("pod");
        let volumes = template
            .pointer_mut("/spec/volumes")
            .unwrap()
            .as_array_mut()
            .unwrap();
        if !volumes.iter().any(|volume| volume["name"] == "cache") {
            volumes.push(json!({"name": "cache", "persistentVolumeClaim": {"claimName": "cache-hub-0"}}));
        }
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(template).unwrap();
        let made = bench.api().create(&dry_run(), &pod).await;
        made.unwrap_or_else(|error| panic!("{spec}: a Pod of {kind} {name}: {error}"));
    }
}

/// Returns a policy that allows every spec.
fn open_policy() -> Policy {
    let every = || PatternList::new(&["**".to_owned()]).unwrap();
    Policy {
        images: every(),
        priority_classes: every(),
        annotations: every(),
        labels: every(),
        tolerations: every(),
        existing_claims: ExistingClaimMode::Any,
        pod_security: PodSecurity::Any,
        affinity_namespaces: AffinityScope::Any,
        ..Policy::default()
    }
}

/// Every golden spec is applied once and then causes no write.
#[tokio::test]
async fn golden_specs_are_applied_once() {
    if skip_on_existing_cluster("golden_specs_are_applied_once") {
        return;
    }
    let mut bench = Bench::idle("golden").await;
    // Together they have every field, and one of them a PVC that does not exist.
    bench.options.policy = open_policy();
    bench.start_operator().await;
    let authority = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/tests/specs/authority.pem"),
    );
    let authority = authority.unwrap();
    bench
        .apply::<ConfigMap>(json!({"metadata": {"name": "authorities"}, "data": {"ca.crt": authority}}))
        .await;
    bench.secret("authorities", json!({"root.pem": authority})).await;
    bench.login("basic", "bob", "pw").await;
    bench
        .secret(
            "bucket",
            json!({"accesskey": "key", "secretkey": "only-for-this-test"}),
        )
        .await;
    let file = |name: &str| {
        let specs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/tests/specs");
        fs::read_to_string(specs.join(name)).unwrap()
    };
    let pair = json!({"tls.crt": file("serving.pem"), "tls.key": file("serving-key.pem")});
    bench.secret("serving", pair).await;
    let users = "ann:$2y$10$CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm";
    bench
        .secret("users", json!({"htpasswd": users, "people": users}))
        .await;
    let names: Vec<_> = specs().into_iter().map(|(name, _)| name).collect();
    for (name, mut spec) in specs() {
        if let Some(service) = spec.get_mut("service").and_then(Value::as_object_mut) {
            service.remove("clusterIP");
            service.remove("nodePort");
            service.insert("ipFamilyPolicy".to_owned(), json!("SingleStack"));
        }
        bench.mirror(&name, spec).await;
    }
    for name in names.iter().filter(|name| *name != "paused") {
        bench.until_accepted(name).await;
    }
    bench
        .until_condition("paused", ConditionType::Paused, "True", Reason::PausedBySpec)
        .await;
    assert!(
        bench.get::<ConfigMap>("paused-config").await.is_none(),
        "left alone"
    );
    bench
        .until_condition(
            "no-replicas",
            ConditionType::Available,
            "False",
            Reason::ScaledToZero,
        )
        .await;
    quiet(&bench).await;
    bench.stop_operator().await;
    let mark = bench.mark().await;
    bench.start_operator().await;
    soon("look at every mirror", async || {
        (bench.reconciles() >= names.len() as u64).then_some(())
    })
    .await;
    assert_eq!(bench.writes(mark), [""; 0]);
}

/// Waits until every workload's controller has said what it sees, and the operator has passed it on.
async fn quiet(bench: &Bench) {
    let mirrors = bench.api::<crds::RegistryMirror>();
    soon("word of every workload", async || {
        let mirrors = mirrors.list(&ListParams::default()).await.unwrap();
        // One that was paused from the start has none.
        let reported = mirrors.iter().filter(|mirror| !mirror.spec.paused).all(|mirror| {
            let replicas = mirror.status.as_ref().map_or(-1, |status| status.replicas);
            let reported = crate::bench::condition(mirror, ConditionType::Progressing)
                .map(|reported| reported.message.clone());
            replicas == mirror.spec.replicas
                && reported.is_some_and(|reported| {
                    reported.starts_with(&format!("{replicas} of")) || reported.starts_with("all replicas")
                })
        });
        reported.then_some(())
    })
    .await;
}
