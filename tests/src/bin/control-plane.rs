//! `control-plane`: etcd, kube-apiserver and kube-controller-manager on free ports of 127.0.0.1, without root, until
//! it is interrupted.

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use testbed::ControlPlane;
use testbed::control_plane::Options;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a Kubernetes control plane in the foreground. Once it answers, the path of its administrator's kubeconfig is
/// printed, alone on a line of standard output.
#[derive(Parser)]
struct Arguments {
    /// Manifests to apply before the controllers start: kinds above all, which the garbage collector otherwise takes
    /// up to 30 s to notice.
    #[arg(long, value_name = "FILE")]
    manifest: Vec<PathBuf>,
    /// Leave kube-controller-manager out.
    #[arg(long)]
    bare: bool,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let options = Options {
        controller_manager: !arguments.bare,
        manifests: arguments.manifest,
    };
    let control_plane = ControlPlane::start(options).await?;
    println!("{}", control_plane.kubeconfig().display());
    stopped().await?;
    Ok(())
}

async fn stopped() -> std::io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminated.recv() => Ok(()),
    }
}
