//! Fields and objects of other managers, which the operator leaves unchanged.

use std::collections::BTreeMap;
use std::path::Path;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::kind::Kind;
use operator::names;
use serde_json::{Value, json};
use testbed::faults::Faults;

use crate::bench::{Bench, belongs_to, ephemeral, text, with_claims};
use crate::{process, rights};

/// A user's Secret with the name of a child is not changed.
#[tokio::test]
async fn users_secret_with_child_name_is_kept() {
    let bench = Bench::idle("conflict").await;
    let before = bench.secret("hub-credentials", json!({"password": "mine"})).await;
    let mut bench = bench;
    bench.start_operator().await;
    bench.mirror("hub", ephemeral()).await;
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    assert!(
        refused
            .message
            .starts_with("Secret hub-credentials exists already"),
        "{}",
        refused.message
    );
    assert!(
        bench.get::<ConfigMap>("hub-config").await.is_none(),
        "nothing is made of a mirror that can't be made whole"
    );
    let after = bench.get::<Secret>("hub-credentials").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
    bench
        .until_hub(ConditionType::Ready, "False", Reason::NameConflict)
        .await;

    // The name is set free.
    bench.delete::<Secret>("hub-credentials").await;
    bench
        .mirror("hub", {
            let mut spec = ephemeral();
            spec["replicas"] = json!(2);
            spec
        })
        .await;
    bench.until_accepted("hub").await;
    let made = bench.get::<Secret>("hub-credentials").await.unwrap();
    assert_eq!(text(&made, "version").as_deref(), Some("1"));
}

/// A user's object with the operator's label is not changed.
#[tokio::test]
async fn users_object_with_operator_label_is_kept() {
    let bench = Bench::start("label").await;
    let labels =
        json!({"app.kubernetes.io/managed-by": "registry-mirror", "registrymirror.io/cache-of": "other"});
    let object = |name: &str| json!({"metadata": {"name": name, "labels": labels}});
    let map: ConfigMap = bench.apply(object("hub-config")).await;
    let mut claim = object("cache-hub-0");
    claim["spec"] = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
    let claim: PersistentVolumeClaim = bench.apply(claim).await;
    bench.mirror("hub", with_claims("1Gi")).await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    let version = |object: Option<String>| object;
    assert_eq!(
        version(
            bench
                .get::<ConfigMap>("hub-config")
                .await
                .unwrap()
                .resource_version()
        ),
        map.resource_version()
    );
    let spec = bench
        .get::<PersistentVolumeClaim>("cache-hub-0")
        .await
        .unwrap()
        .spec;
    assert_eq!(spec, claim.spec);
}

/// Mirrors whose names extend each other do not write each other's objects.
#[tokio::test]
async fn mirrors_with_extending_names_do_not_conflict() {
    let bench = Bench::start("names").await;
    let short = bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    bench.mirror("hub-headless", ephemeral()).await;
    let refused = bench
        .until_condition(
            "hub-headless",
            ConditionType::Accepted,
            "False",
            Reason::NameConflict,
        )
        .await;
    assert!(
        refused.message.contains("belongs to RegistryMirror hub"),
        "{}",
        refused.message
    );
    let service = bench.get::<Service>("hub-headless").await.unwrap();
    assert!(crate::bench::belongs_to(&service, &short));
}

/// A spec whose child the API server refuses is not accepted until it is corrected.
#[tokio::test]
async fn refused_child_makes_spec_unaccepted() {
    let bench = Bench::start("refused").await;
    let with_address = |address: &str| {
        let mut spec: Value = ephemeral();
        spec["service"] = json!({"clusterIP": address});
        spec
    };
    bench.mirror("hub", with_address("192.0.2.1")).await;
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::InvalidSpec)
        .await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::InvalidSpec)
        .await;
    assert!(
        refused.message.contains("Service hub rejected by"),
        "{}",
        refused.message
    );
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;

    let mut odd = ephemeral();
    odd["pod"] = json!({"resources": {"limits": {"memory": "lots"}}});
    bench.mirror("hub", odd).await;
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::InvalidSpec)
        .await;
    assert!(
        refused.message.contains("Deployment hub rejected by") && refused.message.contains("quantities"),
        "{}",
        refused.message
    );
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;

    // From now on nodes may hold it.
    let endpoint = |mirror: &RegistryMirror| Some(mirror.status.as_ref()?.endpoint.as_ref()?.url.clone());
    let url = bench.until("hub", "an address", endpoint).await;
    let given = url.trim_start_matches("http://").trim_end_matches(":5000");
    bench.mirror("hub", with_address(given)).await;
    bench.until_accepted("hub").await;
    let other = json!({"spec": {"service": {"clusterIP": "192.0.2.1"}}});
    let params = PatchParams::default();
    let mirrors = bench.api::<RegistryMirror>();
    let refused = mirrors.patch("hub", &params, &Patch::Merge(&other)).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("another address than the Service has"), "{said}");
}

/// A spec that asks for an object of this kind and name.
fn that_asks_for(kind: Kind, name: &str) -> Value {
    let mut spec = match kind {
        Kind::Deployment => ephemeral(),
        _ => with_claims("1Gi"),
    };
    spec["replicas"] = json!(2);
    spec["tls"] = if name.ends_with("-ca-key") {
        json!({"mode": "SelfSigned"})
    } else {
        json!({"mode": "Secret", "secretName": "serving"})
    };
    spec
}

/// An object as a user may have it, of whatever kind.
fn of_a_user(kind: Kind, name: &str) -> Value {
    let labels = json!({"app": "mine"});
    let pods = json!({
        "replicas": 0, "selector": {"matchLabels": labels}, "serviceName": "mine",
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a"}]}},
    });
    let mut object = json!({"metadata": {"name": name, "labels": labels}});
    match kind {
        Kind::ConfigMap => object["data"] = json!({"mine": "yes"}),
        Kind::Secret => object["data"] = json!({"mine": "eWVz"}),
        Kind::ServiceAccount => object["automountServiceAccountToken"] = json!(true),
        Kind::PersistentVolumeClaim => {
            object["spec"] =
                json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
        }
        Kind::Service => object["spec"] = json!({"ports": [{"port": 80}]}),
        Kind::PodDisruptionBudget => object["spec"] = json!({"minAvailable": 1}),
        Kind::StatefulSet => object["spec"] = pods,
        Kind::Deployment => {
            object["spec"] = pods;
            object["spec"].as_object_mut().unwrap().remove("serviceName");
        }
        Kind::Pod => unreachable!("Pods are no children"),
    }
    object["apiVersion"] = json!(kind.resource().api_version);
    object["kind"] = json!(kind.resource().kind);
    object
}

/// All of an object that controllers of the cluster do not write.
fn lasting(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap();
    value.as_object_mut().unwrap().remove("status");
    for moving in ["resourceVersion", "managedFields"] {
        value["metadata"].as_object_mut().unwrap().remove(moving);
    }
    let annotations = object.annotations().iter();
    let theirs: BTreeMap<_, _> = annotations
        .filter(|(name, _)| !name.contains("kubernetes.io/"))
        .collect();
    value["metadata"]["annotations"] = json!(theirs);
    value
}

/// A user's object with the name of any child is never changed or deleted.
#[tokio::test]
async fn users_object_with_any_child_name_is_kept() {
    let bench = Bench::start("every-name").await;
    let file = |name: &str| {
        let specs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/tests/specs");
        std::fs::read_to_string(specs.join(name)).unwrap()
    };
    let pair = json!({
        "tls.crt": file("serving.pem"), "tls.key": file("serving-key.pem"), "ca.crt": file("authority.pem"),
    });
    bench.secret("serving", pair).await;
    let mut children = names::every("hub");
    children.push((Kind::PersistentVolumeClaim, names::claim("hub", 0)));
    let mut cases = Vec::new();
    for (number, (kind, name)) in children.into_iter().enumerate() {
        let (mirror, name) = (format!("m{number}"), name.replace("hub", &format!("m{number}")));
        let api: Api<DynamicObject> =
            Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), &kind.resource());
        let params = PatchParams::apply("other");
        let object = of_a_user(kind, &name);
        let before = api.patch(&name, &params, &Patch::Apply(&object)).await.unwrap();
        bench.mirror(&mirror, that_asks_for(kind, &name)).await;
        cases.push((mirror, kind, name, api, before));
    }
    for (mirror, kind, name, ..) in &cases {
        let refused = bench
            .until_condition(mirror, ConditionType::Accepted, "False", Reason::NameConflict)
            .await;
        let words = format!("{kind} {name} exists already");
        assert!(refused.message.starts_with(&words), "{}", refused.message);
    }
    for (mirror, ..) in &cases {
        bench.delete::<RegistryMirror>(mirror).await;
    }
    for (mirror, kind, name, api, before) in &cases {
        bench.until_gone::<RegistryMirror>(mirror).await;
        let after = api.get(name).await.unwrap();
        assert_eq!(lasting(&after), lasting(before), "{kind} {name}");
    }
}

/// Runs an operator whose next write of this object comes after another user's. Without the admission policies, the operator
/// itself takes its fields back.
async fn comes_second(kind: Kind, name: &str, has_policies: bool) {
    let mut bench = Bench::idle("between").await;
    bench.may_be_denied = true;
    if !has_policies {
        bench.user = format!("unbound-{}", bench.user);
        let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": bench.user});
        rights::grant(&bench, "unbound", subject, &bench.client().await, process::LEASE).await;
    }
    let faults = Faults::default();
    let client = faults.client(bench.config().await).unwrap();
    bench.start_operator_through(client);
    let resource = kind.resource();
    let path = format!("/{}/{name}", resource.plural);
    let mut spec = with_claims("1Gi");
    spec["replicas"] = json!(2);
    let (held, _) = tokio::join!(faults.hold(&path), bench.mirror("hub", spec));
    let api: Api<DynamicObject> =
        Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), &resource);
    let object = serde_json::from_value(of_a_user(kind, name)).unwrap();
    let before = api.create(&PostParams::default(), &object).await.unwrap();
    drop(held);
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    let words = format!("{kind} {name} exists already");
    assert!(refused.message.starts_with(&words), "{}", refused.message);
    let after = api.get(name).await.unwrap();
    assert_eq!(lasting(&after), lasting(&before), "{kind} {name}");
}

/// A user's object that is created between read and write is not changed.
#[tokio::test]
async fn users_object_created_in_between_is_kept() {
    let cases = [
        (Kind::Secret, "hub-credentials"),
        (Kind::ConfigMap, "hub-config"),
        (Kind::Service, "hub"),
        (Kind::ServiceAccount, "hub"),
        (Kind::PersistentVolumeClaim, "cache-hub-0"),
        (Kind::StatefulSet, "hub"),
        (Kind::PodDisruptionBudget, "hub"),
    ];
    join_all(cases.map(|(kind, name)| comes_second(kind, name, true))).await;
    join_all(cases.map(|(kind, name)| comes_second(kind, name, false))).await;
}

/// Mirrors that are named like the children of others coexist with them and outlive them.
#[tokio::test]
async fn mirrors_named_like_children_coexist() {
    let bench = Bench::start("extend").await;
    let names = [
        "a",
        "a-config",
        "a-credentials",
        "a-files",
        "a-hosts",
        "a-ca",
        "a-0",
    ];
    let mut mirrors = Vec::new();
    for name in names {
        mirrors.push(bench.mirror(name, with_claims("1Gi")).await);
    }
    for (name, mirror) in names.iter().zip(&mirrors) {
        bench.until_accepted(name).await;
        let map = bench.get::<ConfigMap>(&names::config(name)).await.unwrap();
        let claim = bench
            .get::<PersistentVolumeClaim>(&names::claim(name, 0))
            .await
            .unwrap();
        assert!(belongs_to(&map, mirror) && belongs_to(&claim, mirror), "{name}");
    }
    bench.delete::<RegistryMirror>("a").await;
    bench.until_gone::<ConfigMap>("a-config").await;
    bench.until_gone::<Service>("a-headless").await;
    for (name, mirror) in names.iter().zip(&mirrors).skip(1) {
        let map = bench.get::<ConfigMap>(&names::config(name)).await.unwrap();
        let claim = bench
            .get::<PersistentVolumeClaim>(&names::claim(name, 0))
            .await
            .unwrap();
        assert!(belongs_to(&map, mirror) && belongs_to(&claim, mirror), "{name}");
        assert_eq!(claim.metadata.deletion_timestamp, None);
    }
}
