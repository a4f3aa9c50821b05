//! `kubectl rmir status`: a mirror on one screen.

use std::time::Duration;

use crds::{RegistryMirror, node_configuration::NodeConfigurationMode, tls::TlsMode};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use mirror::admin::Status;
use serde::Serialize;
use tokio::time::timeout;

use super::{
    cluster::{ClusterArgs, ClusterClient, is_ready, is_running},
    server,
    terminal::{self, Format},
};
use crate::{
    cli::{Failure, doctor::pods},
    cluster::Scope,
};

const EXAMPLES: &str = "\
Examples:
  kubectl rmir status -n mirrors
      The mirror of the namespace on one screen, or a line for each of several
  kubectl rmir status hub -n mirrors -o json
      For a machine
  kubectl rmir status -A
      A line for each mirror of the cluster";

/// The maximum number of Pods that are asked at the same time.
const AT_A_TIME: usize = 4;
/// The time limit for the report of a Pod.
const REPORT_TIMEOUT: Duration = Duration::from_secs(8);

/// The arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    /// The mirror [default: all of the namespace]
    #[arg(add = super::complete::mirrors())]
    name: Option<String>,
    /// Show the mirrors of every namespace
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    all_namespaces: bool,
    /// The format of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The state of a mirror.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MirrorState {
    namespace: String,
    name: String,
    ready: bool,
    reason: String,
    message: String,
    endpoint: Option<String>,
    replicas: Replicas,
    server_version: Option<String>,
    certificate: String,
    nodes: String,
    conditions: Vec<ConditionState>,
    upstreams: Vec<UpstreamState>,
    /// The caches, one for each Pod.
    cache: Vec<CacheState>,
}

#[derive(Debug, Serialize)]
struct Replicas {
    ready: i32,
    total: i32,
}

#[derive(Debug, Serialize)]
struct ConditionState {
    r#type: String,
    status: String,
    reason: String,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UpstreamState {
    host: String,
    state: String,
    credentials: Option<String>,
    /// The smallest number that a Pod reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit_remaining: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CacheState {
    pod: String,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blobs: Option<u64>,
    /// The reason why the Pod gave no report.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints the state of one mirror, or a line for each of several.
///
/// # Errors
/// The API server does not answer, or there is no such mirror.
pub(super) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let cluster = args.cluster.connect().await?;
    let mut mirrors = match &args.name {
        Some(name) => vec![cluster.mirror(Some(name)).await?],
        None if args.all_namespaces => cluster.mirrors(&Scope::Cluster).await?,
        None => {
            cluster
                .mirrors(&Scope::Namespace(cluster.namespace.clone()))
                .await?
        }
    };
    if mirrors.is_empty() && !args.all_namespaces {
        // The failure says what to do.
        mirrors.push(cluster.mirror(None).await?);
    }
    let states = stream::iter(&mirrors).map(|mirror| state(&cluster, mirror));
    let states: Vec<_> = states.buffered(AT_A_TIME).collect().await;
    match (args.output, states.as_slice()) {
        (Format::Json, [state]) if !args.all_namespaces => terminal::print_json(state),
        (Format::Json, states) => terminal::print_json(&serde_json::json!({ "items": states })),
        (Format::Table, [state]) if !args.all_namespaces => terminal::print(&screen(state)),
        (Format::Table, []) => terminal::print_note("no RegistryMirror found in any namespace"),
        (Format::Table, states) => terminal::print(&lines(states)),
    }
}

async fn state(cluster: &ClusterClient, mirror: &RegistryMirror) -> MirrorState {
    let namespace = mirror.namespace().unwrap_or_default();
    let own = ClusterClient {
        client: cluster.client.clone(),
        namespace: namespace.clone(),
    };
    let (cache, reports) = reports(&own, &mirror.name_any()).await;
    let status = mirror.status.clone().unwrap_or_default();
    let condition = |name: &str| status.conditions.iter().find(|condition| condition.type_ == name);
    let ready = condition("Ready");
    MirrorState {
        name: mirror.name_any(),
        ready: ready.is_some_and(|ready| ready.status == "True"),
        reason: ready.map_or_else(|| "NoStatus".to_owned(), |ready| ready.reason.clone()),
        message: ready.map_or_else(
            || "no operator has reconciled the mirror yet".to_owned(),
            |ready| ready.message.clone(),
        ),
        replicas: Replicas {
            ready: status.ready_replicas,
            total: status.replicas,
        },
        certificate: match (mirror.spec.tls.mode, condition("TLSReady")) {
            (TlsMode::Disabled, _) => "none: the mirror serves http".to_owned(),
            (_, Some(condition)) => condition.message.clone(),
            (_, None) => "not reported yet".to_owned(),
        },
        nodes: nodes(mirror),
        conditions: conditions(mirror),
        upstreams: upstreams(mirror, &reports),
        server_version: status.known_server_version().map(str::to_owned),
        endpoint: status.endpoint.map(|endpoint| endpoint.url),
        namespace,
        cache,
    }
}

fn conditions(mirror: &RegistryMirror) -> Vec<ConditionState> {
    let conditions = mirror.status.iter().flat_map(|status| &status.conditions);
    let state = |condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| ConditionState {
        r#type: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    };
    conditions.map(state).collect()
}

fn nodes(mirror: &RegistryMirror) -> String {
    let endpoint = mirror.status.as_ref().and_then(|status| status.endpoint.as_ref());
    let map = endpoint.and_then(|endpoint| endpoint.hosts_config_map.as_deref());
    match (mirror.spec.node_configuration.mode, map) {
        (NodeConfigurationMode::None, _) => {
            "nodeConfiguration.mode is None: no files are published".to_owned()
        }
        (_, Some(map)) => match mirror.status.as_ref().and_then(|status| status.nodes) {
            Some(nodes) => format!(
                "{} of {} configured by agents, {} bypassed, {} failing",
                nodes.configured, nodes.total, nodes.bypassed, nodes.failing
            ),
            None => format!("files in ConfigMap {map}"),
        },
        (_, None) => "files not published yet".to_owned(),
    }
}

fn upstreams(mirror: &RegistryMirror, reports: &[Status]) -> Vec<UpstreamState> {
    let known = mirror.status.iter().flat_map(|status| &status.upstreams);
    let state = |upstream: &crds::status::UpstreamStatus| {
        let live = reports.iter().flat_map(|report| &report.upstreams);
        let remaining = live
            .filter(|live| live.host == upstream.host)
            .filter_map(|live| live.rate_limit_remaining);
        UpstreamState {
            host: upstream.host.clone(),
            state: format!("{:?}", upstream.state),
            credentials: upstream.credentials.as_ref().map(|credentials| {
                let (secret, version) = (&credentials.secret, credentials.version);
                format!("Secret {secret}, version {version}")
            }),
            rate_limit_remaining: remaining.min(),
        }
    };
    known.map(state).collect()
}

/// Returns the cache of each Pod, and the reports of the servers that answered.
async fn reports(cluster: &ClusterClient, mirror: &str) -> (Vec<CacheState>, Vec<Status>) {
    let pods = cluster.pods(mirror).await.unwrap_or_default();
    let asked = stream::iter(&pods).map(|pod| report(cluster, pod));
    let asked: Vec<_> = asked.buffered(AT_A_TIME).collect().await;
    let (mut caches, mut reports) = (Vec::new(), Vec::new());
    for (pod, report) in pods.iter().zip(asked) {
        let mut cache = CacheState {
            pod: pod.name_any(),
            ready: is_ready(pod),
            bytes: None,
            limit_bytes: None,
            blobs: None,
            error: None,
        };
        match report {
            Ok(report) => {
                cache.bytes = Some(report.cache.bytes);
                cache.limit_bytes = report.cache.limit_bytes;
                cache.blobs = Some(report.cache.blobs);
                reports.push(report);
            }
            Err(error) => cache.error = Some(error.to_string()),
        }
        caches.push(cache);
    }
    (caches, reports)
}

async fn report(cluster: &ClusterClient, pod: &Pod) -> Result<Status, Failure> {
    if !is_running(pod) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
        let phase = phase.unwrap_or_else(|| "not started".to_owned());
        let cause = pods::failure(pod).map(|failure| format!(": {}", failure.message));
        return Err(Failure::Environment(format!(
            "the Pod is {phase}{}",
            cause.unwrap_or_default()
        )));
    }
    let admin = cluster.admin(&pod.name_any());
    let asked = async {
        let response = admin.get("/status", None).await?;
        server::json(&admin.name, response).await
    };
    timeout(REPORT_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(Failure::Environment("no report in time".to_owned())))
}

/// Returns a line for each mirror.
fn lines(states: &[MirrorState]) -> String {
    let header = [
        "NAMESPACE",
        "NAME",
        "READY",
        "REASON",
        "REPLICAS",
        "CACHE",
        "ENDPOINT",
    ];
    let rows = states.iter().map(|state| {
        let bytes: u64 = state.cache.iter().filter_map(|cache| cache.bytes).sum();
        vec![
            state.namespace.clone(),
            state.name.clone(),
            truth(state.ready).to_owned(),
            state.reason.clone(),
            format!("{}/{}", state.replicas.ready, state.replicas.total),
            terminal::size(bytes),
            state.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    terminal::table(&header, rows)
}

/// Returns one mirror on a screen.
fn screen(state: &MirrorState) -> String {
    let mut text = facts(state);
    let tables = [
        conditions_table(state),
        upstreams_table(state),
        caches_table(state),
    ];
    for table in tables {
        text.push('\n');
        text.push_str(&table);
    }
    text
}

/// Returns the lines at the top of the screen.
fn facts(state: &MirrorState) -> String {
    let ready = format!("{} ({}): {}", truth(state.ready), state.reason, state.message);
    let or = |value: &Option<String>, other: &str| value.clone().unwrap_or_else(|| other.to_owned());
    let facts = [
        ("Mirror", format!("{}/{}", state.namespace, state.name)),
        ("Ready", terminal::judged(&ready, state.ready)),
        ("Endpoint", or(&state.endpoint, "none yet")),
        (
            "Replicas",
            format!("{} of {} ready", state.replicas.ready, state.replicas.total),
        ),
        ("Version", or(&state.server_version, "not reported yet")),
        ("Certificate", state.certificate.clone()),
        ("Nodes", state.nodes.clone()),
    ];
    let line = |(name, value): (&str, String)| {
        let name = terminal::bold(&format!("{name:<12}"));
        format!("{name} {value}\n")
    };
    facts.map(line).concat()
}

fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn dash() -> String {
    "-".to_owned()
}

fn conditions_table(state: &MirrorState) -> String {
    let rows = state.conditions.iter().map(|condition| {
        let message = condition.message.lines().next().unwrap_or_default();
        vec![
            condition.r#type.clone(),
            condition.status.clone(),
            condition.reason.clone(),
            message.to_owned(),
        ]
    });
    terminal::table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], rows)
}

fn upstreams_table(state: &MirrorState) -> String {
    let rows = state.upstreams.iter().map(|upstream| {
        let left = upstream.rate_limit_remaining;
        vec![
            upstream.host.clone(),
            upstream.state.clone(),
            upstream.credentials.clone().unwrap_or_else(dash),
            left.map_or_else(dash, |left| left.to_string()),
        ]
    });
    terminal::table(&["UPSTREAM", "STATE", "CREDENTIALS", "RATE LIMIT LEFT"], rows)
}

fn caches_table(state: &MirrorState) -> String {
    let rows = state.cache.iter().map(|cache| {
        vec![
            cache.pod.clone(),
            truth(cache.ready).to_owned(),
            cache.bytes.map_or_else(dash, terminal::size),
            cache.limit_bytes.map_or_else(dash, terminal::size),
            cache.blobs.map_or_else(dash, |blobs| blobs.to_string()),
            cache.error.clone().unwrap_or_default(),
        ]
    });
    terminal::table(&["POD", "READY", "CACHE", "LIMIT", "BLOBS", "ERROR"], rows)
}
