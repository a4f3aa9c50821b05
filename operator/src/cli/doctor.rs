//! `registry-mirror doctor`.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use kube::Client;
use mirror::config::duration::GoDuration;

use super::{
    Failure,
    connection::{self, NoCluster},
    plugin::complete,
};
use crate::cluster::{Scope, error_message};

mod api_server;
mod conditions;
mod definition;
mod endpoint;
mod evictions;
mod installation;
mod mirrors;
mod nodes;
mod permissions;
mod policy;
mod report;

use report::{Finding, Output, Report};

const EXAMPLES: &str = "\
Examples:
  registry-mirror doctor -A
      Check the cluster of the kubeconfig and every mirror in it
  registry-mirror doctor -n mirrors --nodes
      List also the nodes that agents configure, and those that pulled nothing
  registry-mirror doctor hub -n mirrors --wait
      Wait until one mirror works, and say what is wrong until then
  registry-mirror doctor -n mirrors -o json
      Check the mirrors of one namespace, for a machine
  registry-mirror doctor --as system:serviceaccount:registry-mirror:registry-mirror
      Check with the operator's own rights

Exit codes, of the first that applies; warnings do not count:
  4  the cluster: the API server, the definition, the operator or its rights, Pods, claims
  2  a mirror's spec, or the arguments
  3  something that a spec refers to is missing, malformed or rejected
  1  anything else is wrong
  0  nothing is wrong";

/// The interval between two rounds of `--wait`.
const ROUND: Duration = Duration::from_secs(2);

/// The arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command line"
)]
pub(super) struct DoctorArgs {
    /// Check this mirror only
    #[arg(conflicts_with_all = ["all_namespaces", "skip_mirrors"], add = complete::mirrors())]
    name: Option<String>,
    /// Check the mirrors of this namespace. Absent: that of the context
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces", add = complete::namespaces())]
    namespace: Option<String>,
    /// Check the mirrors of every namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// List the nodes of mirrors with mode Manage, with the state of each mirror and its last pull
    #[arg(long, conflicts_with = "skip_mirrors")]
    nodes: bool,
    /// Check the cluster and the operator only
    #[arg(long)]
    skip_mirrors: bool,
    /// Check again until nothing is wrong, and print what changes
    #[arg(long)]
    wait: bool,
    /// The time after which --wait ends with what is still wrong
    #[arg(long, value_name = "DURATION", default_value = "5m", requires = "wait")]
    timeout: GoDuration,
    /// The format of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
    #[command(flatten)]
    connection: connection::Connection,
}

/// Checks everything that a mirror needs, changes nothing, and prints what to do.
///
/// # Errors
/// The most severe problem, by its class.
pub(super) async fn run(args: DoctorArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout.positive().unwrap_or_default();
    let mut before = Vec::new();
    let report = loop {
        let findings = examine(&args).await.unwrap_or_else(|finding| vec![finding]);
        let report = Report::new(findings);
        if !args.wait || report.failure().is_none() || Instant::now() >= deadline {
            break report;
        }
        // To stderr: stdout has one report, at the end.
        for problem in report.problems().filter(|problem| !before.contains(problem)) {
            writeln!(io::stderr(), "waiting: {problem}")?;
        }
        before = report.problems().collect();
        tokio::time::sleep(ROUND).await;
    };
    report.print(args.output, &mut io::stdout().lock())?;
    report.failure().map_or(Ok(()), Err)
}

/// Returns all findings, or the one that makes other checks impossible.
async fn examine(args: &DoctorArgs) -> Result<Vec<Finding>, Finding> {
    let config = args.connection.config().await;
    let config = config.map_err(|error| api_server::not_configured(&error))?;
    let client = Client::try_from(config.clone())
        .map_err(|error| api_server::not_configured(&NoCluster::from_error(&error)))?;
    let address = config.cluster_url.to_string();
    let mut findings = vec![api_server::check(&client, address.trim_end_matches('/')).await?];
    findings.push(definition::check(&client).await);
    let (installations, found) = installation::find(&client, &config.default_namespace).await;
    findings.extend(found);
    findings.extend(installation::conflicts(&installations));
    let scope = match (&args.namespace, args.all_namespaces) {
        (_, true) => Scope::Cluster,
        (Some(namespace), _) => Scope::Namespace(namespace.clone()),
        (None, _) => Scope::Namespace(config.default_namespace.clone()),
    };
    let namespaces: Vec<_> = match &scope {
        Scope::Cluster => Vec::new(),
        Scope::Namespace(namespace) => vec![namespace.clone()],
    };
    let given = args.connection.user.is_some();
    findings.extend(permissions::check(&config, given, &installations, &namespaces).await);
    // --as names the user that the report is about, and not the operator.
    if !given {
        findings.extend(policy::check(&config, &installations).await);
    }
    if !args.skip_mirrors {
        let name = args.name.as_deref();
        findings.extend(mirrors::check(&client, &scope, name, &installations).await);
    }
    if args.nodes {
        findings.extend(nodes::check(&client, &scope).await);
    }
    Ok(findings)
}
