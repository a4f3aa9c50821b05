//! Polls the admin port of each replica in the background, often while a change is pending and seldom otherwise. A changed
//! report triggers a reconcile; no reconcile waits for a report.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use crds::RegistryMirror;
use futures::{
    Stream, StreamExt,
    channel::mpsc::{UnboundedSender, unbounded},
    stream,
};
use mirror::admin::Status;
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    backoff::jittered,
    cluster::{
        cache::ObjectCache,
        triggers::{self, Trigger},
    },
    desired::ADMIN_PORT,
    metrics::Metrics,
    mirror_key::MirrorKey,
    node_poller::NodePollerHandle,
    observed::{Observed, PollResult, Server, ServerReport},
    status_client::StatusClient,
    traffic::Traffic,
};

/// The interval at which due mirrors are looked up.
const TICK: Duration = Duration::from_millis(250);
/// The maximum number of mirrors that are polled at the same time.
const MAX_MIRRORS: usize = 32;
/// The maximum number of replicas of a mirror that are polled at the same time.
const MAX_REPLICAS: usize = 4;
/// The number of failed requests in a row after which a server is unresponsive.
const MAX_MISSES: u32 = 3;
/// The polling interval while a change is pending.
const SHORT: Duration = Duration::from_secs(1);
/// The time for which a pending change is polled at the short interval.
const SHORT_FOR: Duration = Duration::from_mins(1);
/// The polling interval after that time, and of unresponsive servers.
const MIDDLE: Duration = Duration::from_secs(10);
/// The polling interval without a pending change.
const LONG: Duration = Duration::from_secs(30);

/// Polls the replicas of all mirrors of a scope.
pub struct ReplicaPoller {
    cache: Arc<ObjectCache>,
    client: StatusClient,
    nodes: NodePollerHandle,
    metrics: Arc<Metrics>,
    mirrors: Mutex<HashMap<MirrorKey, PollState>>,
    changed: UnboundedSender<MirrorKey>,
    permits: Arc<Semaphore>,
}

/// The polling of one mirror.
struct PollState {
    /// The last reports, by the Pods' UIDs.
    reports: BTreeMap<String, LastReport>,
    due: Instant,
    /// The time since which a change is pending.
    pending: Option<Instant>,
    is_polling: bool,
}

/// The last result of a server, and the number of failed requests since.
#[derive(Clone, Debug, Default)]
struct LastReport {
    result: PollResult,
    misses: u32,
}

impl ReplicaPoller {
    /// Creates a poller, and the stream of its triggers.
    pub fn new(
        cache: Arc<ObjectCache>,
        nodes: NodePollerHandle,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, impl Stream<Item = Trigger> + Send + use<>) {
        let (changed, receiver) = unbounded();
        let poller = Self {
            cache,
            client: StatusClient::default(),
            nodes,
            metrics,
            mirrors: Mutex::default(),
            changed,
            permits: Arc::new(Semaphore::new(MAX_MIRRORS)),
        };
        let triggers =
            receiver.map(|mirror: MirrorKey| Ok(triggers::request(&mirror, "report of a replica changed")));
        (Arc::new(poller), triggers)
    }

    /// Adds the last reports to the observed state.
    pub fn fill_in(&self, mirror: &RegistryMirror, observed: &mut Observed) {
        let mirrors = self.mirrors.lock();
        let state = mirrors.get(&MirrorKey::from_object(mirror));
        for server in &mut observed.servers {
            let last = state.and_then(|state| state.reports.get(&server.uid));
            server.poll = last.map(|last| last.result.clone()).unwrap_or_default();
        }
    }

    /// Polls a mirror's replicas from now on: at once if a change became pending or a replica was never polled.
    pub fn track(&self, mirror: &RegistryMirror, observed: &Observed, is_pending: bool) {
        let now = Instant::now();
        let mut mirrors = self.mirrors.lock();
        let state = mirrors
            .entry(MirrorKey::from_object(mirror))
            .or_insert_with(|| PollState {
                reports: BTreeMap::new(),
                due: now,
                pending: None,
                is_polling: false,
            });
        if is_pending && state.pending.is_none() || observed.has_unpolled() {
            state.due = now;
        }
        state.pending = is_pending.then(|| state.pending.unwrap_or(now));
    }

    /// Forgets a mirror.
    pub fn forget(&self, mirror: &MirrorKey) {
        self.mirrors.lock().remove(mirror);
        self.metrics.traffic.forget(mirror);
    }

    /// Polls due mirrors for as long as the future is polled.
    pub async fn run(self: Arc<Self>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for mirror in self.due() {
                // The semaphore is never closed.
                let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                    return;
                };
                let poller = Arc::clone(&self);
                tokio::spawn(async move {
                    poller.poll(mirror).await;
                    drop(permit);
                });
            }
        }
    }

    fn due(&self) -> Vec<MirrorKey> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (mirror, state) in self.mirrors.lock().iter_mut() {
            if !state.is_polling && state.due <= now {
                state.is_polling = true;
                due.push(mirror.clone());
            }
        }
        due
    }

    async fn poll(&self, mirror: MirrorKey) {
        let servers = self.cache.servers(&mirror.namespace, &mirror.name);
        let mut traffic = None;
        let reports: Vec<_> = stream::iter(servers)
            .map(|server| async move {
                let status = self.status(&server).await;
                (server.uid, status)
            })
            .buffer_unordered(MAX_REPLICAS)
            .map(|(uid, status)| {
                let report = status.map(|status| {
                    let traffic = traffic.get_or_insert_with(Traffic::default);
                    traffic.add_server(&status);
                    self.record(&mirror, status)
                });
                (uid, report)
            })
            .collect()
            .await;
        let mut mirrors = self.mirrors.lock();
        let Some(state) = mirrors.get_mut(&mirror) else {
            return;
        };
        if let Some(traffic) = traffic {
            self.metrics.traffic.set(&mirror, traffic);
        }
        if state.update(reports) {
            // The receiver is dropped once the controller ends.
            let _ = self.changed.unbounded_send(mirror);
        }
    }

    /// Requests the report of a server; `None` if there is no valid one.
    async fn status(&self, server: &Server) -> Option<Status> {
        let address = SocketAddr::new(server.address, ADMIN_PORT);
        self.client.report(address).await
    }

    /// Passes the clients of a server on, and returns the part of its report that a reconcile reads.
    fn record(&self, mirror: &MirrorKey, mut status: Status) -> ServerReport {
        let clients = std::mem::take(&mut status.clients);
        let last_pulls = clients.into_iter().filter_map(|client| client.last_pull());
        self.nodes.add_clients(mirror, last_pulls);
        status.into()
    }
}

impl PollState {
    /// Adds reports, and returns whether one changed.
    fn update(&mut self, reports: Vec<(String, Option<ServerReport>)>) -> bool {
        let now: BTreeMap<_, _> = reports
            .into_iter()
            .map(|(uid, report)| {
                let before = self.reports.get(&uid).cloned().unwrap_or_default();
                (uid, before.next(report))
            })
            .collect();
        let is_same = |(uid, last): (&String, &LastReport)| {
            let before = self.reports.get(uid);
            before.is_some_and(|before| before.result == last.result)
        };
        let is_unchanged = now.len() == self.reports.len() && now.iter().all(is_same);
        let has_misses = now.values().any(|last| last.misses > 0);
        self.reports = now;
        self.is_polling = false;
        self.due = Instant::now() + jittered(self.interval(has_misses));
        !is_unchanged
    }

    fn interval(&self, has_misses: bool) -> Duration {
        match self.pending {
            Some(since) if since.elapsed() < SHORT_FOR => SHORT,
            Some(_) => MIDDLE,
            None if has_misses => MIDDLE,
            None => LONG,
        }
    }
}

impl LastReport {
    /// Returns the state after a request. A single failed request keeps the last report.
    fn next(self, report: Option<ServerReport>) -> Self {
        match report {
            Some(report) => Self {
                result: PollResult::Report(report),
                misses: 0,
            },
            None if self.misses + 1 >= MAX_MISSES => Self {
                result: PollResult::Unresponsive,
                misses: MAX_MISSES,
            },
            None => Self {
                result: self.result,
                misses: self.misses + 1,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> PollState {
        PollState {
            reports: BTreeMap::new(),
            due: Instant::now(),
            pending: None,
            is_polling: true,
        }
    }

    fn report(version: &str) -> Vec<(String, Option<ServerReport>)> {
        let report = ServerReport {
            version: version.to_owned(),
            ..ServerReport::default()
        };
        vec![("u".to_owned(), Some(report))]
    }

    fn no_report() -> Vec<(String, Option<ServerReport>)> {
        vec![("u".to_owned(), None)]
    }

    #[tokio::test]
    async fn only_a_changed_report_is_reported() {
        let mut state = state();
        assert!(state.update(report("1")));
        assert!(!state.update(report("1")));
        assert!(state.update(report("2")));
        assert!(state.update(Vec::new()), "a deleted Pod is a change");
        assert!(!state.update(Vec::new()));
    }

    #[tokio::test]
    async fn server_is_unresponsive_after_several_misses() {
        let mut state = state();
        state.update(report("1"));
        assert!(!state.update(no_report()) && !state.update(no_report()));
        assert!(state.update(no_report()));
        assert_eq!(state.reports["u"].result, PollResult::Unresponsive);
        assert!(!state.update(no_report()));
        assert!(state.update(report("1")), "and responsive at its first report");
    }

    /// A pending change is polled often, and less often after a while.
    #[tokio::test]
    async fn pending_change_is_polled_often() {
        let mut state = state();
        assert_eq!((state.interval(false), state.interval(true)), (LONG, MIDDLE));
        state.pending = Some(Instant::now());
        assert_eq!(state.interval(false), SHORT);
        state.pending = Instant::now().checked_sub(SHORT_FOR);
        assert_eq!(state.interval(false), MIDDLE, "for a limited time");
    }
}
