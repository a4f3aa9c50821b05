//! The node agent as a process, with the permissions that the documentation names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;
use testbed::process::{Daemon, command, free_ports};
use testbed::scratch::Scratch;
use testbed::upstream::{self, Upstream};

use crate::bench::{Bench, push_one, soon};
use crate::pods::{address, kubelet, pods};

const CONFIG: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n";
/// The largest growth of the agent's memory by its work, in KiB.
const MAX_GROWTH: u64 = 10 << 10;

struct Agent {
    daemon: Daemon,
    url: String,
    user: String,
}

/// Starts an agent as a `ServiceAccount` that may list and watch mirrors and `ConfigMap`s.
async fn start(bench: &Bench, scratch: &Scratch, root: &Path) -> Agent {
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

/// Creates a mirror whose endpoint is its Pod: no Service leads to Pods that are processes. The operator, which would
/// correct the status, is stopped.
async fn ready_mirror(bench: &mut Bench, upstream: &Upstream) {
    let spec = json!({
        "upstreams": [{"host": "docker.io", "remoteURL": upstream.url()}], "storage": {"type": "Ephemeral"},
        "nodeConfiguration": {"mode": "Manage"},
    });
    bench.mirror("hub", spec).await;
    bench
        .until_condition("hub", ConditionType::Ready, "True", Reason::Serving)
        .await;
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
