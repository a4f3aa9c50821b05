//! Commands that are shown as they are run.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use testbed::binaries;
use tokio::process::Command;

/// kubectl and helm for one cluster.
pub(crate) struct Commands {
    kubectl: PathBuf,
    helm: PathBuf,
    kubeconfig: PathBuf,
}

impl Commands {
    /// Finds or builds them.
    pub(crate) async fn new(kubeconfig: &Path) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            kubectl: binaries::get("kubectl").await?,
            helm: binaries::get("helm").await?,
            kubeconfig: kubeconfig.to_owned(),
        })
    }

    /// Runs kubectl, shows it with its output, and returns that.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        println!("$ kubectl {}", arguments.join(" "));
        let output = self.run(&self.kubectl, arguments).await?;
        print!("{output}");
        Ok(output)
    }

    /// Runs kubectl and returns its output.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        Ok(self.run(&self.kubectl, arguments).await?.trim().to_owned())
    }

    /// Runs helm and shows that.
    pub(crate) async fn helm(&self, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
        println!("$ helm {}", arguments.join(" "));
        self.run(&self.helm, arguments).await.map(drop)
    }

    async fn run(&self, program: &Path, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{} {}: {}",
            program.display(),
            arguments.join(" "),
            message.trim()
        )
        .into())
    }
}
