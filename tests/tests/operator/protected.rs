//! Mirrors that serve TLS, and users only.

use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::ResourceExt;
use kube::api::DeleteParams;
use reqwest::{Certificate, Client, StatusCode};
use serde_json::{Value, json};
use testbed::pki::Authority;

use crate::bench::{Bench, ephemeral, soon};
use crate::pods::{kubelet, pods, restarts};

/// The name that certificates are for.
const NAME: &str = "hub.mirrors.svc";

/// Returns the status of `/v2/` for a client that trusts one CA; `None` without a connection.
async fn ask(pod: &Pod, authority: &Authority, password: Option<&str>) -> Option<StatusCode> {
    let address = pod.status.as_ref()?.pod_ip.clone()?;
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = Client::builder()
        .tls_certs_only([Certificate::from_pem(authority.certificate().as_bytes()).unwrap()])
        .resolve(NAME, format!("{address}:5000").parse().unwrap())
        .build()
        .unwrap();
    let mut request = client.get(format!("https://{NAME}:5000/v2/"));
    if let Some(password) = password {
        request = request.basic_auth("ann", Some(password));
    }
    Some(request.send().await.ok()?.status())
}

fn pair(authority: &Authority) -> Value {
    let leaf = authority.serving(&[NAME]).unwrap();
    json!({"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": authority.certificate()})
}

fn users(password: &str) -> Value {
    json!({"htpasswd": format!("ann:{}\n", bcrypt::hash(password, 4).unwrap())})
}

/// A certificate is served, renewed without a restart, and kept if its Secret is deleted.
#[tokio::test]
async fn certificate_renews_and_survives_secret_deletion() {
    let bench = Bench::start("tls").await;
    let _kubelet = kubelet(&bench).await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "Secret", "secretName": "serving"});
    bench.mirror("hub", spec).await;
    bench
        .until_hub(ConditionType::TLSReady, "False", Reason::SecretNotFound)
        .await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    let (old, new) = (Authority::new("old").unwrap(), Authority::new("new").unwrap());
    bench.secret("serving", pair(&old)).await;
    bench.until_ready().await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
    let before = pods(&bench).await.remove(0);
    assert_eq!(ask(&before, &old, None).await, Some(StatusCode::OK));
    let authority = bench.get::<ConfigMap>("hub-ca").await.unwrap();
    assert_eq!(authority.data.unwrap()["ca.crt"], old.certificate());
    let mirror = bench.get::<crds::RegistryMirror>("hub").await.unwrap();
    let endpoint = mirror.status.unwrap().endpoint.unwrap();
    assert!(endpoint.url.starts_with("https://"), "{}", endpoint.url);
    assert_eq!(endpoint.ca_config_map.as_deref(), Some("hub-ca"));
    assert_eq!(endpoint.hosts_config_map.as_deref(), Some("hub-hosts"));

    bench.secret("serving", pair(&new)).await;
    soon("the new certificate", async || ask(&before, &new, None).await).await;
    bench
        .secret("serving", json!({"tls.crt": "none", "tls.key": "none"}))
        .await;
    let malformed = bench
        .until_hub(ConditionType::TLSReady, "False", Reason::Malformed)
        .await;
    assert!(
        malformed.message.contains("Secret serving: ")
            && malformed
                .message
                .contains("the previous certificate stays in use"),
        "{}",
        malformed.message
    );
    assert_eq!(ask(&before, &new, None).await, Some(StatusCode::OK));
    bench
        .api::<Secret>()
        .delete("serving", &DeleteParams::default())
        .await
        .unwrap();
    bench
        .until_hub(ConditionType::TLSReady, "False", Reason::SecretNotFound)
        .await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::SecretNotFound)
        .await;
    assert_eq!(ask(&before, &new, None).await, Some(StatusCode::OK));
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (before.uid(), 0));
}

/// Only users pull, and a malformed file admits no user.
#[tokio::test]
async fn only_listed_users_pull() {
    let bench = Bench::start("users").await;
    let _kubelet = kubelet(&bench).await;
    let authority = Authority::new("users").unwrap();
    bench.secret("serving", pair(&authority)).await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "Secret", "secretName": "serving"});
    spec["access"] = json!({"mode": "Basic", "htpasswdSecretRef": {"name": "users"}});
    bench.mirror("hub", spec).await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    bench.secret("users", users("one")).await;
    bench.until_ready().await;
    let pod = pods(&bench).await.remove(0);
    assert_eq!(ask(&pod, &authority, None).await, Some(StatusCode::UNAUTHORIZED));
    assert_eq!(
        ask(&pod, &authority, Some("two")).await,
        Some(StatusCode::UNAUTHORIZED)
    );
    assert_eq!(ask(&pod, &authority, Some("one")).await, Some(StatusCode::OK));

    bench
        .secret("users", json!({"htpasswd": "ann:in-clear-text"}))
        .await;
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceMalformed)
        .await;
    assert!(!refused.message.contains("in-clear-text"), "{}", refused.message);
    assert_eq!(ask(&pod, &authority, None).await, Some(StatusCode::UNAUTHORIZED));
    assert_eq!(ask(&pod, &authority, Some("one")).await, Some(StatusCode::OK));

    bench.delete::<Secret>("users").await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    assert_eq!(ask(&pod, &authority, None).await, Some(StatusCode::UNAUTHORIZED));
    assert_eq!(ask(&pod, &authority, Some("one")).await, Some(StatusCode::OK));

    bench.secret("users", users("two")).await;
    soon("the new password", async || {
        let answer = ask(&pod, &authority, Some("two")).await?;
        (answer == StatusCode::OK).then_some(())
    })
    .await;
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}
