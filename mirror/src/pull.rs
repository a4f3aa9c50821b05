//! The policy of a pull-through cache: hit, miss, revalidate, or serve stale.

mod blob;
mod blob_metadata;
mod catalog;
mod negative_cache;
mod select_upstream;

mod blob_sizes;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod manifest;
mod media_type;
mod passthrough;
mod per_upstream;
mod prewarm;
mod redirect;
mod referrers;
mod refusals;
mod single_flight;
mod source;
mod stored;
mod tags;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::warn;

pub(crate) use blob_metadata::BlobSnapshot;
pub(crate) use select_upstream::UpstreamSelectionError;

pub(crate) use manifest::ClientRequest;
pub(crate) use passthrough::PassThrough;
pub use prewarm::PrewarmEvent;
pub(crate) use prewarm::{PlatformSelection, Prewarm, PrewarmError};
pub(crate) use referrers::of_type;
use tags::TagSource;
pub(crate) use tags::{Page, Window};

use crate::client_address::ClientAddress;
use crate::clock::Clock;
use crate::config::{self, Cache};
use crate::digest::Digest;
pub use crate::fill::inflight::FillSnapshot;
use crate::fill::inflight::Inflight;
use crate::fill::{PlaceLimits, RequestPlaces, Turn};
use crate::metrics::{self, Metrics, Outcome};
use crate::name::{Host, Reference, Repository};
use crate::origins::{Bucket, Origins};
use crate::peers::Fleet;
use crate::pull_error::PullError;
use crate::store::{CachedImage, Manifest, PurgeTarget, Purged, StageError, Store};
use crate::upstream::{Accept, Upstream};

use negative_cache::NegativeCache;
use refusals::Refusals;
pub(crate) use single_flight::SingleFlight;
pub(crate) use source::Source;

/// Maximum revalidation wait before a cached copy is served stale: 1.5 s.
const MAX_REVALIDATION_WAIT: Duration = Duration::from_millis(1_500);

/// The places of requests other than downloads. Of those that an upstream has at a time (see `upstream::Limits`), one
/// client has three quarters at most.
const REQUESTS: PlaceLimits = PlaceLimits {
    total: 4_096,
    upstream: 2_048,
    client: 2_048,
    share: 1_024,
    running: 48,
    wait: Duration::from_secs(10),
};

/// The places of downloads that pass by the cache, likewise.
const PASS_THROUGH: PlaceLimits = PlaceLimits {
    total: 4_096,
    upstream: 2_048,
    client: 2_048,
    share: 1_024,
    running: 192,
    wait: Duration::from_secs(25),
};

/// The places of lists of tags and repositories while the server reads them. A list takes up to 5 MiB.
const LISTS: PlaceLimits = PlaceLimits {
    total: 4_096,
    upstream: 2_048,
    client: 2_048,
    share: 1_024,
    running: 16,
    wait: Duration::from_secs(25),
};

/// An upstream with its settings and its client.
pub struct Origin {
    /// The settings.
    pub settings: config::Upstream,
    /// The client.
    pub client: Arc<Upstream>,
}

/// The state that a reload replaces as a whole.
pub struct Live {
    /// The closed set of registries; the first is the default.
    pub upstreams: Vec<Origin>,
    /// The settings of the cache.
    pub cache: Cache,
}

impl Live {
    fn hosts(&self) -> impl Iterator<Item = select_upstream::Candidate<'_>> + Clone {
        let upstreams = self.upstreams.iter().map(|origin| &origin.settings);
        upstreams.map(|upstream| (&upstream.host, upstream.remote.scheme()))
    }

    /// Returns whether the settings let clients pull from this repository.
    fn admits(&self, repository: &Repository) -> bool {
        let origin = self.origin_of(&repository.host);
        origin.is_some_and(|origin| origin.settings.admits(repository.name.as_str()))
    }

    fn origin_of(&self, host: &Host) -> Option<&Origin> {
        self.upstreams.iter().find(|origin| origin.settings.host == *host)
    }
}

/// A result with the outcome for headers and metrics.
#[derive(Clone, Debug)]
pub(crate) struct Served<T> {
    pub(crate) value: T,
    pub(crate) outcome: Outcome,
    /// The origin of bytes that the cache did not have.
    pub(crate) origin: metrics::Source,
}

impl<T> Served<T> {
    /// Returns content of the upstream with its outcome.
    pub(crate) fn new(value: T, outcome: Outcome) -> Self {
        Self {
            value,
            outcome,
            origin: metrics::Source::Upstream,
        }
    }

    /// Returns content from the cache.
    pub(crate) fn hit(value: T) -> Self {
        Self::new(value, Outcome::Hit)
    }

    /// Returns content that this request fetched.
    pub(crate) fn miss(value: T) -> Self {
        Self::new(value, Outcome::Miss)
    }

    /// Returns content from the cache that the upstream could not confirm.
    pub(crate) fn stale(value: T) -> Self {
        Self::new(value, Outcome::Stale)
    }

    /// Returns content that another request fetched.
    pub(crate) fn coalesced(value: T) -> Self {
        Self::new(value, Outcome::Coalesced)
    }

    /// Sets the origin of content that is not the upstream's.
    pub(crate) fn with_origin(self, origin: metrics::Source) -> Self {
        Self { origin, ..self }
    }
}

/// `true` for a fetch that asks no other replica. Other replicas wait for those alone.
type IsDirect = bool;

/// The fetches of manifests under way, by what their clients accept too; the outcome tells whether upstream has the
/// copy of this mirror.
type ManifestFetches =
    SingleFlight<(Repository, Reference, Accept, IsDirect), Result<(Manifest, Outcome), PullError>>;

/// The pull path. Shared by all requests.
pub struct Pull {
    store: Store,
    clock: Clock,
    live: ArcSwap<Live>,
    manifests: ManifestFetches,
    inflight: Arc<Inflight>,
    requests: Arc<RequestPlaces>,
    passing: Arc<RequestPlaces>,
    negative_cache: NegativeCache,
    refusals: Refusals,
    referrers: referrers::Known,
    referrers_fetches: SingleFlight<(Repository, Digest, IsDirect), referrers::ReferrersAnswer>,
    sizes: blob_sizes::BlobSizes,
    fleet: OnceLock<Arc<Fleet>>,
    lists: Arc<RequestPlaces>,
    catalog: catalog::Catalog,
    /// The lists of cached tags that are being read from the disk.
    tag_lists: SingleFlight<(Repository, TagSource), Arc<Vec<String>>>,
    bucket: OnceLock<Arc<Bucket>>,
    stored: stored::StoredManifests,
    redirects: redirect::Redirects,
}

impl Pull {
    /// Creates a pull path on top of a store.
    pub fn new(store: Store, live: Live, clock: Clock, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            inflight: Arc::new(Inflight::new(store.clone(), clock.clone(), metrics.clone())),
            store,
            clock,
            live: ArcSwap::from_pointee(live),
            manifests: SingleFlight::default(),
            requests: RequestPlaces::new(REQUESTS),
            passing: RequestPlaces::new(PASS_THROUGH),
            negative_cache: NegativeCache::default(),
            refusals: Refusals::default(),
            referrers: referrers::Known::default(),
            referrers_fetches: SingleFlight::default(),
            sizes: blob_sizes::BlobSizes::default(),
            fleet: OnceLock::new(),
            lists: RequestPlaces::new(LISTS),
            catalog: catalog::Catalog::default(),
            tag_lists: SingleFlight::default(),
            bucket: OnceLock::new(),
            stored: stored::StoredManifests::default(),
            redirects: redirect::Redirects::default(),
        })
    }

    /// Asks the other replicas for content from now on.
    pub(crate) fn join(&self, fleet: Arc<Fleet>) {
        // A server joins once.
        let _ = self.fleet.set(fleet);
    }

    /// Asks this bucket before the upstreams from now on; the first one stays.
    pub(crate) fn use_bucket(&self, bucket: Arc<Bucket>) {
        let _ = self.bucket.set(bucket);
    }

    /// Replaces upstreams and settings. Requests in flight end with the previous ones.
    pub fn reload(&self, live: Live) {
        let is_configured = |host: &Host| live.origin_of(host).is_some();
        self.referrers.retain(is_configured);
        self.refusals.retain(is_configured);
        self.sizes.retain(is_configured);
        self.live.store(Arc::new(live));
        self.negative_cache.clear();
        self.catalog.forget();
    }

    /// Returns `true` if the settings let clients pull from the repository with this host and name.
    pub fn is_admitted(&self, host: &str, name: &str) -> bool {
        let live = self.live.load();
        let origin = live
            .upstreams
            .iter()
            .find(|origin| origin.settings.host.as_str() == host);
        origin.is_some_and(|origin| origin.settings.admits(name))
    }

    /// Returns the downloads into the cache that run, the oldest first.
    pub fn running_fills(&self) -> Vec<FillSnapshot> {
        self.inflight.running()
    }

    /// Returns the current upstreams and settings.
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Removes content of a repository from the cache, and what is remembered of it: the next pull asks the upstream.
    pub(crate) async fn purge(
        &self,
        repository: &Repository,
        target: PurgeTarget,
    ) -> Result<Purged, StageError> {
        let purged = self.store.purge(repository, target).await?;
        let is_other = |host: &Host| *host != repository.host;
        self.referrers.retain(is_other);
        self.sizes.retain(is_other);
        self.negative_cache.clear();
        Ok(purged)
    }

    /// Calls `visit` for each cached image that clients may pull and whose name contains `text`, until it returns
    /// `false`.
    pub(crate) async fn each_image(
        self: &Arc<Self>,
        text: String,
        visit: impl FnMut(CachedImage) -> bool + Send + 'static,
    ) -> Result<(), crate::store::Error> {
        let live = self.live();
        let is_listed =
            move |repository: &Repository| live.admits(repository) && repository.to_string().contains(&text);
        self.store.each_image(is_listed, visit).await
    }

    /// Returns the configured registry that a client means by this name.
    pub(crate) fn host(&self, name: &str) -> Option<Host> {
        select_upstream::find(&self.live.load().hosts(), name).cloned()
    }

    /// Returns the repository that a request is for.
    pub(crate) fn select_repository(
        &self,
        ns: Option<&str>,
        path: &str,
    ) -> Result<Repository, UpstreamSelectionError> {
        let live = self.live.load();
        let repository = select_upstream::select_repository(&live.hosts(), ns, path)?;
        if live.admits(&repository) {
            return Ok(repository);
        }
        Err(UpstreamSelectionError::Excluded(repository))
    }

    /// Returns the revalidation wait for a client of this repository; zero while the upstream is probed.
    fn revalidation_wait(&self, repository: &Repository) -> Duration {
        match self.live.load().origin_of(&repository.host) {
            Some(origin) if origin.client.is_probing() => Duration::ZERO,
            _ => MAX_REVALIDATION_WAIT,
        }
    }

    /// Waits for a turn of a client's to ask the repository's registry.
    async fn turn(&self, repository: &Repository, client: ClientAddress) -> Result<Turn, PullError> {
        Ok(self.requests.turn(&repository.host, client).await?)
    }

    /// Waits for a turn of a client's to get a list of tags or repositories.
    async fn list_turn(&self, host: &Host, peer: &str) -> Result<Turn, PullError> {
        Ok(self.lists.turn(host, ClientAddress::from_peer(peer)).await?)
    }

    /// Returns the origins of a repository's content.
    fn origins(&self, repository: &Repository, client: ClientAddress) -> Result<Origins, PullError> {
        let live = self.live.load();
        // Content that the upstream refused last is not served without the upstream's permission.
        let bucket = self.bucket.get().filter(|_| !self.is_refused(repository));
        if live.cache.offline && bucket.is_none() {
            return Err(PullError::unavailable(
                "this mirror is offline (cache.offline), and has no copy of this",
            ));
        }
        let Some(origin) = live.origin_of(&repository.host) else {
            return Err(PullError::unavailable(format!(
                "{} is no upstream any more",
                repository.host
            )));
        };
        let (upstream, fleet) = (Arc::clone(&origin.client), self.fleet.get().cloned());
        let origins = Origins::new(upstream, fleet, client.is_replica());
        Ok(origins.with_bucket(bucket.cloned(), live.cache.offline))
    }
}

/// Logs an error of the cache and treats it as a miss.
fn unreadable<T>(result: Result<Option<T>, crate::store::Error>) -> Option<T> {
    result.unwrap_or_else(|error| {
        warn!(%error, "the cache can't be read; asking upstream instead");
        None
    })
}
