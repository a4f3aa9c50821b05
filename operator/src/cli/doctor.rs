//! `registry-mirror doctor`.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{Client, Config};
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
pub(super) mod pods;
mod policy;
mod report;

use report::{Finding, FindingTable, Output, Report};

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

/// Checks everything that a mirror needs, changes nothing, and prints what to do. The table grows while the checks run;
/// with `--wait` and for programs there is one report at the end.
///
/// # Errors
/// The most severe problem, by its class.
pub(super) async fn run(args: DoctorArgs) -> Result<(), Failure> {
    if args.output == Output::Table && !args.wait {
        let mut table = FindingTable::new(io::stdout());
        let report = Report::new(examine(&args, |findings| table.print(findings)).await?);
        table.end(&report)?;
        return report.failure().map_or(Ok(()), Err);
    }
    let deadline = Instant::now() + args.timeout.positive().unwrap_or_default();
    let mut before = Vec::new();
    let report = loop {
        let report = Report::new(examine(&args, |_| Ok(())).await?);
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

/// The findings so far, each of which `print` gets as soon as its check has ended.
struct Findings<P> {
    all: Vec<Finding>,
    print: P,
}

impl<P: FnMut(&[Finding]) -> io::Result<()>> Findings<P> {
    fn add(&mut self, found: Vec<Finding>) -> io::Result<()> {
        (self.print)(&found)?;
        self.all.extend(found);
        Ok(())
    }
}

/// Runs the checks, and returns all findings, or the one that makes other checks impossible.
async fn examine(
    args: &DoctorArgs,
    print: impl FnMut(&[Finding]) -> io::Result<()>,
) -> io::Result<Vec<Finding>> {
    let all = Vec::new();
    let mut findings = Findings { all, print };
    match connect(args).await {
        Ok((client, config, found)) => {
            findings.add(vec![found])?;
            check_cluster(args, &client, &config, &mut findings).await?;
        }
        Err(finding) => findings.add(vec![finding])?,
    }
    Ok(findings.all)
}

/// Returns a client of the API server with the finding about it.
///
/// # Errors
/// The finding that makes other checks impossible.
async fn connect(args: &DoctorArgs) -> Result<(Client, Config, Finding), Finding> {
    let config = args.connection.config().await;
    let config = config.map_err(|error| api_server::not_configured(&error))?;
    let client = Client::try_from(config.clone())
        .map_err(|error| api_server::not_configured(&NoCluster::from_error(&error)))?;
    let address = config.cluster_url.to_string();
    let found = api_server::check(&client, address.trim_end_matches('/')).await?;
    Ok((client, config, found))
}

async fn check_cluster<P: FnMut(&[Finding]) -> io::Result<()>>(
    args: &DoctorArgs,
    client: &Client,
    config: &Config,
    findings: &mut Findings<P>,
) -> io::Result<()> {
    findings.add(vec![definition::check(client).await])?;
    let (installations, mut found) = installation::find(client, &config.default_namespace).await;
    found.extend(installation::conflicts(&installations));
    findings.add(found)?;
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
    findings.add(permissions::check(config, given, &installations, &namespaces).await)?;
    // --as names the user that the report is about, and not the operator.
    if !given {
        findings.add(policy::check(config, &installations).await)?;
    }
    if !args.skip_mirrors {
        let name = args.name.as_deref();
        let mut mirrors = std::pin::pin!(mirrors::check(client, &scope, name, &installations).await);
        while let Some(found) = mirrors.next().await {
            findings.add(found)?;
        }
    }
    if args.nodes {
        findings.add(nodes::check(client, &scope).await)?;
    }
    Ok(())
}
