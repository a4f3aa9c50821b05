//! Helm, with a home of its own.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use testbed::binaries::{self, Kubernetes, workspace};
use testbed::scratch::Scratch;
use tokio::process::Command;

/// Helm and the chart.
pub(crate) struct Helm {
    program: PathBuf,
    kubeconfig: Option<PathBuf>,
    home: Scratch,
}

impl Helm {
    /// Helm without a cluster.
    pub(crate) async fn offline() -> Self {
        Self {
            program: binaries::get("helm").await.unwrap(),
            kubeconfig: None,
            home: Scratch::new("helm").unwrap(),
        }
    }

    /// Helm with a cluster.
    pub(crate) async fn with(kubeconfig: &Path) -> Self {
        Self {
            kubeconfig: Some(kubeconfig.to_owned()),
            ..Self::offline().await
        }
    }

    /// Runs Helm, and returns its output or its error. `CHART` is replaced by the chart's directory, `PREVIOUS` by the
    /// package of a chart that had no monitors, budgets and probes yet.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(arguments).output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if status.success() {
            Ok(text(stdout))
        } else {
            Err(text(stderr))
        }
    }

    /// The objects that the chart renders to with these flags, those of `helm test` apart.
    pub(crate) async fn template(&self, flags: &[&str]) -> Result<Vec<Value>, String> {
        // Of the API server that is not asked here.
        let version = format!("{}.0", Kubernetes::wanted().version());
        let mut arguments = vec![
            "template",
            "rm",
            "CHART",
            "--namespace",
            "operators",
            "--no-hooks",
            "--kube-version",
            &version,
        ];
        arguments.extend(flags);
        let yaml = self.run(&arguments).await?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&yaml).map_err(|error| format!("{error}\n{yaml}"))?;
        Ok(documents
            .into_iter()
            .filter(|document| !document.is_null())
            .collect())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let chart = workspace().join("charts/registry-mirror");
        let previous = workspace().join("tests/tests/chart/registry-mirror-0.0.1.tgz");
        let mut command = Command::new(&self.program);
        for argument in arguments {
            match *argument {
                "CHART" => command.arg(&chart),
                "PREVIOUS" => command.arg(&previous),
                other => command.arg(other),
            };
        }
        // Helm reads no files of the user, and knows the named cluster only.
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.home.path());
        }
        let nowhere = self.home.path().join("no-kubeconfig");
        command.env("KUBECONFIG", self.kubeconfig.as_ref().unwrap_or(&nowhere));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}
