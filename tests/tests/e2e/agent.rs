//! The node agent as the chart installs it: on a fresh node, through outages, and after the end of the release.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::binaries::workspace;
use testbed::{node, wait};

use crate::cluster::{Cluster, SOON};
use crate::mirror::MIRRORS;
use crate::pulls::meanwhile;
use crate::registry::{self, LOCAL, Registry, USER, user};

const RELEASE: [&str; 3] = ["registry-mirror", "CHART", "--create-namespace"];
const AGENT: &str = "--set=nodeAgent.enabled=true,nodeAgent.namespaces={mirrors}";
const STATUS: &str = "http://10.199.0.1:18081/status";
const FOREIGN: &str = "# of another program\nserver = \"https://quay.io\"\n";
/// The most memory of the agent that is not mapped from its file, in KiB.
const MAX_MEMORY: u64 = 10 << 10;
/// The number of pulls while the agent restarts.
const PULLS: usize = 20;

/// Returns every entry below a directory with its content, sorted.
fn tree(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            entries.push((path.clone(), Vec::new()));
            entries.extend(tree(&path));
        } else {
            let content = fs::read(&path).unwrap();
            entries.push((path, content));
        }
    }
    entries.sort();
    entries
}

impl Cluster {
    fn certs(&self) -> PathBuf {
        self.node.directory().join("certs.d")
    }

    fn hosts_toml(&self) -> PathBuf {
        self.certs().join(LOCAL).join("hosts.toml")
    }

    /// Creates the mirror of the registry at its local name, and waits until it is ready.
    async fn managed_mirror(&self) {
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "upstream", "namespace": "mirrors"},
                "type": "kubernetes.io/basic-auth", "stringData": {"username": user(USER.1), "password": USER.1}}),
            json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
                "metadata": {"name": "hub", "namespace": "mirrors"},
                "spec": {"storage": {"type": "Ephemeral"}, "nodeConfiguration": {"mode": "Manage"},
                    "upstreams": [Self::upstream()]}}),
        ])
        .await;
        self.mirror_says("Ready=True").await;
    }

    fn upstream() -> Value {
        json!({"host": LOCAL, "remoteURL": registry::url(), "credentialsSecretRef": {"name": "upstream"},
            "insecureAllowHTTPCredentials": true})
    }

    /// Runs a Pod of an image, which the node pulls by the registry's local name.
    async fn local_pod(&self, name: &str, tag: &str) {
        let auths = json!({"auths": {LOCAL: {"username": user(USER.1), "password": USER.1}}});
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "local"},
                "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": auths.to_string()}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
                "terminationGracePeriodSeconds": 0, "imagePullSecrets": [{"name": "local"}],
                "containers": [{"name": "app", "image": format!("{LOCAL}/team/app:{tag}")}]}}),
        ])
        .await;
        let pod = format!("pod/{name}");
        let ready = ["kubectl", "wait", "--for=condition=Ready", &pod, "--timeout=60s"];
        if let Err(error) = self.node.run(&ready).await {
            panic!("{error}\n{}", self.kubectl(&["describe", &pod]).await);
        }
        self.kubectl(&["delete", &pod, "--wait=false"]).await;
    }

    /// Pulls an image as containerd does by the agent's files, and returns the time.
    async fn local_pull(&self, tag: &str) -> Result<Duration, node::Error> {
        let image = format!("{LOCAL}/team/app:{tag}");
        let user = format!("{}:{}", user(USER.1), USER.1);
        let ctr = ["timeout", "20", "ctr", "--namespace=day", "images"];
        let hosts = [
            "pull",
            "--hosts-dir",
            "/etc/containerd/certs.d",
            "--user",
            &user,
            &image,
        ];
        let begin = Instant::now();
        let pulled = self.node.run(&[&ctr[..], &hosts].concat()).await;
        let took = begin.elapsed();
        let _ = self
            .node
            .run(&[&ctr[..], &["rm", "--sync", &image]].concat())
            .await;
        pulled.map(|_| took)
    }

    async fn report(&self) -> Option<Value> {
        let report = self
            .node
            .run(&["curl", "-sf", "--max-time", "2", STATUS])
            .await
            .ok()?;
        serde_json::from_str(&report).ok()
    }

    /// Waits until the agent reports a state of the mirror, and returns the message and the time.
    async fn until_state(&self, state: &str) -> (String, Duration) {
        let begin = Instant::now();
        let reported = async || {
            let report = self.report().await?;
            let mirror = &report["mirrors"][0];
            (mirror["state"] == state).then(|| mirror["message"].as_str().unwrap_or_default().to_owned())
        };
        match wait::until(state, SOON, reported).await {
            Ok(message) => (message, begin.elapsed()),
            Err(error) => panic!(
                "{error}\n{:#?}\n{}",
                self.report().await,
                self.mirrors_state().await
            ),
        }
    }

    /// Waits until the mirror's status has these numbers of nodes, and returns the time.
    async fn until_counted(&self, numbers: &str) -> Duration {
        let begin = Instant::now();
        let path = "jsonpath={.status.nodes}";
        let nodes = async || self.kubectl(&["get", "rmir/hub", MIRRORS, "-o", path]).await;
        let counted = async || (nodes().await == numbers).then_some(());
        if let Err(error) = wait::until("numbers of nodes", SOON, counted).await {
            panic!("{error}: {}\n{}", nodes().await, self.mirrors_state().await);
        }
        begin.elapsed()
    }

    /// Returns the lines of the mirror's log about requests of nodes.
    async fn requests(&self) -> usize {
        let instance = "--selector=app.kubernetes.io/instance=hub";
        let log = self.kubectl(&["logs", MIRRORS, instance, "--tail=-1"]).await;
        let fits = |line: &&str| line.contains("\"outcome\":") && line.contains("/v2/team/app/");
        log.lines().filter(fits).count()
    }

    /// Sends a signal to the mirror, which the kubelet may be starting again.
    async fn signal_mirror(&self, signal: &str) {
        let process = async || self.node.run(&["pgrep", "-x", "mirror"]).await.ok();
        let process = wait::until("mirror's process", SOON, process).await.unwrap();
        self.run(&["kill", signal, process.trim()]).await;
    }

    /// Ends a mirror that is about to end anyway: the kubelet does not start it again.
    async fn kill_mirror_for_good(&self) {
        self.kubectl(&["scale", "rmir/hub", MIRRORS, "--replicas=0"])
            .await;
        let path = "jsonpath={.items[*].metadata.deletionTimestamp}";
        let ends = async || {
            let pods = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
            (!pods.is_empty()).then_some(())
        };
        wait::until("end of the mirror's Pod", SOON, ends).await.unwrap();
        // The server may have ended by itself meanwhile.
        if let Ok(process) = self.node.run(&["pgrep", "-x", "mirror"]).await {
            let _ = self.node.run(&["kill", "-KILL", process.trim()]).await;
        }
    }

    /// Prints the agent's memory, and returns what is not mapped from its file, in KiB.
    async fn agent_memory(&self) -> u64 {
        let process = self.run(&["pgrep", "-f", "agent --root=/host"]).await;
        let status = self
            .run(&["cat", &format!("/proc/{}/status", process.trim())])
            .await;
        let value = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let (anonymous, all) = (value("RssAnon:"), value("VmRSS:"));
        println!("agent's memory: {anonymous} KiB, with its file {all} KiB");
        anonymous
    }

    async fn restart_containerd(&self) {
        let restart = workspace().join("tests/cluster/restart").display().to_string();
        self.run(&[&restart, "containerd"]).await;
        let answers = async || self.node.run(&["ctr", "version"]).await.ok();
        wait::until("containerd", SOON, answers).await.unwrap();
    }
}

fn from_node(registry: &Registry) -> usize {
    let pulls = registry.pulls();
    pulls
        .iter()
        .filter(|line| line.starts_with("127.0.0.1 ") || line.starts_with("::1 "))
        .count()
}

/// The chart with an agent and a mirror, on a node that has a file of another program.
async fn managed() -> (Cluster, Registry) {
    let (cluster, registry) = Cluster::with_registry().await;
    let foreign = cluster.certs().join("quay.io");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("hosts.toml"), FOREIGN).unwrap();
    cluster.kubectl(&["create", "namespace", "mirrors"]).await;
    cluster
        .helm(&[&["install"], &RELEASE[..], &[AGENT]].concat())
        .await;
    for tag in ["1", "2", "3", "4", "5"] {
        registry.push(&cluster.node, tag).await;
    }
    (cluster, registry)
}

/// Files appear with the mirror, a dead mirror costs nothing, and nothing is left after the release.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs: make e2e"]
async fn agent_manages_a_node_from_install_to_uninstall() {
    let (cluster, registry) = managed().await;
    let before = tree(&cluster.certs());
    cluster.managed_mirror().await;
    let begin = Instant::now();
    let there = async || cluster.hosts_toml().exists().then_some(());
    wait::until("hosts.toml", SOON, there).await.unwrap();
    let file = begin.elapsed();
    cluster.until_state("Configured").await;

    let direct = from_node(&registry);
    cluster.local_pod("first", "1").await;
    assert!(cluster.requests().await > 0, "the node asked the mirror nothing");
    assert_eq!(from_node(&registry), direct, "the node asked the registry");
    // The server saw an address of the node.
    let numbers = r#"{"bypassed":0,"configured":1,"failing":0,"pulling":1,"total":1}"#;
    let counted = cluster.until_counted(numbers).await;
    println!("the node counts as pulling {counted:?} after its pull");

    // A mirror that was killed, and one that hangs.
    cluster.signal_mirror("-KILL").await;
    let killed = cluster.local_pull("2").await.unwrap();
    cluster.kill_mirror_for_good().await;
    let begin = Instant::now();
    let gone = cluster.local_pull("5").await.unwrap();
    let (message, _) = cluster.until_state("Bypassed").await;
    let bypassed = begin.elapsed();
    assert!(message.contains("/v2/ does not answer"), "{message}");
    assert!(!cluster.hosts_toml().exists());
    let direct = cluster.local_pull("3").await.unwrap();
    cluster.scale_mirror(1).await;
    let (_, back) = cluster.until_state("Configured").await;
    cluster.signal_mirror("-STOP").await;
    let (_, hanging) = cluster.until_state("Bypassed").await;
    cluster.local_pull("4").await.unwrap();
    cluster.signal_mirror("-CONT").await;
    let (_, resumed) = cluster.until_state("Configured").await;
    println!(
        "hosts.toml {file:?} after Ready; pull {killed:?} after a kill, {gone:?} with the address gone, {direct:?} direct; bypassed after {bypassed:?} \
         (killed), {hanging:?} (hangs); back after {back:?}, {resumed:?}"
    );
    assert!(file < Duration::from_secs(5), "{file:?}");
    assert!(killed < direct + Duration::from_secs(1), "{killed:?}");
    assert!(
        bypassed < Duration::from_secs(5) && hanging < Duration::from_secs(6),
        "{bypassed:?} {hanging:?}"
    );
    assert!(
        back < Duration::from_secs(10) && resumed < Duration::from_secs(10),
        "{back:?} {resumed:?}"
    );
    let memory = cluster.agent_memory().await;
    assert!(memory < MAX_MEMORY, "{memory} KiB");

    // A registry that another program has a file for.
    let upstreams = json!({"upstreams": [Cluster::upstream(), {"host": "quay.io"}]});
    cluster.change_mirror(&upstreams).await;
    let (message, _) = cluster.until_state("Conflict").await;
    assert!(
        message.contains("/etc/containerd/certs.d/quay.io/hosts.toml"),
        "{message}"
    );
    assert!(cluster.hosts_toml().exists());
    let quay = cluster.certs().join("quay.io/hosts.toml");
    assert_eq!(fs::read_to_string(quay).unwrap(), FOREIGN);

    cluster.helm(&["uninstall", "registry-mirror"]).await;
    assert_eq!(tree(&cluster.certs()), before);
    let left = [
        "get",
        "daemonsets,jobs,pods",
        "--namespace=registry-mirror",
        "-o",
        "name",
    ];
    let gone = async || cluster.kubectl(&left).await.is_empty().then_some(());
    wait::until("end of the release's Pods", SOON, gone)
        .await
        .unwrap();
}

/// The agent restarts, the mirror's CA is replaced, and no pull fails.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs: make e2e"]
async fn agent_restart_and_ca_rotation_fail_no_pull() {
    let (cluster, _registry) = managed().await;
    cluster.managed_mirror().await;
    cluster.until_state("Configured").await;
    let before = cluster.requests().await;
    let restart = async {
        let agent = "daemonset/registry-mirror-agent";
        let namespace = "--namespace=registry-mirror";
        cluster.kubectl(&["rollout", "restart", agent, namespace]).await;
        cluster
            .kubectl(&["rollout", "status", agent, namespace, "--timeout=60s"])
            .await;
    };
    let pulls = async {
        for number in 0..PULLS {
            cluster.local_pull(["1", "2", "3"][number % 3]).await.unwrap();
            assert!(cluster.hosts_toml().exists(), "the file was gone");
        }
    };
    tokio::join!(restart, pulls);
    let asked = cluster.requests().await - before;
    assert!(asked >= PULLS, "{asked} requests of {PULLS} pulls");

    // From http to https, and to another CA.
    let ca_file = cluster.certs().join(LOCAL).join("registry-mirror.pem");
    let done = Cell::new(false);
    let rotate = async {
        cluster
            .change_mirror(&json!({"tls": {"mode": "SelfSigned"}}))
            .await;
        let there = async || fs::read_to_string(&ca_file).ok();
        let first = wait::until("CA on the node", SOON, there).await.unwrap();
        cluster.until_state("Configured").await;
        cluster
            .kubectl(&["delete", "secret", "hub-ca-key", MIRRORS])
            .await;
        let other = async || fs::read_to_string(&ca_file).ok().filter(|text| *text != first);
        wait::until("other CA on the node", SOON, other).await.unwrap();
        cluster.until_state("Configured").await;
        done.set(true);
    };
    let pull = async |number| cluster.local_pull(["1", "2", "3"][number % 3]).await.map(drop);
    let ((), record) = tokio::join!(rotate, meanwhile(&done, pull));
    println!(
        "{} pulls while the CA was replaced, {} failed",
        record.pulls, record.failed
    );
    assert_eq!(record.failed, 0, "{:#?}", record.failures);
    cluster.config_path_is_set_on_request().await;
}

impl Cluster {
    /// Without `config_path` the agent names the lines, sets it if the administrator wants that, and waits for a restart.
    async fn config_path_is_set_on_request(&self) {
        let config = self.node.directory().join("etc-containerd/config.toml");
        let text = fs::read_to_string(&config).unwrap();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.contains("config_path"))
            .collect();
        fs::write(&config, lines.join("\n") + "\n").unwrap();
        let (message, _) = self.until_state("ConfigPathMissing").await;
        assert!(
            message.contains("config_path = \"/etc/containerd/certs.d\""),
            "{message}"
        );

        let set = "--set=nodeAgent.setConfigPath=true";
        self.helm(&[&["upgrade"], &RELEASE[..2], &[AGENT, set]].concat())
            .await;
        let restart = async || {
            let report = self.report().await?;
            let message = report["mirrors"][0]["message"].as_str()?;
            message.contains("restart containerd").then_some(())
        };
        wait::until("request for a restart", SOON, restart).await.unwrap();
        self.restart_containerd().await;
        self.until_state("Configured").await;
        let dump = [
            "containerd",
            "--config",
            "/etc/containerd/config.toml",
            "config",
            "dump",
        ];
        let dump = self.run(&dump).await;
        assert!(dump.contains("config_path = '/etc/containerd/certs.d'"), "{dump}");
        assert!(dump.contains("cluster.test/pause:1"), "{dump}");

        // The agent off: no file of it remains.
        self.helm(
            &[
                &["upgrade"],
                &RELEASE[..2],
                &["--set=nodeAgent.enabled=false,nodeAgent.setConfigPath=true"],
            ]
            .concat(),
        )
        .await;
        assert!(!self.hosts_toml().exists());
        assert!(
            !self
                .node
                .directory()
                .join("etc-containerd/conf.d/registry-mirror.toml")
                .exists()
        );
    }
}
