//! Mirrors that serve clients with certificates only.

use std::net::{IpAddr, SocketAddr};

use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::ResourceExt;
use reqwest::tls::Version;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response};
use serde_json::{Value, json};
use testbed::pki::{Authority, Leaf};

use crate::bench::{Bench, ephemeral, soon, text};
use crate::pods::{address, is_ready, kubelet, pods, restarts};

/// A client of the mirror `hub` at this address.
struct Server {
    address: SocketAddr,
    ca: Certificate,
}

impl Server {
    fn client(&self, identity: Option<&Leaf>) -> ClientBuilder {
        testbed::install_crypto_provider();
        let builder = Client::builder()
            .tls_certs_only([self.ca.clone()])
            .resolve("hub", self.address);
        match identity {
            Some(leaf) => {
                let pem = format!("{}{}", leaf.certificate, leaf.key);
                builder.identity(Identity::from_pem(pem.as_bytes()).unwrap())
            }
            None => builder,
        }
    }

    /// Returns the response to a request, or `None` where the server refuses the client.
    async fn get(&self, client: ClientBuilder) -> Option<Response> {
        let url = format!("https://hub:{}/v2/", self.address.port());
        client.build().unwrap().get(url).send().await.ok()
    }
}

async fn trust(bench: &Bench, ca: &Authority) {
    let data = json!({"ca.crt": ca.certificate()});
    bench
        .apply::<ConfigMap>(json!({"metadata": {"name": "clients"}, "data": data}))
        .await;
}

fn spec() -> Value {
    let mut spec = ephemeral();
    spec["tls"] = json!({
        "mode": "Secret", "secretName": "serving", "minimumVersion": "VersionTLS13",
        "clientCARef": {"kind": "ConfigMap", "name": "clients"},
    });
    spec["responseHeaders"] = json!([{"name": "Strict-Transport-Security", "value": "max-age=300"}]);
    spec["observability"] = json!({"accessLog": "Disabled"});
    spec
}

/// A client CA is enforced, and rotated without a restart.
#[tokio::test]
async fn client_ca_rotates_without_restart() {
    let bench = Bench::start("mutual").await;
    let _kubelet = kubelet(&bench).await;
    let [ca, first, second] = ["ca", "first", "second"].map(|name| Authority::new(name).unwrap());
    let leaf = ca.serving(&["hub"]).unwrap();
    bench
        .secret(
            "serving",
            json!({"tls.crt": leaf.certificate, "tls.key": leaf.key}),
        )
        .await;
    bench.mirror("hub", spec()).await;
    let missing = bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    assert!(
        missing.message.contains("spec.tls.clientCARef"),
        "{}",
        missing.message
    );

    trust(&bench, &first).await;
    bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;
    let pod = pods(&bench).await.remove(0);
    let ip: IpAddr = address(&pod).parse().unwrap();
    let server = Server {
        address: (ip, 5000).into(),
        ca: Certificate::from_pem(ca.certificate().as_bytes()).unwrap(),
    };
    let [ann, bob] = [&first, &second].map(|authority| authority.client("node").unwrap());
    let response = server.get(server.client(Some(&ann))).await.unwrap();
    assert_eq!(response.headers()["strict-transport-security"], "max-age=300");
    assert!(server.get(server.client(None)).await.is_none());
    assert!(server.get(server.client(Some(&bob))).await.is_none());
    let old = server.client(Some(&ann)).tls_version_max(Version::TLS_1_2);
    assert!(server.get(old).await.is_none());

    trust(&bench, &second).await;
    soon("the new CA", async || server.get(server.client(Some(&bob))).await).await;
    assert!(server.get(server.client(Some(&ann))).await.is_none());
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}

/// Servers of a mirror with TLS present certificates to each other, which the operator replaces without a restart; a client
/// without one gets no answer from the peer port.
#[tokio::test]
async fn peer_port_of_tls_mirror_needs_certificate() {
    let bench = Bench::start("peertls").await;
    let _kubelet = kubelet(&bench).await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "SelfSigned"});
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    let servers = soon("two servers", async || {
        let pods = pods(&bench).await;
        (pods.len() == 2 && pods.iter().all(is_ready)).then_some(pods)
    })
    .await;
    let secret = bench.get::<Secret>("hub-peers").await.unwrap();
    let old = peer_files(&secret);
    let host = format!("hub-headless.{}.svc", bench.namespace.name());
    for pod in &servers {
        let ip: IpAddr = address(pod).parse().unwrap();
        assert_eq!(hello(&host, ip, &old.0, Some(&old.1)).await, Some(401));
        assert_eq!(hello(&host, ip, &old.0, None).await, None);
    }

    // A reconcile that read the Secret before the loss would apply the old certificate again.
    bench.until_nothing_is_written().await;
    let lost = json!({"data": {"tls.crt": null, "tls.key": null}});
    bench.merge::<Secret>("hub-peers", lost).await;
    let renewed = bench
        .until("hub-peers", "another certificate", |secret: &Secret| {
            let own = text(secret, "tls.crt")?;
            (!old.1.contains(&own) && text(secret, "tls.key").is_some()).then(|| peer_files(secret))
        })
        .await;
    for pod in pods(&bench).await {
        let ip: IpAddr = address(&pod).parse().unwrap();
        assert_eq!(hello(&host, ip, &renewed.0, Some(&renewed.1)).await, Some(401));
        assert_eq!(restarts(&pod), 0);
    }
    let uids = |pods: &[Pod]| pods.iter().map(ResourceExt::uid).collect::<Vec<_>>();
    assert_eq!(uids(&pods(&bench).await), uids(&servers));
}

/// Returns the CA certificates for servers of a mirror, and certificate and key of a server, in PEM.
fn peer_files(secret: &Secret) -> (String, String) {
    let [ca, certificate, key] = ["ca.crt", "tls.crt", "tls.key"].map(|file| text(secret, file).unwrap());
    (ca, format!("{certificate}{key}"))
}

/// Returns the status of a hello to a peer port without the secret; `None` where there is no answer.
async fn hello(host: &str, ip: IpAddr, ca: &str, own: Option<&str>) -> Option<u16> {
    testbed::install_crypto_provider();
    let builder = Client::builder()
        .tls_certs_only([Certificate::from_pem(ca.as_bytes()).unwrap()])
        .resolve(host, SocketAddr::from((ip, 5002)));
    let builder = match own {
        Some(pem) => builder.identity(Identity::from_pem(pem.as_bytes()).unwrap()),
        None => builder,
    };
    let url = format!("https://{host}:5002/peer/v1/hello");
    let answer = builder.build().unwrap().get(url).send().await.ok()?;
    Some(answer.status().as_u16())
}
