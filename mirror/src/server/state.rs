//! The state that a server shares with its admin port and its reloads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};

use super::upstream_set::{UpstreamHandle, UpstreamSet};
use crate::admin::{
    AdminState, BucketStatus, CacheStatus, ContentReport, FillStatus, History, HistoryReport, PeerStatus,
    SAMPLE_INTERVAL, Status,
};
use crate::bucket::{BucketState, Uploader};
use crate::client_table::ClientTable;
use crate::config::Config;
use crate::credentials::CredentialState;
use crate::health::Health;
use crate::http::Htpasswd;
use crate::http::connection::tls::Certificates;
use crate::ledger::Ledger;
use crate::metrics::{Metrics, MetricsSnapshot, Totals};
use crate::peers::Fleet;
use crate::pull::Pull;
use crate::request_host::PageHosts;
use crate::store::{ImageRequest, Store};

/// The shared state of a running server.
pub(super) struct ServerState {
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    users: Option<Htpasswd>,
    fleet: Option<Arc<Fleet>>,
    certificates: Option<Arc<Certificates>>,
    pull: Arc<Pull>,
    history: History,
    /// The uploads to the bucket, if one is configured.
    pub(super) uploader: Option<Uploader>,
    /// The ledger of the bucket, if one is configured.
    pub(super) ledger: Option<Ledger>,
    started: Instant,
    draining: AtomicBool,
    current: Mutex<Current>,
    clients: ClientTable,
}

/// The part of the state that reloads replace.
pub(super) struct Current {
    /// The configuration in use.
    pub(super) config: Config,
    /// The reason why the last configuration was refused; empty if it was applied.
    pub(super) error: String,
    /// A handle for each upstream.
    pub(super) handles: Arc<[UpstreamHandle]>,
}

impl ServerState {
    pub(super) fn new(
        config: Config,
        (store, pull): (Store, Arc<Pull>),
        metrics: Metrics,
        health: Health,
        (certificates, users): (Option<Arc<Certificates>>, Option<Htpasswd>),
        upstreams: &UpstreamSet,
    ) -> Self {
        Self {
            store,
            metrics,
            health,
            users,
            fleet: None,
            certificates,
            pull,
            history: History::default(),
            uploader: None,
            ledger: None,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            current: Mutex::new(Current {
                config,
                error: String::new(),
                handles: upstreams.handles().into(),
            }),
            clients: ClientTable::default(),
        }
    }

    /// Reports these clients.
    pub(super) fn with_clients(self, clients: ClientTable) -> Self {
        Self { clients, ..self }
    }

    /// Returns the state of a server with other replicas.
    pub(super) fn with_fleet(self, fleet: Option<Arc<Fleet>>) -> Self {
        Self { fleet, ..self }
    }

    /// Reports these uploads, and renews the credentials of their bucket.
    pub(super) fn with_uploader(self, uploader: Option<Uploader>) -> Self {
        Self { uploader, ..self }
    }

    /// Reports the totals of this ledger.
    pub(super) fn with_ledger(self, ledger: Option<Ledger>) -> Self {
        Self { ledger, ..self }
    }

    pub(super) fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock()
    }

    /// Returns `true` if the cache is read-only.
    pub(super) fn readonly(&self) -> bool {
        self.current().config.proxy.cache.readonly
    }

    /// Returns `true` if the admin port has the page.
    pub(super) fn has_page(&self) -> bool {
        self.current()
            .config
            .http
            .admin
            .as_ref()
            .is_some_and(|admin| admin.page)
    }

    /// Reports not ready from now on.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        if let Some(fleet) = &self.fleet {
            fleet.drain();
        }
    }

    /// Returns the other replicas, if the configuration has any.
    pub(super) fn fleet(&self) -> Option<&Arc<Fleet>> {
        self.fleet.as_ref()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Continues the history that the cache has, and adds a sample of the metrics at once and every minute.
    pub(super) async fn sample_history(self: Arc<Self>) {
        match self.store.samples().await {
            Ok(kept) => {
                let now = Timestamp::now().as_millisecond();
                let age = |at| u64::try_from(now.saturating_sub(at)).unwrap_or_default();
                let kept = kept.into_iter();
                self.history
                    .restore(kept.map(|(at, sample)| (Duration::from_millis(age(at)), sample)));
            }
            Err(error) => tracing::warn!(%error, "the history was not read, it begins again"),
        }
        loop {
            self.add_sample();
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }

    /// Adds a sample of the metrics to the history. The cache keeps it with its next write, unless there was no traffic.
    pub(super) fn add_sample(&self) {
        if let Some(kept) = self.history.add(&self.metrics.totals().0) {
            self.store.record_sample(Timestamp::now().as_millisecond(), kept);
        }
    }
}

/// Returns the state of each other replica.
fn peers(fleet: &Fleet) -> Vec<PeerStatus> {
    let members = fleet.report().into_iter();
    let status = members.map(|member| PeerStatus {
        address: member.address,
        id: member.id,
        state: member.state.to_owned(),
        cause: member.cause.unwrap_or_default().to_owned(),
        since: member.since.to_string(),
    });
    status.collect()
}

fn bucket_status(uploader: &Uploader, ledger: Option<&Ledger>) -> BucketStatus {
    let (mut state, mut message) = uploader.bucket().state();
    let uploads = uploader.report();
    let (upload_state, upload_error) = uploads.failure.unwrap_or((state, String::new()));
    // Credentials that only read are not enough.
    if upload_state == BucketState::Denied && state == BucketState::Reachable {
        state = upload_state;
        message.clone_from(&upload_error);
    }
    let totals = ledger.and_then(Ledger::totals);
    BucketStatus {
        state: state.as_str().to_owned(),
        message,
        objects: totals.map(|totals| totals.objects),
        bytes: totals.map(|totals| totals.bytes),
        oldest_use: totals
            .and_then(|totals| Timestamp::from_millisecond(totals.oldest_use?).ok())
            .map(|time| time.to_string()),
        pending_uploads: uploads.pending as u64,
        upload_error,
    }
}

impl AdminState for ServerState {
    /// Returns an error while the server stops, a configured health check fails (clients get 503 then), or the
    /// storage root cannot be read. An upstream that is down and a full disk are no errors: the cache still serves.
    fn ready(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("the server is stopping".to_owned());
        }
        if let Some((check, reason)) = self.health.failing().pop_first() {
            return Err(format!(
                "the health check {check} fails: {reason}; /debug/health lists all that fail"
            ));
        }
        let root = self.current().config.root.clone();
        match std::fs::metadata(&root) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!(
                "the storage root {} cannot be read: {error}",
                root.display()
            )),
        }
    }

    fn page_hosts(&self) -> PageHosts {
        self.current().config.page_hosts.clone()
    }

    fn unhealthy(&self) -> BTreeMap<String, String> {
        self.health.failing()
    }

    fn metrics(&self) -> String {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (usage, metrics) = (self.store.usage(), &self.metrics);
        metrics.cache_bytes.set(gauge(usage.bytes));
        metrics
            .cache_limit_bytes
            .set(gauge(usage.limit.unwrap_or_default()));
        metrics.cache_blobs.set(gauge(usage.blobs));
        // Before the snapshot: the guard of an expression in it would be held to its end.
        let (handles, is_configured) = {
            let current = self.current();
            (current.handles.clone(), current.error.is_empty())
        };
        let upstreams = handles
            .iter()
            .map(|handle| (handle.host.clone(), handle.gauges()));
        let snapshot = MetricsSnapshot {
            certificate_not_after: self
                .certificates
                .as_ref()
                .and_then(|certificates| certificates.not_after()),
            is_configured,
            upstreams: upstreams.collect(),
        };
        metrics
            .scrape(&snapshot, &CredentialState::NAMES)
            .unwrap_or_default()
    }

    fn status(&self) -> Status {
        let (usage, oldest_use) = (self.store.usage(), self.store.oldest_use());
        let last_day = if self.has_page() {
            self.history.last_day(&self.metrics.totals().0)
        } else {
            None
        };
        let current = self.current();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            configuration_version: current.config.version.clone(),
            configuration_error: current.error.clone(),
            users_error: self
                .users
                .as_ref()
                .and_then(Htpasswd::trouble)
                .unwrap_or_default(),
            draining: self.is_draining(),
            upstreams: current.handles.iter().map(UpstreamHandle::status).collect(),
            peers: self.fleet.as_deref().map(peers).unwrap_or_default(),
            cache: CacheStatus {
                bytes: usage.bytes,
                limit_bytes: usage.limit,
                blobs: usage.blobs,
                oldest_use: oldest_use.map(|time| time.to_string()),
                full: usage.full,
            },
            last_day,
            clients: self.clients.report(Timestamp::now()),
            bucket: self
                .uploader
                .as_ref()
                .map(|uploader| bucket_status(uploader, self.ledger.as_ref())),
        }
    }

    fn fills(&self) -> Vec<FillStatus> {
        self.pull
            .running_fills()
            .into_iter()
            .map(FillStatus::from)
            .collect()
    }

    fn traffic(&self) -> BTreeMap<String, Totals> {
        self.metrics.totals().1
    }

    fn history(&self) -> HistoryReport {
        self.history.report(&self.metrics.totals().0)
    }

    async fn content(&self, query: ImageRequest) -> Result<ContentReport, String> {
        let pull = Arc::clone(&self.pull);
        let images = self
            .store
            .images(query, move |host, name| pull.is_admitted(host, name))
            .await;
        images.map(ContentReport::from).map_err(|error| error.to_string())
    }
}
