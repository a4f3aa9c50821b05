//! A control plane to install the chart into: nothing is in it before.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use testbed::ControlPlane;
use testbed::control_plane::Options;

use crate::helm::Helm;

/// One that belongs to a test: definitions and cluster roles have no namespace.
pub(crate) struct Cluster {
    pub(crate) control_plane: ControlPlane,
    pub(crate) client: Client,
    pub(crate) helm: Helm,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::of(false).await
    }

    /// With what makes Pods of workloads.
    pub(crate) async fn with_controllers() -> Self {
        Self::of(true).await
    }

    async fn of(controller_manager: bool) -> Self {
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
}
