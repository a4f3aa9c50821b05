//! The node agent as a process, with the permissions that the documentation names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crds::RegistryMirror;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use testbed::binaries;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::process::{Daemon, command, free_ports};
use testbed::scratch::Scratch;
use testbed::upstream::{self, Upstream};

use tokio::process::Command;

use crate::bench::{Bench, push_one, soon};
use crate::pods::{address, kubelet, pods};

const CONFIG: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n";
/// The largest growth of the agent's memory by its work, in KiB.
const MAX_GROWTH: u64 = 10 << 10;

/// A containerd that imports drop-ins, without `config_path`.
const IMPORTS: &str = "version = 3\nimports = ['conf.d/*.toml']\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n";
const CRIO: &str = "[crio.image]\nauto_reload_registries = true\n";

struct Agent {
    daemon: Daemon,
    url: String,
    user: String,
}

/// Starts an agent as a `ServiceAccount` that may list and watch mirrors and `ConfigMap`s.
async fn start(bench: &Bench, scratch: &Scratch, root: &Path) -> Agent {
    start_with(bench, scratch, root, &[]).await
}

async fn start_with(bench: &Bench, scratch: &Scratch, root: &Path, flags: &[&str]) -> Agent {
    let namespace = bench.namespace.name();
    bench
        .apply::<ServiceAccount>(json!({"metadata": {"name": "agent"}}))
        .await;
    let rule = |group: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": ["list", "watch"]});
    let rules = [
        rule("registrymirror.io", "registrymirrors"),
        rule("", "configmaps"),
    ];
    bench
        .apply::<Role>(json!({"metadata": {"name": "agent"}, "rules": rules}))
        .await;
    let role_ref = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agent"});
    let subject = json!({"kind": "ServiceAccount", "name": "agent", "namespace": namespace});
    bench
        .apply::<RoleBinding>(
            json!({"metadata": {"name": "agent"}, "roleRef": role_ref, "subjects": [subject]}),
        )
        .await;
    let kubeconfig = bench.control_plane.service_account_kubeconfig(namespace, "agent");
    let [port] = free_ports().unwrap();
    let mut command = command(env!("CARGO_BIN_EXE_operator-under-test"));
    command
        .args(["agent", "--log-format=text", "--node-name=node-1"])
        .args(flags)
        .arg(format!("--namespace={namespace}"))
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg("--root")
        .arg(root)
        .env("KUBECONFIG", kubeconfig.await.unwrap());
    Agent {
        daemon: Daemon::spawn("agent", command, &scratch.path().join("agent.log")).unwrap(),
        url: format!("http://127.0.0.1:{port}"),
        user: format!("system:serviceaccount:{namespace}:agent"),
    }
}

impl Agent {
    async fn report(&self) -> Option<Value> {
        let response = reqwest::get(format!("{}/status", self.url)).await.ok()?;
        serde_json::from_slice(&response.bytes().await.ok()?).ok()
    }

    /// Returns the resident memory, in KiB.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    async fn until_state(&self, state: &str) -> Value {
        soon(&format!("state {state} in the report"), async || {
            let report = self.report().await?;
            (report["mirrors"][0]["state"] == state).then_some(report)
        })
        .await
    }
}

/// The file of a ready mirror appears within 5 s, and goes while the mirror is down. The agent lists and watches, writes
/// nothing, and needs at most 10 MiB more than at the start.
#[tokio::test]
async fn agent_configures_a_node_and_writes_no_object() {
    if skip_on_existing_cluster("agent_configures_a_node_and_writes_no_object") {
        return;
    }
    let mut bench = Bench::start("agent").await;
    let kubelet = kubelet(&bench).await;
    let scratch = Scratch::new("agent").unwrap();
    let root = scratch.subdirectory("root").unwrap();
    let certs = root.join("etc/containerd/certs.d");
    fs::create_dir_all(&certs).unwrap();
    fs::write(root.join("etc/containerd/config.toml"), CONFIG).unwrap();
    testbed::install_crypto_provider();
    let mark = bench.mark().await;
    let agent = start(&bench, &scratch, &root).await;
    soon("first report", async || agent.report().await).await;
    let idle = agent.memory();

    let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
    push_one(&upstream, 7).await;
    ready_mirror(&mut bench, &upstream).await;
    let hosts = certs.join("docker.io/hosts.toml");
    let since = Instant::now();
    soon("hosts.toml", async || hosts.exists().then_some(())).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    let report = agent.until_state("Configured").await;
    assert_eq!(
        (&report["node"], &report["runtime"], &report["directory"]),
        (
            &json!("node-1"),
            &json!("containerd"),
            &json!("/etc/containerd/certs.d")
        )
    );

    drop(kubelet);
    agent.until_state("Bypassed").await;
    assert!(!hosts.exists());
    let grown = agent.memory().saturating_sub(idle);
    assert!(grown < MAX_GROWTH, "{grown} KiB above {idle} KiB");
    check_requests(&bench, mark, &agent.user);
}

/// Creates a mirror with an address that answers `/v2/`, and no servers: the operator is stopped.
async fn answering_mirror(bench: &mut Bench) -> (Upstream, String) {
    bench.kill_operator();
    let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
    let spec = json!({
        "upstreams": [{"host": "docker.io"}, {"host": "quay.io"}], "storage": {"type": "Ephemeral"},
        "nodeConfiguration": {"mode": "Manage"},
    });
    bench.mirror("hub", spec).await;
    let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {"endpoint": {"url": upstream.url()}, "conditions": [condition]}});
    bench
        .api::<RegistryMirror>()
        .patch_status("hub", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    let authority = upstream.url().trim_start_matches("http://").to_owned();
    (upstream, authority)
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// podman's library, which CRI-O has, too, reads the agent's drop-in.
#[tokio::test]
async fn registries_conf_of_the_agent_asks_the_mirror() {
    if skip_on_existing_cluster("registries_conf_of_the_agent_asks_the_mirror") {
        return;
    }
    let mut bench = Bench::start("agent-crio").await;
    let scratch = Scratch::new("agent-crio").unwrap();
    let root = scratch.subdirectory("root").unwrap();
    write(&root, "etc/crio/crio.conf.d/10-reload.conf", CRIO);
    let foreign = "[[registry]]\nprefix = 'quay.io'\nlocation = 'mirror.example.com'\n";
    write(&root, "etc/containers/registries.conf.d/quay.conf", foreign);
    let (_upstream, authority) = answering_mirror(&mut bench).await;
    let agent = start(&bench, &scratch, &root).await;
    let report = agent.until_state("Conflict").await;
    assert_eq!(report["runtime"], "crio");
    let message = report["mirrors"][0]["message"].as_str().unwrap();
    assert!(message.contains("registries.conf.d/quay.conf"), "{message}");

    let drop_ins = root.join("etc/containers/registries.conf.d");
    let file = drop_ins.join("50-registry-mirror-docker.io.conf");
    soon("drop-in", async || file.exists().then_some(())).await;
    let reader = binaries::get("registries-conf").await.unwrap();
    let read = Command::new(reader)
        .arg(&file)
        .arg("docker.io/library/a:1")
        .output()
        .await
        .unwrap();
    let asked: Value = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(asked[0]["image"], format!("{authority}/docker.io/library/a:1"));
    assert_eq!(asked[1]["image"], "docker.io/library/a:1");
    assert!(!drop_ins.join("50-registry-mirror-quay.io.conf").exists());
}

/// containerd 2 reads the agent's drop-in, and keeps the other keys of the plugin.
#[tokio::test]
async fn containerd_merges_the_drop_in_of_the_agent() {
    if skip_on_existing_cluster("containerd_merges_the_drop_in_of_the_agent") {
        return;
    }
    let mut bench = Bench::start("agent-config-path").await;
    let scratch = Scratch::new("agent-config-path").unwrap();
    let root = scratch.subdirectory("root").unwrap();
    write(&root, "etc/containerd/config.toml", IMPORTS);
    let (_upstream, _) = answering_mirror(&mut bench).await;
    let flags = ["--set-config-path", "--keep-foreign-files"];
    let agent = start_with(&bench, &scratch, &root, &flags).await;
    let drop_in = root.join("etc/containerd/conf.d/registry-mirror.toml");
    soon("drop-in", async || drop_in.exists().then_some(())).await;
    let containerd = binaries::get("containerd").await.unwrap();
    let config = root.join("etc/containerd/config.toml");
    let dump = Command::new(containerd)
        .arg("--config")
        .arg(&config)
        .args(["config", "dump"])
        .output();
    let dump = String::from_utf8(dump.await.unwrap().stdout).unwrap();
    assert!(dump.contains("config_path = '/etc/containerd/certs.d'"), "{dump}");
    assert!(dump.contains("snapshotter = 'native'"), "{dump}");
    drop(agent);

    let mut cleanup = Command::new(env!("CARGO_BIN_EXE_operator-under-test"));
    let status = cleanup.args(["agent", "--cleanup", "--root"]).arg(&root).status();
    assert!(status.await.unwrap().success());
    let left: Vec<_> = fs::read_dir(root.join("etc/containerd")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Creates a mirror whose endpoint is its Pod: no Service leads to Pods that are processes. The operator, which would
/// correct the status, is stopped.
async fn ready_mirror(bench: &mut Bench, upstream: &Upstream) {
    let spec = json!({
        "upstreams": [{"host": "docker.io", "remoteURL": upstream.url()}], "storage": {"type": "Ephemeral"},
        "nodeConfiguration": {"mode": "Manage"},
    });
    bench.mirror("hub", spec).await;
    bench.until_ready().await;
    bench.stop_operator().await;
    let url = format!("http://{}:5000", address(&pods(bench).await[0]));
    let status = json!({"status": {"endpoint": {"url": url}}});
    bench
        .api::<RegistryMirror>()
        .patch_status("hub", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

fn check_requests(bench: &Bench, mark: testbed::audit::Mark, user: &str) {
    let mut events = bench.control_plane.audit().unwrap().since(mark).unwrap();
    events.retain(|event| event.user() == user);
    let asked: BTreeSet<_> = events
        .iter()
        .map(|event| format!("{} {}", event.verb, event.object_ref.resource))
        .collect();
    let expected = [
        "list configmaps",
        "list registrymirrors",
        "watch configmaps",
        "watch registrymirrors",
    ];
    assert_eq!(asked, expected.map(str::to_owned).into());
    assert!(
        events.iter().all(|event| event.code() != Some(403)),
        "{events:#?}"
    );
}
