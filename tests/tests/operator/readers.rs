//! The files for nodes, read by the readers of container runtimes, without a cluster.

use std::collections::BTreeMap;
use std::fs;

use crds::RegistryMirror;
use operator::desired::files_for_nodes;
use operator::node_config::{self, Marker, NodeEndpoint, NodeFile, NodeRoot, Runtime};
use operator::observed::ServiceAddress;
use rcgen::{CertificateParams, KeyPair};
use serde::Deserialize;
use serde_json::{Value, json};
use testbed::binaries;
use testbed::scratch::Scratch;
use tokio::process::Command;

/// The registries of the mirror, the first of which is its default, and the URLs of their APIs.
const UPSTREAMS: [(&str, &str); 4] = [
    ("docker.io", "https://registry-1.docker.io/v2"),
    ("quay.io", "https://quay.io/v2"),
    (
        "registry.example.com:5000",
        "https://registry.example.com:5000/v2",
    ),
    ("[2001:db8::9]:5000", "https://[2001:db8::9]:5000/v2"),
];
/// Readers of containerd that can't read an IPv6 address in the name of a table.
const CONTAINERD_1: [&str; 2] = ["containerd-hosts-1.7.27", "containerd-hosts-1.7.35"];
const CONTAINERD_2: &str = "containerd-hosts";
const IPV4: &str = "10.96.0.7";
const IPV6: &str = "2001:db8::7";

/// A registry that containerd asks.
#[derive(Debug, Deserialize, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the readers print them")]
struct Host {
    url: String,
    pull: bool,
    resolve: bool,
    push: bool,
    #[serde(rename = "customCA")]
    custom_ca: bool,
}

/// Returns the files for nodes of a mirror at this address.
fn files(ip: &str, fallback: &str, certificate: Option<String>) -> BTreeMap<String, String> {
    let mirror = resource(fallback, certificate.is_some());
    let ip = ip.to_owned();
    files_for_nodes(&mirror, &ServiceAddress { ip, port: 5000 }, certificate)
}

fn resource(fallback: &str, has_certificate: bool) -> RegistryMirror {
    let mode = if has_certificate { "SelfSigned" } else { "Disabled" };
    let spec = json!({
        "upstreams": UPSTREAMS.map(|(host, _)| json!({"host": host})),
        "storage": {"type": "Ephemeral"},
        "tls": {"mode": mode},
        "nodeConfiguration": {"fallback": fallback},
    });
    RegistryMirror::new("hub", serde_json::from_value(spec).unwrap())
}

/// Writes the files of `registry-mirror node-config` below a directory.
fn write_files(root: &Scratch, runtime: Runtime, fallback: &str, url: &str) {
    let certificates = url.starts_with("https").then(certificate);
    let endpoint = NodeEndpoint::parse(url, certificates).unwrap();
    let mirror = resource(fallback, endpoint.certificates.is_some());
    let made = node_config::files(runtime, &mirror, &endpoint).unwrap();
    let root = NodeRoot::open(root.path()).unwrap();
    for file in made.files {
        let file = Marker::COMMAND.add(file, "mirrors/hub");
        root.write(&file.path, file.text.as_bytes(), false).unwrap();
    }
}

/// Runs a reader and returns what it prints.
async fn read(reader: &'static str, arguments: [&str; 2]) -> Value {
    let output = Command::new(binaries::get(reader).await.unwrap())
        .args(arguments)
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{reader} {arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the registries that a containerd asks for images of `host`.
async fn hosts(reader: &'static str, files: &BTreeMap<String, String>, host: &str) -> Vec<Host> {
    let root = Scratch::new("readers").unwrap();
    let directory = root.subdirectory(host).unwrap();
    let file = format!("{}.hosts.toml", host.replace([':', '[', ']'], "_"));
    fs::write(directory.join("hosts.toml"), &files[&file]).unwrap();
    if let Some(certificate) = files.get("ca.crt") {
        fs::write(directory.join("ca.crt"), certificate).unwrap();
    }
    let read = read(reader, [root.path().to_str().unwrap(), host]).await;
    serde_json::from_value(read).unwrap()
}

/// Returns the images that CRI-O and podman ask for.
async fn sources(files: &BTreeMap<String, String>, image: &str) -> Vec<String> {
    let scratch = Scratch::new("readers").unwrap();
    let file = files.get("registries.conf").cloned().unwrap_or_default();
    let file = scratch.write("registries.conf", file).unwrap();
    let read = read("registries-conf", [file.to_str().unwrap(), image]).await;
    let sources = read.as_array().unwrap().iter();
    sources
        .map(|source| source["image"].as_str().unwrap().to_owned())
        .collect()
}

fn mirror(url: &str, custom_ca: bool) -> Host {
    Host {
        url: format!("{url}/v2"),
        pull: true,
        resolve: true,
        push: false,
        custom_ca,
    }
}

fn registry(url: &str) -> Host {
    Host {
        url: url.to_owned(),
        pull: true,
        resolve: true,
        push: true,
        custom_ca: false,
    }
}

fn certificate() -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().self_signed(&key).unwrap().pem()
}

#[tokio::test]
async fn containerd_with_fallback_asks_mirror_then_registry() {
    for reader in CONTAINERD_1.into_iter().chain([CONTAINERD_2]) {
        for (host, url) in UPSTREAMS {
            let plain = hosts(reader, &files(IPV4, "Allow", None), host).await;
            let expected = [mirror("http://10.96.0.7:5000", false), registry(url)];
            assert_eq!(plain, expected, "{reader} {host}");
            let over_tls = hosts(reader, &files(IPV4, "Allow", Some(certificate())), host).await;
            assert_eq!(
                over_tls[0],
                mirror("https://10.96.0.7:5000", true),
                "{reader} {host}"
            );
        }
    }
}

/// Containerd without a fallback requests only the mirror.
#[tokio::test]
async fn containerd_without_fallback_asks_mirror_only() {
    let (plain, tls) = (None, Some(certificate()));
    for (ip, certificate, url) in [
        (IPV4, &plain, "http://10.96.0.7:5000"),
        (IPV4, &tls, "https://10.96.0.7:5000"),
        (IPV6, &plain, "http://[2001:db8::7]:5000"),
        (IPV6, &tls, "https://[2001:db8::7]:5000"),
    ] {
        let files = files(ip, "Never", certificate.clone());
        let expected = mirror(url, certificate.is_some());
        for reader in CONTAINERD_1.into_iter().chain([CONTAINERD_2]) {
            for (host, _) in UPSTREAMS {
                let asked = hosts(reader, &files, host).await;
                let all = asked.iter().all(|host| *host == expected);
                assert!(all && !asked.is_empty(), "{reader} {host}: {asked:?}");
            }
        }
    }
}

/// docs/operations.md describes this limit of containerd 1.7; `render` and `doctor` warn of it.
#[tokio::test]
async fn containerd_2_reads_ipv6_mirror_with_fallback() {
    let files = files(IPV6, "Allow", None);
    assert!(files["docker.io.hosts.toml"].contains("containerd 2.0"));
    for (host, url) in UPSTREAMS {
        let asked = hosts(CONTAINERD_2, &files, host).await;
        let expected = [mirror("http://[2001:db8::7]:5000", false), registry(url)];
        assert_eq!(asked, expected, "{host}");
        for reader in CONTAINERD_1 {
            assert_eq!(
                hosts(reader, &files, host).await,
                [registry(url)],
                "{reader} {host}"
            );
        }
    }
}

#[tokio::test]
async fn registries_conf_asks_mirror_then_registry() {
    let files = files(IPV4, "Allow", None);
    assert_eq!(
        sources(&files, "docker.io/library/alpine:3").await,
        [
            "10.96.0.7:5000/docker.io/library/alpine:3",
            "docker.io/library/alpine:3"
        ]
    );
    let own = "registry.example.com:5000/team/app:1";
    assert_eq!(sources(&files, own).await, [own]);
    assert!(!self::files(IPV6, "Allow", None).contains_key("registries.conf"));
}

#[tokio::test]
async fn registries_conf_without_fallback_asks_no_registry() {
    let files = files(IPV4, "Never", None);
    assert_eq!(
        sources(&files, "docker.io/library/alpine:3").await,
        ["10.96.0.7:5000/docker.io/library/alpine:3"]
    );
    let own = "registry.example.com:5000/team/app:1";
    assert!(sources(&files, own).await.is_empty());
    for image in ["docker.io/library/alpine:3", "quay.io/a/b:1", own] {
        assert!(sources(&self::files(IPV6, "Never", None), image).await.is_empty());
    }
}

/// With the marker at the start of each file, the certificates among them.
#[tokio::test]
async fn containerd_reads_the_files_of_the_command() {
    for (fallback, url) in [
        ("Allow", "http://10.96.0.7:5000"),
        ("Allow", "https://10.96.0.7:5000"),
        ("Never", "https://10.96.0.7:5000"),
    ] {
        let root = Scratch::new("readers").unwrap();
        write_files(&root, Runtime::Containerd, fallback, url);
        let certs = root.path().join("etc/containerd/certs.d");
        let expected = mirror(url, url.starts_with("https"));
        for reader in CONTAINERD_1.into_iter().chain([CONTAINERD_2]) {
            for (host, registry_url) in UPSTREAMS {
                let read = read(reader, [certs.to_str().unwrap(), host]).await;
                let asked: Vec<Host> = serde_json::from_value(read).unwrap();
                assert_eq!(asked[0], expected, "{reader} {host}");
                let falls_back = asked.last() == Some(&registry(registry_url));
                assert_eq!(falls_back, fallback == "Allow", "{reader} {host}: {asked:?}");
            }
        }
    }
}

#[tokio::test]
async fn registries_conf_of_the_command_asks_the_mirror() {
    let root = Scratch::new("readers").unwrap();
    write_files(&root, Runtime::Crio, "Allow", "https://10.96.0.7:5000");
    let directory = root.path().join("etc/containers/registries.conf.d");
    let file = directory.join("50-registry-mirror-hub.conf");
    let image = "quay.io/a/b:1";
    let read = read("registries-conf", [file.to_str().unwrap(), image]).await;
    assert_eq!(read[0]["image"], "10.96.0.7:5000/quay.io/a/b:1");
    assert_eq!(read[0]["insecure"], false);
    assert_eq!(read[1]["image"], image);
}

/// The agent names the CA certificates differently, and marks both files.
#[tokio::test]
async fn containerd_reads_the_files_of_the_agent() {
    let url = "https://10.96.0.7:5000";
    let scratch = Scratch::new("readers").unwrap();
    let root = NodeRoot::open(scratch.path()).unwrap();
    let endpoint = NodeEndpoint::parse(url, Some(certificate())).unwrap();
    let hosts_toml = node_config::hosts_toml(&resource("Allow", true), &endpoint, "registry-mirror.pem");
    for (name, text) in [("registry-mirror.pem", certificate()), ("hosts.toml", hosts_toml)] {
        let path = format!("docker.io/{name}");
        let file = Marker::AGENT.add(NodeFile { path, text }, "mirrors/hub");
        root.write(&file.path, file.text.as_bytes(), false).unwrap();
    }
    for reader in CONTAINERD_1.into_iter().chain([CONTAINERD_2]) {
        let read = read(reader, [scratch.path().to_str().unwrap(), "docker.io"]).await;
        let asked: Vec<Host> = serde_json::from_value(read).unwrap();
        assert_eq!(asked, [mirror(url, true), registry(UPSTREAMS[0].1)], "{reader}");
    }
}
