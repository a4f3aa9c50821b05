//! A node with the image of operator and mirror, and what admins have: kubectl and Helm.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::Node;
use testbed::binaries::{self, workspace};
use testbed::scratch::Scratch;

use crate::registry::Registry;

pub(crate) const SOON: Duration = Duration::from_mins(2);

pub(crate) struct Cluster {
    pub(crate) node: Node,
    pub(crate) scratch: Scratch,
}

impl Cluster {
    /// The node, which the tests of all processes share, one after the other; with a registry, and with the chart
    /// installed.
    pub(crate) async fn with_chart_and_registry() -> (Self, Registry) {
        let (cluster, registry) = Self::with_registry().await;
        cluster
            .helm(&["install", "registry-mirror", "CHART", "--create-namespace"])
            .await;
        (cluster, registry)
    }

    /// The node with a registry, without the chart.
    pub(crate) async fn with_registry() -> (Self, Registry) {
        assert!(Node::is_possible(), "a node needs root");
        let archive = std::env::var_os("E2E_IMAGE").map(PathBuf::from);
        let archive = archive.unwrap_or_else(|| workspace().join("target/image/registry-mirror.tar"));
        assert!(
            archive.is_file(),
            "{} is missing: run make image",
            archive.display()
        );
        let node = Node::up("rmir-e2e", "syncFrequency: 2s").await.unwrap();
        node.import(&archive).await.unwrap();
        let registry = Registry::start(&node).await;
        let scratch = Scratch::new("e2e").unwrap();
        (Self { node, scratch }, registry)
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

    pub(crate) async fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = self.scratch.write("objects.json", list.to_string()).unwrap();
        self.kubectl(&["apply", "-f", &file.display().to_string()]).await;
    }

    /// Helm, until what it does has been done. `CHART` stands for the chart's directory.
    pub(crate) async fn helm(&self, arguments: &[&str]) {
        self.run_helm(&[arguments, &["--wait", "--timeout=2m"]].concat())
            .await;
    }

    /// Returns the rendered chart.
    pub(crate) async fn template(&self, flags: &[&str]) -> String {
        let version = ["--kube-version", "1.36.0", "--no-hooks"];
        let template = ["template", "registry-mirror", "CHART"];
        self.run_helm(&[&template[..], &version, flags].concat()).await
    }

    async fn run_helm(&self, arguments: &[&str]) -> String {
        let helm = binaries::get("helm").await.unwrap();
        let chart = workspace().join("charts/registry-mirror").display().to_string();
        let mut command = self.node.command(&helm.display().to_string());
        command
            .args(arguments.iter().map(|argument| match *argument {
                "CHART" => &chart,
                other => other,
            }))
            .arg("--namespace=registry-mirror");
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.scratch.path());
        }
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) async fn upgrade(&self, values: &str) {
        self.helm(&["upgrade", "registry-mirror", "CHART", values]).await;
    }
}
