//! `kubectl rmir logs`: the logs of the servers of a mirror.

use std::io::{self, Write};

use futures::{AsyncBufReadExt, TryStreamExt, future::try_join_all};
use kube::{ResourceExt, api::LogParams};
use mirror::config::duration::GoDuration;

use super::cluster::{ClusterClient, MirrorArgs};
use crate::{cli::Failure, cluster::error_message};

const EXAMPLES: &str = "\
Examples:
  kubectl rmir logs -n mirrors --follow
      What the servers of the namespace's mirror do
  kubectl rmir logs hub --since 10m --tail 100
      The last lines of each server";

/// The arguments of `logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LogsArgs {
    /// The mirror [default: the only one of the namespace]
    #[arg(conflicts_with = "mirror", add = super::complete::mirrors())]
    name: Option<String>,
    /// Print new lines until the command is ended
    #[arg(short, long)]
    follow: bool,
    /// The number of last lines of each server
    #[arg(long, value_name = "LINES", default_value_t = 200)]
    tail: i64,
    /// Only lines of this time, such as 10m
    #[arg(long, value_name = "DURATION")]
    since: Option<GoDuration>,
    #[command(flatten)]
    on: MirrorArgs,
}

/// Prints the logs. With several servers, each line begins with the name of the Pod.
///
/// # Errors
/// The API server does not answer, or no Pod runs.
pub(super) async fn run(args: LogsArgs) -> Result<(), Failure> {
    let cluster = args.on.cluster.connect().await?;
    let name = args.name.as_deref().or(args.on.mirror.as_deref());
    let mirror = cluster.mirror(name).await?.name_any();
    let pods = cluster.running(&mirror, args.on.pod.as_deref()).await?;
    let since = args.since.and_then(GoDuration::positive);
    let params = LogParams {
        follow: args.follow,
        tail_lines: Some(args.tail),
        since_seconds: since.and_then(|since| i64::try_from(since.as_secs()).ok()),
        ..LogParams::default()
    };
    let has_prefix = pods.len() > 1;
    let printed = pods.iter().map(|pod| print(&cluster, pod, &params, has_prefix));
    try_join_all(printed).await.map(|_| ())
}

async fn print(
    cluster: &ClusterClient,
    pod: &str,
    params: &LogParams,
    has_prefix: bool,
) -> Result<(), Failure> {
    let failed = |reason: String| Failure::Environment(format!("log of Pod {pod} not readable: {reason}"));
    let stream = cluster.pod_api().log_stream(pod, params).await;
    let stream = stream.map_err(|error| failed(error_message(&error)))?;
    let mut lines = stream.lines();
    while let Some(line) = lines
        .try_next()
        .await
        .map_err(|error| failed(error.to_string()))?
    {
        let mut stdout = io::stdout().lock();
        if has_prefix {
            write!(stdout, "[{pod}] ")?;
        }
        writeln!(stdout, "{line}")?;
    }
    Ok(())
}
