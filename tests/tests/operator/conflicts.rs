//! What is not the operator's stays as it is.

use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::bench::{Bench, ephemeral, text, with_claims};

#[tokio::test]
async fn a_users_secret_with_a_childs_name_is_left_alone() {
    let bench = Bench::idle("conflict").await;
    let before = bench.secret("hub-credentials", json!({"password": "mine"})).await;
    let mut bench = bench;
    bench.start_operator().await;
    bench.mirror("hub", ephemeral()).await;
    let refused = bench
        .until_condition("hub", ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    assert!(
        refused
            .message
            .starts_with("Secret hub-credentials is there already"),
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
        .until_condition("hub", ConditionType::Ready, "False", Reason::NameConflict)
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

#[tokio::test]
async fn a_users_object_that_wears_the_operators_label_is_left_alone() {
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
        .until_condition("hub", ConditionType::Accepted, "False", Reason::NameConflict)
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

#[tokio::test]
async fn mirrors_whose_names_extend_each_other_do_not_take_each_others_objects() {
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

#[tokio::test]
async fn a_spec_that_the_api_server_refuses_a_child_for_is_not_accepted() {
    let bench = Bench::start("refused").await;
    let mut spec: Value = ephemeral();
    spec["service"] = json!({"clusterIP": "192.0.2.1"});
    bench.mirror("hub", spec).await;
    let refused = bench
        .until_condition("hub", ConditionType::Accepted, "False", Reason::InvalidSpec)
        .await;
    assert!(
        refused.message.contains("refuses Service hub"),
        "{}",
        refused.message
    );
}
