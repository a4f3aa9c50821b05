//! `registry-mirror operator`.

use std::io;

use kube::Client;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{
    Failure,
    log::{self, Format, Level},
};
use crate::{
    desired::Release,
    health::{self, Health},
    run::{self, Options},
};

/// What the operator is told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Look after mirrors in this namespace only; may be repeated. Absent: in all namespaces
    #[arg(
        long = "watch-namespace",
        env = "WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACE"
    )]
    namespaces: Vec<String>,
    /// The image that mirrors run where their spec names none
    #[arg(long, env = "SERVER_IMAGE", default_value_t = Release::default().server_image, value_name = "IMAGE")]
    server_image: String,
    /// Where /livez, /readyz and /metrics are: `host:port`, or `:port` for every address
    #[arg(long, env = "LISTEN", default_value = ":8080", value_name = "ADDRESS")]
    listen: String,
    /// How much is logged
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: Level,
    /// How log lines are written
    #[arg(long, env = "LOG_FORMAT", default_value = "json")]
    log_format: Format,
}

/// Looks after mirrors until SIGTERM or SIGINT.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    log::start(args.log_level, args.log_format);
    let shutdown = stop_on_signal()?;
    let listener = listen(&args.listen).await?;
    let client = Client::try_default().await.map_err(|error| {
        Failure::Environment(format!(
            "can't tell which cluster to work with: {error}; set KUBECONFIG, or run in a Pod with a ServiceAccount"
        ))
    })?;
    let health = Health::default();
    let namespaces = args
        .namespaces
        .into_iter()
        .filter(|namespace| !namespace.is_empty())
        .collect();
    let options = Options {
        namespaces,
        release: Release {
            server_image: args.server_image,
        },
    };
    let serving = tokio::spawn(health::serve(listener, health.clone(), shutdown.clone()));
    run::run(client, options, health, shutdown.clone()).await;
    shutdown.cancel();
    serving.await.map_err(io::Error::other)??;
    tracing::info!("stopped");
    Ok(())
}

async fn listen(address: &str) -> Result<TcpListener, Failure> {
    let refused = |error: io::Error| {
        Failure::Environment(format!(
            "can't listen on {address} (--listen): {error}; stop what uses it, or set another"
        ))
    };
    match address.strip_prefix(':') {
        // Every address, of both families where there are two.
        Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
            // A node without IPv6 says so in one of several ways; a port that is taken stays taken.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind(format!("0.0.0.0:{port}")).await
            }
            bound => bound,
        },
        None => TcpListener::bind(address).await,
    }
    .map_err(refused)
}

/// Cancelled by the first signal that would end the process: SIGTERM and SIGINT, SIGHUP of a terminal that is closed,
/// and SIGQUIT.
pub(super) fn stop_on_signal() -> Result<CancellationToken, Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut hangup, mut quit) = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
        tracing::info!("stopping: what is running may end");
        stop.cancel();
    });
    Ok(shutdown)
}
