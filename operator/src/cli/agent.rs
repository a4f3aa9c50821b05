//! `registry-mirror agent`.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use kube::{Client, Config};

use super::{
    Failure,
    log::{self, Level, LogFormat},
    operator::{listen, no_cluster, stop_on_signal},
};
use crate::{
    agent::{self, AgentOptions},
    node_config::NodeRoot,
};

const EXAMPLES: &str = "\
Examples:
  registry-mirror agent --namespace mirrors
      Configure the containerd of this node for the mirrors in namespace mirrors, as a systemd unit
  registry-mirror agent --namespace mirrors --root /host
      The same in a Pod, with the host's /etc/containerd mounted at /host/etc/containerd
  curl -s 127.0.0.1:8081/status
      Show the state of each mirror on this node
  registry-mirror agent --cleanup
      Remove all files that the agent wrote on this node; end the agent first

Name only namespaces whose users may decide where the node pulls its images from. The agent needs the verbs list and
watch on registrymirrors and configmaps in these namespaces. It writes nothing to the API server.";

/// The arguments of `agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags are independent of each other"
)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) struct AgentArgs {
    /// The namespace of mirrors that the node uses; may be repeated
    #[arg(
        long = "namespace",
        env = "AGENT_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACE",
        required_unless_present = "cleanup"
    )]
    namespaces: Vec<String>,
    /// The directory that stands for the root directory of the node
    #[arg(long, default_value = "/", value_name = "DIRECTORY")]
    root: PathBuf,
    /// The directory on the node from which its runtime reads HOST/hosts.toml [default: detected]
    #[arg(long, value_name = "DIRECTORY")]
    certs_dir: Option<String>,
    /// Set containerd's config_path in /etc/containerd/conf.d if it is missing; restart containerd afterwards
    #[arg(long)]
    set_config_path: bool,
    /// Replace hosts.toml of other programs, keep them as hosts.toml.before, and restore them with --cleanup
    #[arg(long)]
    keep_foreign_files: bool,
    /// The node's name, for the report
    #[arg(long, env = "NODE_NAME", default_value = "", value_name = "NAME")]
    node_name: String,
    /// The address of /livez, /readyz and /status: `host:port`, or `:port` for every address
    #[arg(
        long,
        env = "LISTEN",
        default_value = "127.0.0.1:8081",
        value_name = "ADDRESS"
    )]
    listen: String,
    /// Remove the files that the agent wrote, and exit
    #[arg(long)]
    cleanup: bool,
    /// With --cleanup: then wait for SIGTERM, as a container of a DaemonSet
    #[arg(long, requires = "cleanup", conflicts_with = "daemonset")]
    stay: bool,
    /// With --cleanup: wait until the Pods of a DaemonSet have done so on all nodes, for at most 2 minutes
    #[arg(long, requires = "cleanup", value_name = "NAMESPACE/NAME")]
    daemonset: Option<String>,
    /// The amount of logging
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: Level,
    /// The format of log lines
    #[arg(long, env = "LOG_FORMAT", default_value = "json")]
    log_format: LogFormat,
}

/// Keeps the files of a node up to date until SIGTERM or SIGINT, or removes them.
pub(super) async fn run(args: AgentArgs) -> Result<(), Failure> {
    if let Some(daemonset) = &args.daemonset {
        return wait_for_nodes(&args, daemonset).await;
    }
    if args.cleanup {
        clean_up(&args)?;
        if args.stay {
            stop_on_signal()?.cancelled().await;
        }
        return Ok(());
    }
    let mut namespaces = args.namespaces.clone();
    namespaces.retain(|namespace| !namespace.is_empty());
    if namespaces.is_empty() {
        return Err(Failure::Invalid(
            "--namespace: name at least one namespace whose mirrors this node uses".to_owned(),
        ));
    }
    log::start(args.log_level, args.log_format);
    let root = NodeRoot::open(&args.root).map_err(|error| unusable_root(&args, &error))?;
    let shutdown = stop_on_signal()?;
    let listener = listen(&args.listen).await?;
    let client = client().await?;
    let options = AgentOptions {
        node: args.node_name,
        namespaces,
        certs_dir: args.certs_dir,
        sets_config_path: args.set_config_path,
        keeps_foreign: args.keep_foreign_files,
    };
    Ok(agent::run(client, root, options, listener, shutdown).await?)
}

async fn client() -> Result<Client, Failure> {
    let config = Config::infer().await.map_err(|error| no_cluster(&error))?;
    Client::try_from(config).map_err(|error| no_cluster(&error))
}

async fn wait_for_nodes(args: &AgentArgs, daemonset: &str) -> Result<(), Failure> {
    let Some((namespace, name)) = daemonset.split_once('/') else {
        return Err(Failure::Invalid(format!(
            "--daemonset {daemonset}: must be NAMESPACE/NAME"
        )));
    };
    log::start(args.log_level, args.log_format);
    let waited = agent::wait_for_nodes(client().await?, namespace, name).await;
    waited.map_err(|error| Failure::Environment(error.to_string()))
}

fn clean_up(args: &AgentArgs) -> Result<(), Failure> {
    let failed = agent::clean_up(&args.root, args.certs_dir.as_deref())
        .map_err(|error| unusable_root(args, &error))?;
    for message in &failed {
        writeln!(io::stderr(), "registry-mirror: {message}")?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::Environment(format!(
        "{} hosts still have files of the agent: remove the causes above, and run the command again",
        failed.len()
    )))
}

fn unusable_root(args: &AgentArgs, error: &io::Error) -> Failure {
    Failure::Environment(format!(
        "--root {}: can't be opened: {error}",
        args.root.display()
    ))
}
