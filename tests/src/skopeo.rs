//! Debian's skopeo: a client that is not ours.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

/// A copy failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("can't run skopeo ({0}): run tests/cluster/packages")]
    NotInstalled(io::Error),
    #[error("skopeo copy {from} {to}: {message}")]
    Failed {
        from: String,
        to: String,
        message: String,
    },
}

/// A registry with the credential for it. Its certificate, if it has one, is not checked.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Its address.
    pub address: SocketAddr,
    /// A user name with its password.
    pub user: Option<(String, String)>,
}

/// Copies the image with all its platforms from an OCI layout, byte for byte.
pub async fn push(layout: &Path, tag: &str, to: &Registry, name: &str) -> Result<(), Error> {
    let from = format!("oci:{}:{tag}", layout.display());
    copy(&from, &to.reference(name), &to.flags("dest")).await
}

/// Copies the image with all its platforms into a new OCI layout, byte for byte, under its tag.
pub async fn pull(from: &Registry, name: &str, directory: &Path) -> Result<(), Error> {
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let to = format!("oci:{}:{tag}", directory.display());
    copy(&from.reference(name), &to, &from.flags("src")).await
}

/// Copies the image at `ADDRESS/NAME:TAG` as [`pull`] does, over TLS, with no authorities but those (`*.crt`) in a
/// directory and the system's.
pub async fn pull_checked(
    image: &str,
    user: Option<(&str, &str)>,
    authorities: &Path,
    directory: &Path,
) -> Result<(), Error> {
    let flags = [
        format!("--src-cert-dir={}", authorities.display()),
        user.map_or("--src-no-creds".to_owned(), |(user, password)| {
            format!("--src-creds={user}:{password}")
        }),
    ];
    let to = format!("oci:{}:checked", directory.display());
    copy(&format!("docker://{image}"), &to, &flags).await
}

impl Registry {
    /// Returns a registry that asks for no credential.
    pub fn open(address: SocketAddr) -> Self {
        Self { address, user: None }
    }

    fn reference(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }

    fn flags(&self, side: &str) -> Vec<String> {
        let mut flags = vec![format!("--{side}-tls-verify=false")];
        match &self.user {
            Some((user, password)) => flags.push(format!("--{side}-creds={user}:{password}")),
            None => flags.push(format!("--{side}-no-creds")),
        }
        flags
    }
}

async fn copy(from: &str, to: &str, flags: &[String]) -> Result<(), Error> {
    let mut command = Command::new("skopeo");
    command.args([
        "--insecure-policy",
        "copy",
        "--quiet",
        "--all",
        "--preserve-digests",
    ]);
    let output = command
        .args(flags)
        .args([from, to])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = output.await.map_err(Error::NotInstalled)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        from: from.to_owned(),
        to: to.to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
