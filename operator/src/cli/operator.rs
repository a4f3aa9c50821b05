//! `registry-mirror operator`.

use std::{io, net::Ipv6Addr, num::NonZero};

use k8s_openapi::api::coordination::v1::Lease as Object;
use kube::{Client, Config};
use mirror::{
    config::duration::{GoDuration, InvalidDuration},
    request_host::PageHosts,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{
    Failure,
    log::{self, Level, LogFormat},
    policy::PolicyArgs,
};
use crate::{
    admin_server::{self, Health},
    controller,
    desired::{Platform, Release},
    lease::{Fence, Lease, Lost},
    node_poller::AgentService,
    rollout::RolloutConfig,
    run::{self, Options},
};

/// The arguments of `operator`.
#[derive(Debug, clap::Args)]
pub(super) struct OperatorArgs {
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
    /// The kind of cluster: on openshift, Pods of mirrors have the user and groups that it assigns
    #[arg(long, env = "PLATFORM", value_enum, default_value_t, value_name = "PLATFORM")]
    platform: Platform,
    /// The address of /livez, /readyz and /metrics: `host:port`, or `:port` for all addresses
    #[arg(long, env = "LISTEN", default_value = ":8080", value_name = "ADDRESS")]
    listen: String,
    /// A name by which browsers may open the pages of the operator and of the servers, such as that of an Ingress; may be
    /// repeated. Absent: IP addresses, localhost and names of the cluster only
    #[arg(
        long = "page-host",
        env = "PAGE_HOSTS",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    page_hosts: Vec<String>,
    /// The namespace of the Lease that elects one working operator. Absent: the Pod's namespace, or the kubeconfig's
    #[arg(long, env = "LEASE_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// The Lease's name: operators for different namespaces need different ones
    #[arg(
        long,
        env = "LEASE_NAME",
        default_value = "registry-mirror",
        value_name = "NAME"
    )]
    lease_name: String,
    /// Resync period: reconcile every mirror at least this often, such as `15m`
    #[arg(long, env = "RESYNC", default_value_t = controller::RESYNC.into(), value_parser = above_zero, value_name = "DURATION")]
    resync: GoDuration,
    /// Maximum number of mirrors that roll out a new version of the operator, such as a new server image, at the same time
    #[arg(long, env = "UPGRADE_MAX_CONCURRENT", default_value_t = NonZero::new(RolloutConfig::default().max_concurrent).unwrap_or(NonZero::<usize>::MIN), value_name = "MIRRORS")]
    upgrade_max_concurrent: NonZero<usize>,
    /// Time in which a mirror has to become ready with a new version, such as `90s`: after it, the upgrade pauses in its namespace
    #[arg(long, env = "UPGRADE_PROGRESS_DEADLINE", default_value_t = RolloutConfig::default().progress_deadline.into(), value_parser = above_zero, value_name = "DURATION")]
    upgrade_progress_deadline: GoDuration,
    /// The headless Service of the node agents, as NAMESPACE/NAME. Absent: no node has an agent
    #[arg(long, env = "AGENT_SERVICE", value_name = "NAMESPACE/NAME")]
    agent_service: Option<AgentService>,
    #[command(flatten)]
    policy: PolicyArgs,
    /// The log level
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: Level,
    /// The format of log lines
    #[arg(long, env = "LOG_FORMAT", default_value = "json")]
    log_format: LogFormat,
}

/// Reconciles mirrors until SIGTERM or SIGINT, while it holds the Lease.
pub(super) async fn run(args: OperatorArgs) -> Result<(), Failure> {
    log::start(args.log_level, args.log_format);
    let shutdown = stop_on_signal()?;
    let listener = listen(&args.listen).await?;
    let config = Config::infer().await.map_err(|error| no_cluster(&error))?;
    let page_hosts = page_hosts(&args.page_hosts)?;
    let (fence, health) = (Fence::default(), Health::new(page_hosts.clone()));
    let namespace = args.lease_namespace.clone();
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    let name = format!("{namespace}/{}", args.lease_name);
    let lease = lease(&args.lease_name, &namespace, &config, &fence)?;
    let client = fence.client(config).map_err(|error| no_cluster(&error))?;
    let options = options(args, name, page_hosts)?;
    let serving = tokio::spawn(admin_server::serve(listener, health.clone(), shutdown.clone()));
    // A standby operator is ready: a rollout continues with it and ends the leader.
    health.set_ready();
    let lost = match shutdown.run_until_cancelled(lease.acquire()).await {
        Some(held) => lead(&lease, held, client, options, health, &shutdown).await,
        None => None,
    };
    shutdown.cancel();
    serving.await.map_err(io::Error::other)??;
    tracing::info!("stopped");
    lost.map_or(Ok(()), |lost| Err(Failure::Environment(lost.to_string())))
}

/// Works until `shutdown` or the loss of the Lease.
async fn lead(
    lease: &Lease,
    held: Object,
    client: Client,
    options: Options,
    health: Health,
    shutdown: &CancellationToken,
) -> Option<Lost> {
    let working = run::run(client, options, health, shutdown.clone());
    tokio::select! {
        // Running reconciles are cancelled: their writes would be refused.
        lost = lease.keep(held) => {
            tracing::error!(%lost, "stopping");
            Some(lost)
        }
        () = working => {
            lease.release().await;
            None
        }
    }
}

fn lease(name: &str, namespace: &str, config: &Config, fence: &Fence) -> Result<Lease, Failure> {
    let client = Client::try_from(config.clone()).map_err(|error| no_cluster(&error))?;
    // The name of the Pod for people; the random part distinguishes processes.
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
    let identity = format!("{host}_{:016x}", rand::random::<u64>());
    Ok(Lease::new(client, namespace, name, identity, fence.clone()))
}

fn options(args: OperatorArgs, name: String, page_hosts: PageHosts) -> Result<Options, Failure> {
    let namespaces = args.namespaces.into_iter();
    Ok(Options {
        name,
        namespaces: namespaces.filter(|namespace| !namespace.is_empty()).collect(),
        release: Release {
            server_image: args.server_image,
            platform: args.platform,
            page_hosts,
            ..Release::default()
        },
        resync: args.resync.positive().unwrap_or(controller::RESYNC),
        upgrades: RolloutConfig {
            max_concurrent: args.upgrade_max_concurrent.get(),
            progress_deadline: args
                .upgrade_progress_deadline
                .positive()
                .unwrap_or(RolloutConfig::default().progress_deadline),
        },
        policy: args.policy.policy()?,
        agent_service: args.agent_service,
        ..Options::default()
    })
}

/// Returns the names of `--page-host`. Empty ones count for nothing: the chart has them in an environment variable.
fn page_hosts(names: &[String]) -> Result<PageHosts, Failure> {
    let names = names.iter().filter(|name| !name.is_empty()).cloned();
    PageHosts::new(names).map_err(|error| Failure::Invalid(format!("--page-host: {error}")))
}

fn above_zero(text: &str) -> Result<GoDuration, String> {
    let duration: GoDuration = text.parse().map_err(|error: InvalidDuration| error.to_string())?;
    let positive = duration.positive().map(|_| duration);
    positive.ok_or_else(|| "must be above zero".to_owned())
}

pub(super) fn no_cluster(error: &dyn std::error::Error) -> Failure {
    Failure::Environment(format!(
        "no cluster configured: {error}; set KUBECONFIG, or run in a Pod with a ServiceAccount"
    ))
}

pub(super) async fn listen(address: &str) -> Result<TcpListener, Failure> {
    let refused = |error: io::Error| {
        Failure::Environment(format!(
            "not listening on {address} (--listen): {error}; stop the process that uses it, or set another address"
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
        // An IPv6 address also without brackets, as Kubernetes writes it into an environment variable.
        None => match address.rsplit_once(':') {
            Some((ip, port)) if ip.parse::<Ipv6Addr>().is_ok() => {
                TcpListener::bind(format!("[{ip}]:{port}")).await
            }
            _ => TcpListener::bind(address).await,
        },
    }
    .map_err(refused)
}

/// Returns a token that the first SIGTERM, SIGINT, SIGQUIT or SIGHUP cancels.
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
        tracing::info!("stopping once running reconciles end");
        stop.cancel();
    });
    Ok(shutdown)
}
