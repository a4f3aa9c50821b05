//! A node with the chart installed, a mirror, and Pods that use it.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use testbed::binaries::{self, workspace};
use testbed::scratch::Scratch;
use testbed::{Node, wait};

use crate::registry::{self, USER, user};

/// The registry's name, as Pods write it; it is no host's.
pub(crate) const NAME: &str = "registry.e2e.invalid";
pub(crate) const SOON: Duration = Duration::from_mins(2);
pub(crate) const MIRRORS: &str = "--namespace=mirrors";

pub(crate) struct Cluster {
    pub(crate) node: Node,
    pub(crate) scratch: Scratch,
}

impl Cluster {
    /// A node with the image of operator and mirror.
    pub(crate) async fn up(name: &str) -> Self {
        assert!(Node::is_possible(), "a node needs root");
        let archive = std::env::var_os("E2E_IMAGE").map(PathBuf::from);
        let archive = archive.unwrap_or_else(|| workspace().join("target/image/registry-mirror.tar"));
        assert!(
            archive.is_file(),
            "{} is missing: run make image",
            archive.display()
        );
        let node = Node::up(name, "syncFrequency: 2s").await.unwrap();
        node.import(&archive).await.unwrap();
        let scratch = Scratch::new("e2e").unwrap();
        Self { node, scratch }
    }

    /// Output of a command that must not fail.
    pub(crate) async fn run(&self, command: &[&str]) -> String {
        self.node
            .run(command)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> String {
        self.run(&[&["kubectl"], arguments].concat()).await
    }

    async fn apply(&self, objects: &[serde_json::Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = self.scratch.write("objects.json", list.to_string()).unwrap();
        self.kubectl(&["apply", "-f", &file.display().to_string()]).await;
    }

    pub(crate) async fn install(&self) {
        self.helm(&["install", "registry-mirror", "CHART", "--create-namespace"])
            .await;
    }

    /// Helm, until what it does has been done. `CHART` stands for the chart's directory.
    pub(crate) async fn helm(&self, arguments: &[&str]) {
        let helm = binaries::get("helm").await.unwrap();
        let chart = workspace().join("charts/registry-mirror").display().to_string();
        let mut command = self.node.command(&helm.display().to_string());
        command
            .args(arguments.iter().map(|argument| match *argument {
                "CHART" => &chart,
                other => other,
            }))
            .args(["--namespace=registry-mirror", "--wait", "--timeout=2m"]);
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.scratch.path());
        }
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Makes the mirror, waits until it is Ready, and returns the address that nodes pull through.
    pub(crate) async fn mirror(&self) -> String {
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": "mirrors", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "upstream", "namespace": "mirrors"},
                "type": "kubernetes.io/basic-auth", "stringData": {"username": user(USER.1), "password": USER.1}}),
            json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
                "metadata": {"name": "hub", "namespace": "mirrors"},
                "spec": {
                    "upstreams": [{"host": NAME, "remoteURL": registry::url(),
                        "credentialsSecretRef": {"name": "upstream"}, "insecureAllowHTTPCredentials": true}],
                    "storage": {"type": "Ephemeral"}}}),
        ])
        .await;
        let ready = [
            "kubectl",
            "wait",
            "--for=condition=Ready",
            "rmir/hub",
            MIRRORS,
            "--timeout=120s",
        ];
        if let Err(error) = self.node.run(&ready).await {
            panic!(
                "{error}\n{}",
                self.kubectl(&["describe", "rmir,pods", MIRRORS]).await
            );
        }
        let url = self
            .kubectl(&[
                "get",
                "rmir",
                "hub",
                MIRRORS,
                "-o",
                "jsonpath={.status.endpoint.url}",
            ])
            .await;
        let version = format!("{url}/v2/");
        let answers = async || self.node.run(&["curl", "-sf", &version]).await.ok();
        wait::until("answer from the mirror's address", SOON, answers)
            .await
            .unwrap();
        url
    }

    /// Pulls a tag through the mirror, as any client would.
    pub(crate) async fn pull(&self, mirror: &str, tag: &str) -> Result<(), testbed::node::Error> {
        let from = format!("{}/{NAME}/team/app:{tag}", mirror.replace("http://", "docker://"));
        let to = format!("oci:{}:{tag}", self.scratch.path().join("pulled").display());
        let copy = [
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            "--src-no-creds",
            "--src-tls-verify=false",
            &from,
            &to,
        ];
        self.node.run(&copy).await.map(drop)
    }

    /// Has containerd follow the file that the operator publishes for it. Nobody knows the registry by its name here:
    /// where it is goes before, as it does for any registry that is not at its own name.
    pub(crate) async fn follow_published_hosts(&self) {
        let published = self.published_hosts().await;
        assert!(published.starts_with("[host."), "{published}");
        let toml = format!("server = \"{}\"\n{published}", registry::url());
        self.node.write_hosts(NAME, &toml).unwrap();
    }

    /// Tells the mirror that nodes never fall back, and containerd what the operator then publishes, to the letter.
    pub(crate) async fn never_fall_back(&self) {
        let patch = r#"{"spec": {"nodeConfiguration": {"fallback": "Never"}}}"#;
        self.kubectl(&["patch", "rmir", "hub", MIRRORS, "--type=merge", "-p", patch])
            .await;
        let names_a_server = async || {
            let published = self.published_hosts().await;
            published.starts_with("server = ").then_some(published)
        };
        let published = wait::until("file without a fallback", SOON, names_a_server)
            .await
            .unwrap();
        self.node.write_hosts(NAME, &published).unwrap();
    }

    async fn published_hosts(&self) -> String {
        let key = format!("{NAME}.hosts.toml").replace('.', "\\.");
        let path = format!("jsonpath={{.data.{key}}}");
        self.kubectl(&["get", "configmap", "hub-hosts", MIRRORS, "-o", &path])
            .await
    }

    async fn deploy(&self, name: &str, tag: &str) {
        let auths = json!({"auths": {NAME: {"username": user(USER.1), "password": USER.1}}});
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull"},
                "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": auths.to_string()}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "imagePullSecrets": [{"name": "pull"}],
                    "containers": [{"name": "app", "image": format!("{NAME}/team/app:{tag}")}]}}}}),
        ])
        .await;
    }

    /// Starts a Deployment and tells how soon its Pod ran.
    pub(crate) async fn start_pod(&self, name: &str, tag: &str) -> Duration {
        let begin = Instant::now();
        self.deploy(name, tag).await;
        self.wait_for_pod(name).await;
        begin.elapsed()
    }

    pub(crate) async fn wait_for_pod(&self, name: &str) {
        let deployment = format!("deployment/{name}");
        let available = ["kubectl", "rollout", "status", &deployment, "--timeout=180s"];
        if let Err(error) = self.node.run(&available).await {
            panic!("{error}\n{}", self.kubectl(&["describe", "pods"]).await);
        }
    }

    /// Starts a Deployment whose image can't be pulled, and returns what the kubelet says of it.
    pub(crate) async fn refused_pod(&self, name: &str, tag: &str) -> String {
        self.deploy(name, tag).await;
        let selector = format!("--selector=app={name}");
        let why = "jsonpath={.items[*].status.containerStatuses[*].state.waiting}";
        let refused = async || {
            let waiting = self.kubectl(&["get", "pods", &selector, "-o", why]).await;
            (waiting.contains("ErrImagePull") || waiting.contains("ImagePullBackOff")).then_some(waiting)
        };
        wait::until("refusal to start", SOON, refused).await.unwrap()
    }

    /// Deletes a Deployment and all that the node has of the image.
    pub(crate) async fn forget(&self, name: &str) {
        self.kubectl(&["delete", "deployment", name, "--cascade=foreground"])
            .await;
        let selector = format!("--selector=app={name}");
        self.kubectl(&["wait", "--for=delete", "pods", &selector, "--timeout=60s"])
            .await;
        let ours = async || {
            let list = self.run(&["ctr", "-n", "k8s.io", "images", "ls"]).await;
            let target = |line: &&str| line.starts_with(NAME);
            let digest = list
                .lines()
                .find(target)?
                .split_whitespace()
                .find(|word| word.starts_with("sha256:"))?;
            let same = |line: &&str| line.contains(digest);
            Some(
                list.lines()
                    .filter(same)
                    .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
                    .collect::<Vec<_>>(),
            )
        };
        for image in ours().await.unwrap_or_default() {
            self.run(&["ctr", "-n", "k8s.io", "images", "rm", "--sync", &image])
                .await;
        }
    }

    pub(crate) async fn scale_mirror(&self, replicas: u32) {
        let replicas_flag = format!("--replicas={replicas}");
        self.kubectl(&["scale", "rmir/hub", MIRRORS, &replicas_flag])
            .await;
        let there = async || {
            let path = "jsonpath={.items[*].status.containerStatuses[*].ready}";
            let pods = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
            let ready = pods.split_whitespace().filter(|word| *word == "true").count();
            (ready == replicas as usize && pods.split_whitespace().count() == ready).then_some(())
        };
        wait::until("mirror of that size", SOON, there).await.unwrap();
    }

    pub(crate) async fn mirrors_log(&self) -> String {
        self.kubectl(&[
            "logs",
            MIRRORS,
            "--selector=app.kubernetes.io/instance=hub",
            "--tail=-1",
        ])
        .await
    }

    /// What the mirror's log has of blobs that came from the cache.
    pub(crate) async fn blob_hits(&self) -> Vec<String> {
        let log = self.mirrors_log().await;
        let hit = |line: &&str| line.contains("\"outcome\":\"hit\"") && line.contains("/blobs/");
        log.lines().filter(hit).map(str::to_owned).collect()
    }

    pub(crate) fn containerds_log(&self) -> String {
        fs::read_to_string(self.node.directory().join("log/containerd.log")).unwrap()
    }

    /// No finalizer, and nothing outside of the namespace.
    pub(crate) async fn deleting_the_namespace_leaves_nothing(&self) {
        self.kubectl(&["delete", "namespace", "mirrors", "--timeout=120s"])
            .await;
        for kinds in [
            "rmir,pods,services,configmaps,secrets,persistentvolumeclaims,statefulsets,deployments",
            "persistentvolumes,clusterroles",
        ] {
            let left = self
                .kubectl(&[
                    "get",
                    kinds,
                    "-A",
                    "-l",
                    "app.kubernetes.io/managed-by=registry-mirror",
                    "-o",
                    "name",
                ])
                .await;
            assert_eq!(left, "");
        }
    }
}
