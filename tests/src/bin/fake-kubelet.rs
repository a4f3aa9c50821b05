//! `fake-kubelet`: a node for a control plane without root, until it is interrupted.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use testbed::FakeKubelet;
use testbed::fake_kubelet::{NamedImage, Options};
use tokio::signal::unix::{SignalKind, signal};

/// Registers a Node and runs the Pods of a cluster as processes of this machine. Once it does, the Node's name is
/// printed, alone on a line of standard output.
#[derive(Parser)]
struct Arguments {
    /// The cluster, as its administrator.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: PathBuf,
    /// An image that can be had: its reference as Pods name it, and its programs, the entrypoint first.
    #[arg(long, value_name = "REFERENCE,PATH=FILE[,PATH=FILE…]", required = true)]
    image: Vec<NamedImage>,
    /// Only this namespace's Pods and claims.
    #[arg(long)]
    namespace: Option<String>,
    /// Seconds between two reads of the objects that Pods mount.
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    sync: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let images = arguments
        .image
        .into_iter()
        .map(|named| (named.reference, named.image));
    let options = Options {
        namespace: arguments.namespace,
        images: images.collect(),
        sync: Duration::from_secs(arguments.sync),
    };
    let kubelet = FakeKubelet::start(&arguments.kubeconfig, options).await?;
    println!("{}", kubelet.node());
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminated.recv() => {}
    }
    drop(kubelet);
    Ok(())
}
