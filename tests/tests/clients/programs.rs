//! The clients, as a user runs them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use testbed::binaries;
use tokio::process::Command;

/// The longest that a client may take: some wait and ask again several times.
const LIMIT: Duration = Duration::from_mins(2);

/// The output of a program, or its error.
pub(crate) type Ran = Result<String, String>;

/// Runs it to its end.
pub(crate) async fn run(command: &mut Command) -> Ran {
    let name = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, output).await;
    let output = output.map_err(|_| format!("{name}: no end"))?;
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(text(&output.stderr))
}

/// Debian's skopeo, which trusts no certificate and needs none.
pub(crate) async fn skopeo(arguments: &[&str]) -> Ran {
    run(Command::new("skopeo").arg("--insecure-policy").args(arguments)).await
}

/// go-containerregistry's crane.
pub(crate) async fn crane(arguments: &[&str]) -> Ran {
    let program = binaries::get("crane").await.map_err(|error| error.to_string())?;
    // Without a home of its own it would read the user's passwords.
    let mut command = Command::new(program);
    run(command
        .env("DOCKER_CONFIG", "/nonexistent")
        .arg("--insecure")
        .args(arguments))
    .await
}

/// regclient's regctl, for registries without TLS.
pub(crate) async fn regctl(home: &Path, registries: &[SocketAddr], arguments: &[&str]) -> Ran {
    let program = binaries::get("regctl").await.map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.env("HOME", home).args(arguments);
    for address in registries {
        command.arg("--host").arg(format!("reg={address},tls=disabled"));
    }
    run(&mut command).await
}
