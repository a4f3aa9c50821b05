//! The report of a node, as JSON on the agent's port.

use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use crds::conditions::Reason;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    addresses,
    detect::{Detection, RuntimeKind},
};
use crate::mirror_key::MirrorKey;

/// The state of a mirror on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// The node pulls through the mirror.
    Configured,
    /// The mirror does not answer, and the node pulls from the registries.
    Bypassed,
    /// containerd is not configured to read `hosts.toml`.
    ConfigPathMissing,
    /// containerd's configuration names mirrors itself.
    InlineMirrors,
    /// A file of another program, or another mirror, is in the way.
    Conflict,
    /// The directory can't be changed.
    ReadOnly,
    /// The runtime reads no `hosts.toml`.
    Unsupported,
    /// A state of another version of the agent.
    #[serde(other)]
    Unknown,
}

impl NodeState {
    /// Returns the reason for which the node does not pull through the mirror.
    pub fn fault(self) -> Option<Reason> {
        match self {
            Self::Configured => None,
            Self::Bypassed => Some(Reason::Bypassed),
            Self::ConfigPathMissing => Some(Reason::ConfigPathMissing),
            Self::InlineMirrors => Some(Reason::InlineMirrors),
            Self::Conflict => Some(Reason::Conflict),
            Self::ReadOnly => Some(Reason::ReadOnly),
            Self::Unsupported => Some(Reason::Unsupported),
            Self::Unknown => Some(Reason::AgentUnresponsive),
        }
    }
}

/// The report of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// The version of the agent.
    pub version: String,
    /// The name of the node.
    pub node: String,
    /// The container runtime.
    pub runtime: RuntimeKind,
    /// The directory of the runtime for `HOST/hosts.toml`.
    pub directory: Option<String>,
    /// The addresses that servers see of the node: those of its network interfaces, except loopback and link-local ones.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Each mirror.
    pub mirrors: Vec<MirrorReport>,
}

/// The state of one mirror on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorReport {
    /// The namespace of the mirror.
    pub namespace: String,
    /// The name of the mirror.
    pub name: String,
    /// The state.
    pub state: NodeState,
    /// The time at which the state began.
    pub since: Timestamp,
    /// The cause and the action, empty if there is nothing to do.
    pub message: String,
}

/// Collects the report and logs changes.
#[derive(Clone)]
pub(super) struct Reporter {
    node: Arc<str>,
    report: Arc<Mutex<Option<NodeReport>>>,
}

impl Reporter {
    pub(super) fn new(node: String) -> Self {
        Self {
            node: node.into(),
            report: Arc::default(),
        }
    }

    /// Replaces the report. The time of a state stays while the state does.
    pub(super) fn update(&self, detection: &Detection, states: Vec<(MirrorKey, NodeState, String)>) {
        let mut report = self.report.lock();
        let previous = report.take().map(|report| report.mirrors).unwrap_or_default();
        let previous: BTreeMap<_, _> = previous
            .into_iter()
            .map(|mirror| ((mirror.namespace, mirror.name), (mirror.state, mirror.since)))
            .collect();
        let mirrors = states.into_iter().map(|(mirror, state, message)| {
            let before = previous.get(&(mirror.namespace.clone(), mirror.name.clone()));
            let since = before.filter(|before| before.0 == state).map(|before| before.1);
            if since.is_none() {
                tracing::info!(%mirror, ?state, message, "state of a mirror on this node changed");
            }
            MirrorReport {
                namespace: mirror.namespace,
                name: mirror.name,
                state,
                since: since.unwrap_or_else(Timestamp::now),
                message,
            }
        });
        *report = Some(NodeReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.to_string(),
            runtime: detection.runtime,
            directory: detection.directory.as_ref().ok().map(|path| format!("/{path}")),
            addresses: Vec::new(),
            mirrors: mirrors.collect(),
        });
    }

    pub(super) fn current(&self) -> Option<NodeReport> {
        self.report.lock().clone()
    }
}

/// Serves `/livez`, `/readyz` and `/status` until `shutdown`.
pub(super) async fn serve(
    listener: TcpListener,
    reporter: Reporter,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(reporter);
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn ready(State(reporter): State<Reporter>) -> (StatusCode, &'static str) {
    if reporter.current().is_some() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "mirrors are not listed yet")
    }
}

async fn status(State(reporter): State<Reporter>) -> Result<Json<NodeReport>, StatusCode> {
    let mut report = reporter.current().ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    let addresses = tokio::task::spawn_blocking(addresses::read).await;
    report.addresses = addresses.unwrap_or_default();
    Ok(Json(report))
}
