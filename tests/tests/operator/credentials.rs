//! Secrets that mirrors refer to.

use std::collections::BTreeSet;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use crate::bench::{Bench, soon, text, with_credentials};

/// A changed Secret reaches the pods within seconds, without a rollout.
#[tokio::test]
async fn changed_secret_reaches_pods_without_rollout() {
    let bench = Bench::start("rotate").await;
    bench.login("quay", "ann", "old").await;
    bench.mirror("hub", with_credentials("quay")).await;
    let status = bench.until_accepted("hub").await;
    let credentials = status.upstreams[0].credentials.clone().unwrap();
    assert_eq!((credentials.secret.as_str(), credentials.version), ("quay", 1));
    bench
        .until_hub(ConditionType::CredentialsValid, "Unknown", Reason::Unverified)
        .await;
    let pods = bench.api::<Pod>();
    let pod = soon("Pod", async || {
        pods.list(&ListParams::default()).await.unwrap().items.pop()
    })
    .await;
    let before = bench.get::<Deployment>("hub").await.unwrap();

    bench.login("quay", "ann", "new").await;
    let delivered = bench.until("hub-credentials", "second version", |secret: &Secret| {
        (text(secret, "version").as_deref() == Some("2"))
            .then(|| text(secret, "config.json"))
            .flatten()
    });
    assert_eq!(
        delivered.await,
        r#"{"auths":{"quay.io":{"password":"new","username":"ann"}},"keyedBy":"upstreamHost"}"#
    );
    bench
        .until(&pod.name_any(), "word to the Pod", |pod: &Pod| {
            pod.annotations().get("registrymirror.io/reload").cloned()
        })
        .await;
    bench
        .until("hub", "second version", |mirror: &RegistryMirror| {
            let upstream = mirror.status.as_ref()?.upstreams.first()?;
            (upstream.credentials.as_ref()?.version == 2).then_some(())
        })
        .await;
    let after = bench.get::<Deployment>("hub").await.unwrap();
    assert_eq!(
        after.spec.unwrap().template,
        before.spec.unwrap().template,
        "nothing rolls"
    );
}

/// A missing Secret is a condition, and its creation is noticed.
#[tokio::test]
async fn missing_secret_is_a_condition_until_created() {
    let bench = Bench::start("missing").await;
    bench.mirror("hub", with_credentials("quay")).await;
    let missing = bench
        .until_hub(ConditionType::CredentialsValid, "False", Reason::SecretNotFound)
        .await;
    assert!(
        missing
            .message
            .contains(r#"Secret "quay" not found in namespace"#),
        "{}",
        missing.message
    );
    bench.until_accepted("hub").await;
    let delivered = bench.get::<Secret>("hub-credentials").await.unwrap();
    assert_eq!(
        text(&delivered, "config.json").unwrap(),
        r#"{"auths":{"quay.io":{}},"keyedBy":"upstreamHost"}"#,
        "and never anonymous"
    );

    bench.login("quay", "ann", "pw").await;
    bench
        .until_hub(ConditionType::CredentialsValid, "Unknown", Reason::Unverified)
        .await;
    let events = bench.api::<Event>();
    soon("events of both transitions", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        let reasons: BTreeSet<_> = events.iter().filter_map(|event| event.reason.clone()).collect();
        (reasons.contains("SecretNotFound") && reasons.contains("Unverified")).then_some(())
    })
    .await;
}

/// A Secret with wrong keys is described, and the issued credentials stay.
#[tokio::test]
async fn malformed_secret_keeps_issued_credentials() {
    let bench = Bench::start("malformed").await;
    bench.login("quay", "ann", "canary-7f3a").await;
    bench.mirror("hub", with_credentials("quay")).await;
    bench.until_accepted("hub").await;
    bench.delete::<Secret>("quay").await;
    bench
        .secret("quay", json!({"user": "ann", "pass": "canary-7f3a"}))
        .await;
    let malformed = bench
        .until_hub(ConditionType::CredentialsValid, "False", Reason::SecretMalformed)
        .await;
    assert!(
        malformed.message.contains("has no key username: add it"),
        "{}",
        malformed.message
    );
    assert!(
        malformed.message.contains("the previous credentials stay in use"),
        "{}",
        malformed.message
    );
    let delivered = bench.get::<Secret>("hub-credentials").await.unwrap();
    assert_eq!(text(&delivered, "version").as_deref(), Some("1"));
    assert!(text(&delivered, "config.json").unwrap().contains("canary-7f3a"));
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    assert!(!serde_json::to_string(&mirror).unwrap().contains("canary-7f3a"));
}

/// Several mirrors can share a Secret.
#[tokio::test]
async fn secret_is_shared_by_several_mirrors() {
    let bench = Bench::start("shared").await;
    bench.login("quay", "ann", "old").await;
    for name in ["one", "two"] {
        bench.mirror(name, with_credentials("quay")).await;
        bench.until_accepted(name).await;
    }
    bench.login("quay", "ann", "new").await;
    for secret in ["one-credentials", "two-credentials"] {
        bench
            .until(secret, "second version", |secret: &Secret| {
                (text(secret, "version").as_deref() == Some("2")).then_some(())
            })
            .await;
    }
}

/// A missing bundle of certificates blocks the spec until it exists.
#[tokio::test]
async fn missing_ca_bundle_blocks_the_spec() {
    let bench = Bench::start("bundle").await;
    let spec = json!({
        "upstreams": [{"host": "quay.io", "tls": {"caBundleRef": {"kind": "ConfigMap", "name": "roots"}}}],
        "storage": {"type": "Ephemeral"},
    });
    bench.mirror("hub", spec).await;
    let missing = bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    assert!(
        missing
            .message
            .starts_with(r#"ConfigMap "roots" not found in namespace"#),
        "{}",
        missing.message
    );
    bench
        .until_hub(ConditionType::Ready, "False", Reason::ReferenceNotFound)
        .await;
    assert!(bench.get::<Deployment>("hub").await.is_none());

    let map = |pem: &str| json!({"metadata": {"name": "roots"}, "data": {"ca.crt": pem}});
    bench
        .apply::<k8s_openapi::api::core::v1::ConfigMap>(map("not PEM"))
        .await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceMalformed)
        .await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::ReferenceMalformed)
        .await;
    let pem = authority();
    bench
        .apply::<k8s_openapi::api::core::v1::ConfigMap>(map(&pem))
        .await;
    bench.until_accepted("hub").await;
    assert_eq!(
        text(&bench.get::<Secret>("hub-files").await.unwrap(), "ca-quay.io.crt"),
        Some(pem)
    );

    // Without the reference the copy goes.
    bench.mirror("hub", crate::bench::ephemeral()).await;
    bench.until_gone::<Secret>("hub-files").await;
}

fn authority() -> String {
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .pem()
}
