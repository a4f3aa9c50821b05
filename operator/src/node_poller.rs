//! Polls the node agents in the background, once for all mirrors, and joins their reports with the clients of servers. A
//! changed summary triggers one reconcile of the mirror; no reconcile waits for a report.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crds::{RegistryMirror, conditions::Reason, node_configuration::NodeConfigurationMode};
use futures::{
    Stream, StreamExt,
    channel::mpsc::{UnboundedSender, unbounded},
    stream,
};
use k8s_openapi::{
    api::discovery::v1::EndpointSlice,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    agent::{NodeReport, NodeState},
    backoff::jittered,
    cluster::{
        follow,
        triggers::{self, Trigger},
    },
    mirror_key::MirrorKey,
    observed::NodeSummary,
    status_client::StatusClient,
};

mod endpoints;
mod publication;

pub use endpoints::{AgentService, InvalidAgentService};

use publication::Publication;

/// The interval between sweeps over all agents.
const INTERVAL: Duration = Duration::from_secs(10);
/// The interval while a change waits for a second sweep.
const SHORT: Duration = Duration::from_secs(2);
/// The maximum number of agents that are polled at the same time.
const MAX_REQUESTS: usize = 64;
/// The time for which a node keeps its last report without an answer, or without an agent.
const GRACE: Duration = Duration::from_secs(30);
/// The maximum number of addresses of a node.
const MAX_ADDRESSES: usize = 256;
/// The maximum number of client addresses of a mirror.
const MAX_CLIENTS: usize = 1 << 16;
/// The time within which a node that pulled counts as pulling.
const PULLING: SignedDuration = SignedDuration::from_hours(24);

/// Polls the agents of all nodes for the mirrors of all scopes.
pub struct NodePoller {
    service: Option<AgentService>,
    client: StatusClient,
    agents: Mutex<BTreeMap<String, Agent>>,
    mirrors: Mutex<HashMap<MirrorKey, ManagedMirror>>,
    added: Notify,
}

/// The agent of a node.
struct Agent {
    /// The last known address.
    address: SocketAddr,
    /// `true` if the Service has the agent.
    is_listed: bool,
    /// The time of the last report, or that of the discovery of the agent.
    since: Instant,
    report: Option<AgentReport>,
}

/// The part of an agent's report that the operator keeps.
struct AgentReport {
    addresses: BTreeSet<IpAddr>,
    /// The state of each tracked mirror that the agent manages.
    mirrors: HashMap<MirrorKey, NodeState>,
}

/// A mirror that agents manage.
struct ManagedMirror {
    changed: UnboundedSender<MirrorKey>,
    publication: Publication,
    /// The clients of the servers with their last pull; `None` until the servers were polled.
    clients: Option<HashMap<IpAddr, Timestamp>>,
}

/// A reference of one scope's controller to the poller.
#[derive(Clone)]
pub struct NodePollerHandle {
    poller: Arc<NodePoller>,
    changed: UnboundedSender<MirrorKey>,
}

impl NodePoller {
    /// Creates a poller of the agents of a Service. Without one, no node has an agent.
    pub fn new(service: Option<AgentService>) -> Arc<Self> {
        Arc::new(Self {
            service,
            client: StatusClient::default(),
            agents: Mutex::default(),
            mirrors: Mutex::default(),
            added: Notify::new(),
        })
    }

    /// Returns the handle of a scope, and the stream of its triggers.
    pub fn handle(self: &Arc<Self>) -> (NodePollerHandle, impl Stream<Item = Trigger> + Send + use<>) {
        let (changed, receiver) = unbounded();
        let handle = NodePollerHandle {
            poller: Arc::clone(self),
            changed,
        };
        let triggers =
            receiver.map(|mirror: MirrorKey| Ok(triggers::request(&mirror, "state of nodes changed")));
        (handle, triggers)
    }

    /// Polls agents for as long as the future is polled.
    pub async fn run(&self, client: Client) {
        let Some(service) = &self.service else { return };
        let (slices, writer) = reflector::store();
        let api = Api::<EndpointSlice>::namespaced(client, &service.namespace);
        let selector = format!("kubernetes.io/service-name={}", service.name);
        let config = watcher::Config::default().labels(&selector);
        let watching = follow("EndpointSlice".to_owned(), api, config).reflect(writer);
        let watching = watching.for_each(|_| std::future::ready(()));
        tokio::select! {
            () = watching => {}
            () = self.work(slices) => {}
        }
    }

    async fn work(&self, slices: Store<EndpointSlice>) {
        if slices.wait_until_ready().await.is_err() {
            return;
        }
        loop {
            let tracked: HashSet<_> = self.mirrors.lock().keys().cloned().collect();
            if !tracked.is_empty() {
                let listed = slices.state();
                let listed = endpoints::by_node(listed.iter().map(AsRef::as_ref));
                self.sweep(&listed, &tracked).await;
            }
            let delay = jittered(self.interval());
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.added.notified() => {}
            }
        }
    }

    fn interval(&self) -> Duration {
        let now = Instant::now();
        let mirrors = self.mirrors.lock();
        let is_pending = mirrors.values().any(|mirror| mirror.publication.is_pending(now));
        if is_pending { SHORT } else { INTERVAL }
    }

    /// Polls each agent once, and publishes the summaries that changed.
    async fn sweep(&self, listed: &BTreeMap<String, SocketAddr>, tracked: &HashSet<MirrorKey>) {
        let answers: Vec<_> = stream::iter(listed.clone())
            .map(|(node, address)| async move {
                let report = self.client.report(address).await;
                let report = report.map(|report| AgentReport::new(report, address, tracked));
                (node, address, report)
            })
            .buffer_unordered(MAX_REQUESTS)
            .collect()
            .await;
        let now = Instant::now();
        let mut agents = self.agents.lock();
        for (node, agent) in agents.iter_mut() {
            agent.is_listed = listed.contains_key(node);
        }
        for (node, address, report) in answers {
            let agent = agents.entry(node).or_insert_with(|| Agent::new(address, now));
            agent.address = address;
            if report.is_some() {
                (agent.report, agent.since) = (report, now);
            }
        }
        agents.retain(|_, agent| agent.is_listed || agent.is_within_grace(now));
        self.publish(&agents, tracked, now);
    }

    fn publish(&self, agents: &BTreeMap<String, Agent>, tracked: &HashSet<MirrorKey>, now: Instant) {
        let nodes = nodes_by_address(agents);
        let is_complete = agents
            .values()
            .all(|agent| agent.report.is_some() || !agent.is_within_grace(now));
        let mut mirrors = self.mirrors.lock();
        for (key, mirror) in mirrors.iter_mut().filter(|(key, _)| tracked.contains(*key)) {
            let mut summary = NodeSummary::default();
            for (node, agent) in agents {
                if let Some(fault) = agent.fault(key, now) {
                    summary.add(node, fault);
                }
            }
            summary.pulling = mirror.count_pulling(&nodes);
            if mirror.publication.update(summary, is_complete, now) {
                // The receiver is dropped once the controller ends.
                let _ = mirror.changed.unbounded_send(key.clone());
            }
        }
    }
}

/// Returns the node of each address that only one node has.
fn nodes_by_address(agents: &BTreeMap<String, Agent>) -> HashMap<IpAddr, Option<&str>> {
    let mut nodes = HashMap::new();
    for (node, agent) in agents {
        for address in agent.report.iter().flat_map(|report| &report.addresses) {
            nodes
                .entry(*address)
                .and_modify(|node| *node = None)
                .or_insert(Some(node.as_str()));
        }
    }
    nodes
}

impl AgentReport {
    /// Returns the part of a report about the tracked mirrors.
    fn new(report: NodeReport, address: SocketAddr, tracked: &HashSet<MirrorKey>) -> Self {
        let states = report.mirrors.into_iter().filter_map(|mirror| {
            let key = MirrorKey {
                namespace: mirror.namespace,
                name: mirror.name,
            };
            tracked.contains(&key).then_some((key, mirror.state))
        });
        let mirrors = states.collect();
        let addresses = report.addresses.into_iter().take(MAX_ADDRESSES);
        Self {
            addresses: addresses.chain([address.ip()]).collect(),
            mirrors,
        }
    }
}

impl Agent {
    fn new(address: SocketAddr, now: Instant) -> Self {
        Self {
            address,
            is_listed: true,
            since: now,
            report: None,
        }
    }

    fn is_within_grace(&self, now: Instant) -> bool {
        now.duration_since(self.since) < GRACE
    }

    /// Returns the fault of a mirror on the node, if there is one; `None` while the agent has not answered yet.
    #[expect(
        clippy::option_option,
        reason = "an agent without a report and a node without a fault differ"
    )]
    fn fault(&self, mirror: &MirrorKey, now: Instant) -> Option<Option<Reason>> {
        match &self.report {
            Some(report) if self.is_within_grace(now) => Some(match report.mirrors.get(mirror) {
                Some(state) => state.fault(),
                None => Some(Reason::NotManaged),
            }),
            None if self.is_within_grace(now) => None,
            _ => Some(Some(Reason::AgentUnresponsive)),
        }
    }
}

impl ManagedMirror {
    /// Returns the number of nodes whose address pulled in the last 24 hours.
    fn count_pulling(&self, nodes: &HashMap<IpAddr, Option<&str>>) -> Option<usize> {
        let now = Timestamp::now();
        let recent = self
            .clients
            .as_ref()?
            .iter()
            .filter(|(_, last)| now.duration_since(**last) < PULLING);
        let pulling: BTreeSet<_> = recent
            .filter_map(|(address, _)| nodes.get(address).copied().flatten())
            .collect();
        Some(pulling.len())
    }
}

impl NodePollerHandle {
    /// Polls agents for a mirror from now on, if agents manage it.
    pub fn track(&self, mirror: &RegistryMirror) {
        let key = MirrorKey::from_object(mirror);
        if !is_managed(mirror) {
            self.forget(&key);
            return;
        }
        let mut is_new = false;
        self.poller.mirrors.lock().entry(key).or_insert_with(|| {
            is_new = true;
            ManagedMirror {
                changed: self.changed.clone(),
                publication: Publication::default(),
                clients: None,
            }
        });
        if is_new {
            self.poller.added.notify_one();
        }
    }

    /// Forgets a mirror.
    pub fn forget(&self, mirror: &MirrorKey) {
        self.poller.mirrors.lock().remove(mirror);
    }

    /// Adds the clients of a mirror's servers with their last pulls.
    pub fn add_clients(&self, mirror: &MirrorKey, clients: impl IntoIterator<Item = (IpAddr, Timestamp)>) {
        let mut mirrors = self.poller.mirrors.lock();
        let Some(mirror) = mirrors.get_mut(mirror) else {
            return;
        };
        let now = Timestamp::now();
        let known = mirror.clients.get_or_insert_default();
        known.retain(|_, last| now.duration_since(*last) < PULLING);
        for (address, last) in clients {
            // The clock of a node may be ahead.
            let last = last.min(now);
            if let Some(known) = known.get_mut(&address) {
                *known = last.max(*known);
            } else if known.len() < MAX_CLIENTS {
                known.insert(address, last);
            }
        }
    }

    /// Returns the published summary of a mirror; `None` if agents do not manage it, or were not polled yet.
    pub fn summary(&self, mirror: &RegistryMirror) -> Option<NodeSummary> {
        if !is_managed(mirror) {
            return None;
        }
        if self.poller.service.is_none() {
            let pulling = Some(0);
            return Some(NodeSummary {
                pulling,
                ..NodeSummary::default()
            });
        }
        let mirrors = self.poller.mirrors.lock();
        let mirror = mirrors.get(&MirrorKey::from_object(mirror))?;
        mirror.publication.current().cloned()
    }
}

fn is_managed(mirror: &RegistryMirror) -> bool {
    mirror.spec.node_configuration.mode == NodeConfigurationMode::Manage
}

#[cfg(test)]
mod tests;
