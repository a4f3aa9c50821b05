//! The files that are published for nodes, read by the programs that they are for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Patch, PatchParams};
use reqwest::{Certificate, Client};
use serde::Deserialize;
use serde_json::{Value, json};
use testbed::binaries;
use testbed::podman;
use testbed::process::{Daemon, command};
use testbed::scratch::Scratch;
use testbed::upstream::{self, Upstream};
use tokio::process::Command;

use crate::bench::{Bench, push_one, soon};
use crate::pods::{address, kubelet, pods};

/// Both lead to one registry, which no name service knows: what is pulled comes through the mirror.
const HOSTS: [&str; 2] = ["docker.io", "registry.example"];

/// Files for nodes as they are published, but for the address: no Service leads to Pods that are processes.
async fn published(bench: &Bench) -> BTreeMap<String, String> {
    let data = bench
        .until("hub-hosts", "files", |map: &ConfigMap| map.data.clone())
        .await;
    let url = bench.until_accepted("hub").await.endpoint.unwrap().url;
    let (_, service) = url.split_once("://").unwrap();
    let pod = format!("{}:5000", address(&pods(bench).await[0]));
    let readdressed = data.into_iter().map(|(name, text)| {
        assert!(name == "ca.crt" || text.contains(service), "{name}: {text}");
        (name, text.replace(service, &pod))
    });
    readdressed.collect()
}

fn succeeded(what: &str, output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}");
}

/// JSON's values are TOML's, and tables of one level are all that is needed.
fn toml_of(config: &Value) -> String {
    let lines = |table: &Value| -> Vec<String> {
        let entries = table.as_object().unwrap().iter();
        let values = entries.filter(|(_, value)| !value.is_object());
        values.map(|(key, value)| format!("{key} = {value}")).collect()
    };
    let mut text = lines(config);
    for (name, table) in config.as_object().unwrap() {
        if table.is_object() {
            text.push(format!("[{name}]"));
            text.extend(lines(table));
        }
    }
    text.join("\n")
}

/// A containerd that does nothing but keep what is fetched, which takes no rights.
async fn containerd(scratch: &Scratch) -> (Daemon, PathBuf) {
    let [root, state] = ["root", "state"].map(|name| scratch.subdirectory(name).unwrap());
    let [socket, ttrpc] = ["containerd.sock", "ttrpc.sock"].map(|name| scratch.path().join(name));
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let server = |socket: &Path| json!({"address": socket, "uid": uid, "gid": gid});
    let config = json!({
        "version": 3, "root": root, "state": state, "grpc": server(&socket), "ttrpc": server(&ttrpc),
        "disabled_plugins": [
            "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
            "io.containerd.nri.v1.nri",
        ],
    });
    let config = toml_of(&config);
    let config = scratch.write("containerd.toml", config).unwrap();
    let mut command = command(binaries::get("containerd").await.unwrap());
    command.arg("--config").arg(config);
    let log = scratch.path().join("containerd.log");
    let daemon = Daemon::spawn("containerd", command, &log).unwrap();
    soon("socket of containerd", async || socket.exists().then_some(())).await;
    (daemon, socket)
}

async fn fetched_by_containerd(scratch: &Scratch, files: &BTreeMap<String, String>) {
    let certs = scratch.subdirectory("certs.d").unwrap();
    for host in HOSTS {
        let directory = certs.join(host);
        fs::create_dir(&directory).unwrap();
        fs::write(
            directory.join("hosts.toml"),
            &files[&format!("{host}.hosts.toml")],
        )
        .unwrap();
        // As it is named: beside the file.
        if let Some(authority) = files.get("ca.crt") {
            fs::write(directory.join("ca.crt"), authority).unwrap();
        }
    }
    let (_daemon, socket) = containerd(scratch).await;
    let ctr = binaries::get("ctr").await.unwrap();
    for host in HOSTS {
        let fetched = Command::new(&ctr)
            .arg("--address")
            .arg(&socket)
            .args(["content", "fetch", "--hosts-dir"])
            .arg(&certs)
            .arg(format!("{host}/team/app:one"))
            .output()
            .await
            .unwrap();
        succeeded("ctr", &fetched);
    }
}

async fn copied_by_skopeo(scratch: &Scratch, files: &BTreeMap<String, String>) {
    let config = scratch
        .write("registries.conf", &files["registries.conf"])
        .unwrap();
    let authorities = scratch.subdirectory("authorities").unwrap();
    if let Some(authority) = files.get("ca.crt") {
        fs::write(authorities.join("ca.crt"), authority).unwrap();
    }
    for host in HOSTS {
        let to = scratch.path().join(format!("copy-of-{host}"));
        let copied = Command::new("skopeo")
            .arg("--registries-conf")
            .arg(&config)
            .args(["--insecure-policy", "copy", "--src-cert-dir"])
            .arg(&authorities)
            .arg(format!("docker://{host}/team/app:one"))
            .arg(format!("dir:{}", to.display()))
            .output()
            .await
            .unwrap();
        succeeded("skopeo", &copied);
        assert!(Path::new(&to).join("manifest.json").exists());
    }
}

/// Pulls with Podman, unless Podman can't run here.
async fn pulled_by_podman(scratch: &Scratch, files: &BTreeMap<String, String>) {
    if !podman::is_possible() {
        return;
    }
    let config = scratch.write("podman.conf", &files["registries.conf"]).unwrap();
    let policy = scratch.write("policy.json", podman::ANY_SIGNATURE).unwrap();
    // As in /etc/containers/certs.d/HOST:PORT, by which it knows no other place.
    let authorities = scratch.subdirectory("authorities-of-podman").unwrap();
    if let Some(authority) = files.get("ca.crt") {
        fs::write(authorities.join("ca.crt"), authority).unwrap();
    }
    // podman takes no long path for it.
    let home = Scratch::new("podman").unwrap();
    for host in HOSTS {
        let pulled = podman::command(home.path(), &config)
            .args(["pull", "--quiet", "--signature-policy"])
            .arg(&policy)
            .arg("--cert-dir")
            .arg(&authorities)
            .arg(format!("{host}/team/app:one"))
            .output()
            .await
            .unwrap();
        succeeded("podman", &pulled);
    }
}

/// The keys of dockerd's `daemon.json` that concern mirrors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Docker {
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
}

/// The keys of k3s' `registries.yaml` that concern mirrors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct K3s {
    mirrors: BTreeMap<String, K3sMirror>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct K3sMirror {
    endpoint: Vec<String>,
}

fn read_strictly(files: &BTreeMap<String, String>, address: &str) {
    let docker: Docker = serde_json::from_str(&files["daemon.json"]).unwrap();
    assert_eq!(docker.registry_mirrors, [format!("http://{address}")]);
    assert_eq!(docker.insecure_registries, [address]);
    let k3s: K3s = serde_saphyr::from_str(&files["registries.yaml"]).unwrap();
    assert_eq!(k3s.mirrors.keys().collect::<Vec<_>>(), HOSTS);
    for mirror in k3s.mirrors.values() {
        assert_eq!(mirror.endpoint, [format!("http://{address}")]);
    }
}

/// An upstream with an image, and a mirror of it that is ready.
async fn mirrored(bench: &Bench, mut spec: Value) -> Upstream {
    let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
    push_one(&upstream, 5).await;
    spec["upstreams"] = json!(HOSTS.map(|host| json!({"host": host, "remoteURL": upstream.url()})));
    bench.mirror("hub", spec).await;
    bench.until_ready().await;
    upstream
}

/// Containerd, Skopeo and Podman pull through the mirror by the published files.
#[tokio::test]
async fn published_files_work_for_node_clients() {
    let bench = Bench::start("node-files").await;
    let _kubelet = kubelet(&bench).await;
    let scratch = Scratch::new("node-files").unwrap();
    let upstream = mirrored(&bench, json!({"storage": {"type": "Ephemeral"}})).await;
    let files = published(&bench).await;
    let mirror = format!("{}:5000", address(&pods(&bench).await[0]));
    read_strictly(&files, &mirror);
    fetched_by_containerd(&scratch, &files).await;
    copied_by_skopeo(&scratch, &files).await;
    pulled_by_podman(&scratch, &files).await;
    assert!(upstream.counts().manifest_gets > 0);
}

/// The same over TLS, by the mirror's own authority: what nodes are to trust is in the files.
#[tokio::test]
async fn published_files_work_over_tls_for_node_clients() {
    let bench = Bench::start("node-files-tls").await;
    let _kubelet = kubelet(&bench).await;
    let scratch = Scratch::new("node-files-tls").unwrap();
    let spec = json!({
        "storage": {"type": "Ephemeral"}, "tls": {"mode": "SelfSigned"}, "service": {"type": "LoadBalancer"},
    });
    let upstream = mirrored(&bench, spec).await;
    // Nodes reach the Pod by a load balancer's address here, which is why its certificate has it.
    let address = address(&pods(&bench).await[0]);
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    bench
        .api::<Service>()
        .patch_status("hub", &PatchParams::default(), &Patch::Merge(&ingress))
        .await
        .unwrap();
    let files = published(&bench).await;
    let hosts = &files["docker.io.hosts.toml"];
    assert!(
        hosts.contains("[host.\"https://") && hosts.contains("ca = \"ca.crt\""),
        "{hosts}"
    );
    assert!(files["registries.conf"].contains("insecure = false"));
    testbed::install_crypto_provider();
    let authority = Certificate::from_pem(files["ca.crt"].as_bytes()).unwrap();
    let client = Client::builder().tls_certs_only([authority]).build().unwrap();
    soon("a certificate for that address", async || {
        client
            .get(format!("https://{address}:5000/v2/"))
            .send()
            .await
            .ok()
    })
    .await;
    fetched_by_containerd(&scratch, &files).await;
    copied_by_skopeo(&scratch, &files).await;
    pulled_by_podman(&scratch, &files).await;
    assert!(upstream.counts().manifest_gets > 0);
    let k3s: Value = serde_saphyr::from_str(&files["registries.yaml"]).unwrap();
    let trusted = &k3s["configs"][format!("{address}:5000")]["tls"]["ca_file"];
    assert_eq!(trusted, "/etc/rancher/k3s/ca.crt");
}
