//! Where nothing changes, nothing is written.

use std::fs;
use std::path::Path;

use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::kind::Kind;
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;

use crate::bench::{Bench, soon, with_claims, with_credentials};

#[tokio::test]
async fn a_second_look_at_unchanged_mirrors_writes_nothing() {
    if skip_on_existing_cluster("a_second_look_at_unchanged_mirrors_writes_nothing") {
        return;
    }
    let mut bench = Bench::start("quiet").await;
    bench
        .secret("quay", json!({"username": "ann", "password": "pw"}))
        .await;
    bench.mirror("claims", with_claims("1Gi")).await;
    bench.mirror("secret", with_credentials("quay")).await;
    bench.mirror("missing", with_credentials("nowhere")).await;
    settle(&bench).await;

    // An operator that starts afresh looks at every mirror.
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

#[tokio::test]
async fn a_mirror_of_the_sample_spec_takes_no_more_than_twelve_writes() {
    if skip_on_existing_cluster("a_mirror_of_the_sample_spec_takes_no_more_than_twelve_writes") {
        return;
    }
    let bench = Bench::start("writes").await;
    bench
        .secret("quay", json!({"username": "ann", "password": "pw"}))
        .await;
    let mark = bench.mark().await;
    let mut spec = with_claims("1Gi");
    spec["upstreams"][0]["credentialsSecretRef"] = json!({"name": "quay"});
    bench.mirror("hub", spec).await;
    settle(&bench).await;
    let writes = bench.writes(mark);
    assert!(writes.len() <= 12, "{}: {writes:#?}", writes.len());
}

/// Waits until every mirror says what its workload has come to without a kubelet, and nothing more is written.
async fn settle(bench: &Bench) {
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
                    let told = crate::bench::condition(mirror, ConditionType::Progressing)?;
                    (status.replicas == 1 && told.message.starts_with("1 of 1")).then_some(())
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

#[tokio::test]
async fn a_restricted_namespace_takes_every_golden_set_and_pods_of_every_template() {
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
        object["stringData"] = object.as_object_mut().unwrap().remove("data").unwrap();
    }
    let template = object.pointer("/spec/template").cloned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let api: Api<DynamicObject> =
        Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), &kind.resource());
    let params = PatchParams::apply("test").dry_run().validation_strict();
    let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
    // This one is of another cluster's range.
    let applied = match applied {
        Err(kube::Error::Api(status)) if status.message.contains("clusterIP") => return,
        applied => applied.unwrap_or_else(|error| panic!("{spec}: {kind} {name}: {error}")),
    };
    let live = serde_json::to_value(&applied).unwrap();
    if kind != Kind::Secret {
        assert!(
            operator::apply::compare::contains(&live, &object),
            "{spec}: {kind} {name}: {live:#} lacks {object:#}"
        );
    }
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
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let made = bench.api().create(&params, &pod).await;
        made.unwrap_or_else(|error| panic!("{spec}: a Pod of {kind} {name}: {error}"));
    }
}

#[tokio::test]
async fn every_golden_spec_is_applied_once_and_then_left_alone() {
    if skip_on_existing_cluster("every_golden_spec_is_applied_once_and_then_left_alone") {
        return;
    }
    let mut bench = Bench::start("golden").await;
    let authority = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/tests/specs/authority.pem"),
    );
    let authority = authority.unwrap();
    bench
        .apply::<ConfigMap>(json!({"metadata": {"name": "authorities"}, "data": {"ca.crt": authority}}))
        .await;
    bench.secret("authorities", json!({"root.pem": authority})).await;
    bench
        .secret("basic", json!({"username": "bob", "password": "pw"}))
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
        let told = mirrors.iter().filter(|mirror| !mirror.spec.paused).all(|mirror| {
            let replicas = mirror.status.as_ref().map_or(-1, |status| status.replicas);
            let told =
                crate::bench::condition(mirror, ConditionType::Progressing).map(|told| told.message.clone());
            replicas == mirror.spec.replicas
                && told.is_some_and(|told| {
                    told.starts_with(&format!("{replicas} of")) || told.starts_with("every")
                })
        });
        told.then_some(())
    })
    .await;
}
