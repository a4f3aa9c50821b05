//! Mirrors that serve clients with certificates only.

use std::net::{IpAddr, SocketAddr};

use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use reqwest::tls::Version;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response};
use serde_json::{Value, json};
use testbed::pki::{Authority, Leaf};

use crate::bench::{Bench, ephemeral, soon};
use crate::pods::{address, kubelet, pods, restarts};

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
