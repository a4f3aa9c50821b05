//! A control plane to install the chart into: nothing is in it before.

use std::path::PathBuf;
use std::process::Stdio;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use testbed::control_plane::Options;
use testbed::scratch::Scratch;
use testbed::{ControlPlane, binaries, wait};
use tokio::process::Command;

use crate::SOON;
use crate::helm::Helm;

/// One that belongs to a test: definitions and cluster roles have no namespace.
pub(crate) struct Cluster {
    pub(crate) control_plane: ControlPlane,
    pub(crate) client: Client,
    pub(crate) helm: Helm,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::launch(false).await
    }

    /// With what makes Pods of workloads.
    pub(crate) async fn with_controllers() -> Self {
        Self::launch(true).await
    }

    async fn launch(controller_manager: bool) -> Self {
        let options = Options {
            controller_manager,
            manifests: Vec::<PathBuf>::new(),
        };
        let control_plane = ControlPlane::start(options).await.unwrap();
        Self {
            client: control_plane.client().await,
            helm: Helm::with(control_plane.kubeconfig()).await,
            control_plane,
        }
    }

    /// Installs or upgrades the release `rm` in the namespace `operators`, and waits for nothing: no Pod runs here.
    pub(crate) async fn install(&self, flags: &[&str]) -> Result<String, String> {
        let mut arguments = vec![
            "upgrade",
            "--install",
            "rm",
            "CHART",
            "--namespace",
            "operators",
            "--create-namespace",
        ];
        arguments.extend(flags);
        self.helm.run(&arguments).await
    }

    /// Makes a namespace that holds its Pods to the strictest standard.
    pub(crate) async fn restricted_namespace(&self, name: &str) {
        let label = (
            "pod-security.kubernetes.io/enforce".to_owned(),
            "restricted".to_owned(),
        );
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some([label].into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
    }

    /// Brings the Prometheus operator's definitions.
    pub(crate) async fn know_prometheus(&self) {
        let definitions = binaries::get("prometheus-definitions").await.unwrap();
        let file = definitions.display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &file])
            .await
            .unwrap();
        wait::until("monitors and rules", SOON, async || {
            let list = ["get", "podmonitors,prometheusrules", "--all-namespaces"];
            self.kubectl(&list).await.ok()
        })
        .await
        .unwrap();
    }

    /// Has the API server look at objects to the last field and keep none; what it has against them.
    pub(crate) async fn dry_run(&self, objects: &[Value]) -> Result<(), String> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let scratch = Scratch::new("chart-objects").unwrap();
        let file = scratch.write("objects.json", list.to_string()).unwrap();
        let file = file.display().to_string();
        let apply = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
        ];
        let said = self.kubectl(&[&apply[..], &[&file]].concat()).await?;
        if said.contains("unknown field") {
            return Err(said);
        }
        Ok(())
    }

    /// Runs kubectl, and returns its output or its error.
    async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let home = Scratch::new("kubectl").unwrap();
        let mut command = Command::new(binaries::get("kubectl").await.unwrap());
        command
            .args(arguments)
            .env("KUBECONFIG", self.control_plane.kubeconfig())
            .env("HOME", home.path())
            .stdin(Stdio::null());
        let output = command.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then(|| said.clone()).ok_or(said)
    }
}
