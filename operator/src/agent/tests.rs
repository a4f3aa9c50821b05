use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
};

use axum::{Router, http::StatusCode};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;

const CONFIG: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n";
const CERTS: &str = "etc/containerd/certs.d";

/// Returns an empty directory as the root of a node.
pub(super) fn root() -> (TempDir, NodeRoot) {
    let directory = tempfile::tempdir().unwrap();
    let root = NodeRoot::open(directory.path()).unwrap();
    (directory, root)
}

/// Returns every entry below a directory with its content, sorted. Links are not followed.
pub(super) fn tree(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let content = if path.is_symlink() {
            fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else if path.is_dir() {
            entries.extend(tree(&path));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        entries.push((path.display().to_string(), content));
    }
    entries.sort();
    entries
}

/// A mirror that answers `/v2/` with a status: 200 at first.
struct FakeMirror {
    url: String,
    status: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

impl FakeMirror {
    async fn start() -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let current = Arc::clone(&status);
        let answer = move || async move { StatusCode::from_u16(current.load(Ordering::Relaxed)).unwrap() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, status, task }
    }

    /// Returns the mirror as the only target, for Docker Hub.
    fn targets(&self, fallback: &str) -> TargetSet {
        targets(&[("hub", &self.url, "docker.io")], fallback)
    }
}

impl Drop for FakeMirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An agent on a node whose root is a temporary directory.
struct Bench {
    agent: NodeAgent,
    directory: TempDir,
}

impl Bench {
    /// Returns a bench whose containerd has this configuration, and a running mirror.
    async fn with_mirror(config: &str) -> (Self, FakeMirror) {
        mirror::tls::provider();
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join(CERTS)).unwrap();
        fs::write(directory.path().join("etc/containerd/config.toml"), config).unwrap();
        let agent = Self::agent(&directory);
        (Self { agent, directory }, FakeMirror::start().await)
    }

    fn agent(directory: &TempDir) -> NodeAgent {
        NodeAgent {
            root: NodeRoot::open(directory.path()).unwrap(),
            options: AgentOptions {
                node: "node-1".to_owned(),
                namespaces: Vec::new(),
                certs_dir: None,
                sets_config_path: false,
                keeps_foreign: false,
            },
            mirrors: BTreeMap::new(),
            held: BTreeSet::new(),
            reporter: Reporter::new("node-1".to_owned()),
        }
    }

    fn hosts(&self, host: &str) -> PathBuf {
        self.directory.path().join(CERTS).join(host).join("hosts.toml")
    }

    fn text(&self, host: &str) -> String {
        fs::read_to_string(self.hosts(host)).unwrap()
    }

    fn message(&self) -> String {
        self.agent.reporter.current().unwrap().mirrors[0].message.clone()
    }

    /// Probes and updates the files this number of times.
    async fn turns(&mut self, targets: &TargetSet, count: usize) {
        for _ in 0..count {
            self.agent.update(targets, true).await;
        }
    }

    fn states(&self) -> Vec<NodeState> {
        let report = self.agent.reporter.current().unwrap();
        report.mirrors.iter().map(|mirror| mirror.state).collect()
    }
}

/// Returns targets with names, URLs and hosts, which are separated by spaces.
fn targets(mirrors: &[(&str, &str, &str)], fallback: &str) -> TargetSet {
    let targets = mirrors.iter().map(|(name, url, hosts)| {
        let upstreams = hosts.split(' ').map(|host| json!({"host": host}));
        let upstreams: Vec<_> = upstreams.collect();
        let mirror = serde_json::from_value(json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": name, "namespace": "mirrors"},
            "spec": {
                "upstreams": upstreams, "storage": {"type": "Ephemeral"},
                "nodeConfiguration": {"mode": "Manage", "fallback": fallback},
            },
            "status": {"endpoint": {"url": url}},
        }));
        let key = MirrorKey {
            namespace: "mirrors".to_owned(),
            name: (*name).to_owned(),
        };
        let target = Target::new(&key, &mirror.unwrap(), None).unwrap();
        (key, Some(Arc::new(target)))
    });
    Arc::new(targets.collect())
}

#[tokio::test]
async fn file_appears_after_the_first_answer() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    hub.status.store(503, Ordering::Relaxed);
    let targets = hub.targets("Allow");
    bench.turns(&targets, 3).await;
    assert!(!bench.hosts("docker.io").exists());
    assert_eq!(bench.states(), [NodeState::Bypassed]);
    hub.status.store(404, Ordering::Relaxed);
    bench.turns(&targets, 1).await;
    assert!(!bench.hosts("docker.io").exists());
    hub.status.store(401, Ordering::Relaxed);
    bench.turns(&targets, 1).await;
    let text = bench.text("docker.io");
    assert!(text.contains(&format!("[host.\"{}\"]", hub.url)), "{text}");
    assert_eq!(bench.states(), [NodeState::Configured]);
}

#[tokio::test]
async fn dead_mirror_is_bypassed_until_it_is_back() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    let targets = hub.targets("Allow");
    bench.turns(&targets, 1).await;
    hub.status.store(502, Ordering::Relaxed);
    bench.turns(&targets, 1).await;
    assert!(bench.hosts("docker.io").exists());
    bench.turns(&targets, 1).await;
    assert!(!bench.hosts("docker.io").exists());
    assert_eq!(bench.states(), [NodeState::Bypassed]);
    hub.status.store(200, Ordering::Relaxed);
    bench.turns(&targets, 2).await;
    assert!(!bench.hosts("docker.io").exists());
    bench.turns(&targets, 1).await;
    assert!(bench.hosts("docker.io").exists());
}

#[tokio::test]
async fn entry_without_fallback_stays() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    let targets = hub.targets("Never");
    bench.turns(&targets, 1).await;
    drop(hub);
    bench.turns(&targets, 4).await;
    assert!(bench.hosts("docker.io").exists());
    assert_eq!(bench.states(), [NodeState::Configured]);
}

#[tokio::test]
async fn deleted_mirror_leaves_no_file() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    let two = targets(
        &[("a", &hub.url, "docker.io"), ("b", &hub.url, "quay.io")],
        "Allow",
    );
    bench.turns(&two, 1).await;
    assert!(bench.hosts("docker.io").exists() && bench.hosts("quay.io").exists());
    bench
        .turns(&targets(&[("b", &hub.url, "quay.io")], "Allow"), 1)
        .await;
    assert!(!bench.hosts("docker.io").parent().unwrap().exists());
    assert!(bench.hosts("quay.io").exists());
}

/// A restart must not take a file away that works.
#[tokio::test]
async fn restarted_agent_keeps_files_for_a_failed_probe() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    let targets = hub.targets("Allow");
    bench.turns(&targets, 1).await;
    bench.agent = Bench::agent(&bench.directory);
    hub.status.store(500, Ordering::Relaxed);
    bench.turns(&targets, 1).await;
    assert!(bench.hosts("docker.io").exists());
    bench.turns(&targets, 1).await;
    assert!(!bench.hosts("docker.io").exists());
}

/// A mirror whose spec is rejected while an agent starts keeps the files of the previous spec.
#[tokio::test]
async fn restarted_agent_keeps_files_of_a_rejected_spec() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    let two = targets(
        &[("a", &hub.url, "docker.io"), ("b", &hub.url, "quay.io")],
        "Never",
    );
    bench.turns(&two, 1).await;
    bench.agent = Bench::agent(&bench.directory);
    let mut rejected = two.as_ref().clone();
    for target in rejected.values_mut() {
        *target = None;
    }
    bench.turns(&Arc::new(rejected.clone()), 3).await;
    assert!(bench.hosts("docker.io").exists() && bench.hosts("quay.io").exists());
    assert_eq!(bench.states(), [NodeState::Configured, NodeState::Configured]);
    // One is deleted.
    rejected.pop_first();
    bench.turns(&Arc::new(rejected), 1).await;
    assert!(!bench.hosts("docker.io").exists() && bench.hosts("quay.io").exists());
}

#[tokio::test]
async fn second_mirror_of_a_host_is_a_conflict() {
    let (mut bench, one) = Bench::with_mirror(CONFIG).await;
    let two = FakeMirror::start().await;
    let both = targets(
        &[("a", &one.url, "docker.io"), ("b", &two.url, "docker.io")],
        "Allow",
    );
    bench.turns(&both, 1).await;
    assert_eq!(bench.states(), [NodeState::Configured, NodeState::Conflict]);
    assert!(bench.text("docker.io").contains(&one.url));
    // The second one serves the host while the first one is down.
    one.status.store(500, Ordering::Relaxed);
    bench.turns(&both, 2).await;
    assert_eq!(bench.states(), [NodeState::Bypassed, NodeState::Configured]);
    assert!(bench.text("docker.io").contains(&two.url));
}

#[tokio::test]
async fn foreign_file_is_reported_and_kept() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    fs::create_dir(bench.hosts("docker.io").parent().unwrap()).unwrap();
    fs::write(bench.hosts("docker.io"), "theirs").unwrap();
    bench.turns(&hub.targets("Allow"), 2).await;
    assert_eq!(bench.states(), [NodeState::Conflict]);
    let message = bench.message();
    assert!(
        message.contains("/etc/containerd/certs.d/docker.io/hosts.toml"),
        "{message}"
    );
    assert_eq!(bench.text("docker.io"), "theirs");
}

#[tokio::test]
async fn missing_config_path_is_reported_until_it_is_there() {
    let (mut bench, hub) = Bench::with_mirror("version = 3\n").await;
    let targets = hub.targets("Allow");
    bench.turns(&targets, 1).await;
    assert_eq!(bench.states(), [NodeState::ConfigPathMissing]);
    assert!(!bench.hosts("docker.io").exists());
    fs::write(bench.directory.path().join("etc/containerd/config.toml"), CONFIG).unwrap();
    bench.turns(&targets, 1).await;
    assert_eq!(bench.states(), [NodeState::Configured]);
}

#[tokio::test]
async fn clean_up_leaves_the_node_as_it_was() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    bench.turns(&hub.targets("Allow"), 1).await;
    assert!(clean_up(bench.directory.path(), None).unwrap().is_empty());
    let left = fs::read_dir(bench.directory.path().join(CERTS)).unwrap();
    assert_eq!(left.count(), 0);
}

/// The registries that CRI-O can't pull through the mirror are named, with those that it can.
#[tokio::test]
async fn crio_names_hosts_that_it_cannot_use() {
    let (mut bench, hub) = Bench::with_mirror(CONFIG).await;
    fs::remove_dir_all(bench.directory.path().join("etc/containerd")).unwrap();
    fs::create_dir_all(bench.directory.path().join("etc/crio")).unwrap();
    let reloads = "[crio.image]\nauto_reload_registries = true\n";
    fs::write(bench.directory.path().join("etc/crio/crio.conf"), reloads).unwrap();
    let hosts = "docker.io [::1]:5000 quay.io a.example:5000";
    bench
        .turns(&targets(&[("hub", &hub.url, hosts)], "Allow"), 1)
        .await;
    assert_eq!(bench.states(), [NodeState::Unsupported]);
    let message = bench.message();
    for expected in [
        "can't use the mirror for [::1]:5000, a.example:5000: ",
        "CRI-O uses the mirror for docker.io, quay.io",
    ] {
        assert!(message.contains(expected), "{message}");
    }
    let drop_ins = bench.directory.path().join("etc/containers/registries.conf.d");
    for host in ["docker.io", "quay.io"] {
        let file = drop_ins.join(format!("50-registry-mirror-{host}.conf"));
        assert!(file.exists(), "{host}");
    }
}

/// The cleanup removes the files also after the administrator added mirrors that containerd refuses.
#[tokio::test]
async fn clean_up_ignores_inline_mirrors() {
    let config = CONFIG.replace("certs.d", "hosts.d");
    let (mut bench, hub) = Bench::with_mirror(&config).await;
    let targets = hub.targets("Allow");
    bench.turns(&targets, 1).await;
    let hosts = bench.directory.path().join("etc/containerd/hosts.d");
    assert!(hosts.join("docker.io/hosts.toml").exists());
    let config = format!("{config}[plugins.'io.containerd.cri.v1.images'.registry.mirrors.a]\n");
    fs::write(bench.directory.path().join("etc/containerd/config.toml"), config).unwrap();
    bench.turns(&targets, 1).await;
    assert_eq!(bench.states(), [NodeState::InlineMirrors]);
    assert!(clean_up(bench.directory.path(), None).unwrap().is_empty());
    assert!(!hosts.exists());
}
