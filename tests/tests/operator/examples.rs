//! The files of `examples/`, applied like an admin applies them.

use std::fs;

use crds::RegistryMirror;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use serde_json::{Value, json};
use testbed::binaries::workspace;
use testbed::pki::Authority;

use crate::bench::Bench;

fn examples() -> Vec<Value> {
    let files = fs::read_dir(workspace().join("examples")).unwrap();
    let read = |file: fs::DirEntry| -> Vec<Value> {
        serde_saphyr::from_multiple(&fs::read_to_string(file.path()).unwrap()).unwrap()
    };
    files.flat_map(|file| read(file.unwrap())).collect()
}

/// cert-manager's part: a Secret for what a Certificate asks for.
async fn issue(bench: &Bench, certificate: &Value) {
    let authority = Authority::new("internal").unwrap();
    let texts = |key: &str| certificate["spec"][key].as_array().unwrap().iter();
    let names: Vec<_> = texts("dnsNames")
        .chain(texts("ipAddresses"))
        .map(|name| name.as_str().unwrap())
        .collect();
    let leaf = authority.serving(&names).unwrap();
    let pair = json!({"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": authority.certificate()});
    let secret = certificate["spec"]["secretName"].as_str().unwrap();
    bench.secret(secret, pair).await;
}

/// Every example is accepted, and those with TLS publish the certificates for clients to trust.
#[tokio::test]
async fn examples_are_accepted_and_publish_tls_cas() {
    let bench = Bench::start("examples").await;
    let mut mirrors = Vec::new();
    for document in examples() {
        match document["kind"].as_str().unwrap() {
            "RegistryMirror" => mirrors.push(bench.apply::<RegistryMirror>(document).await),
            "Secret" => drop(bench.apply::<Secret>(document).await),
            "Certificate" => issue(&bench, &document).await,
            kind => panic!("no rule applies a {kind}"),
        }
    }
    assert!(mirrors.len() >= 5);
    for mirror in mirrors {
        let name = mirror.name_any();
        bench.until_accepted(&name).await;
        if mirror.spec.tls != crds::Tls::default() {
            let trusted = bench
                .get::<ConfigMap>(&format!("{name}-ca"))
                .await
                .unwrap()
                .data
                .unwrap();
            assert!(trusted["ca.crt"].contains("BEGIN CERTIFICATE"), "{name}");
        }
    }
}
