//! What is answered from the cache, what is fetched, and what is served stale: the policy of a pull-through.

mod absent;
mod blob;
mod choice;
mod failure;
mod flight;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod list;
mod manifest;
mod media;
mod per_upstream;
mod referrers;
mod refusals;
mod sizes;
mod through;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::warn;

pub(crate) use blob::Source;
pub(crate) use choice::NoChoice;
pub(crate) use failure::{Cause, Failure, Kind};
pub(crate) use list::{Page, Window};
pub(crate) use manifest::Client;
pub(crate) use referrers::of_type;
pub(crate) use through::Through;

use crate::client_address::ClientAddress;
use crate::clock::Clock;
use crate::config::{self, Cache};
use crate::digest::Digest;
use crate::fill::{PlaceLimits, Places, Turn};
use crate::inflight::Inflight;
use crate::metrics::{Metrics, Outcome};
use crate::name::{Host, Reference, Repository, Tag};
use crate::store::{Manifest, Store};
use crate::upstream::{Accept, Upstream};

use absent::Absent;
pub(crate) use flight::Flights;
use refusals::Refusals;

/// How long a client waits where there is a copy, and no doubt yet that upstream answers.
const PATIENCE: Duration = Duration::from_millis(1_500);

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

/// One upstream: what was configured, and the client that asks it.
pub struct Origin {
    /// As configured.
    pub settings: config::Upstream,
    /// Asks it.
    pub client: Arc<Upstream>,
}

/// What a reload replaces as a whole.
pub struct Live {
    /// The closed set of registries; the first is the default.
    pub upstreams: Vec<Origin>,
    /// How long things are kept and how fresh they must be.
    pub cache: Cache,
}

impl Live {
    fn hosts(&self) -> impl Iterator<Item = choice::Candidate<'_>> + Clone {
        let upstreams = self.upstreams.iter().map(|origin| &origin.settings);
        upstreams.map(|upstream| (&upstream.host, upstream.remote.scheme()))
    }

    /// Returns whether the settings let clients pull from this repository.
    fn admits(&self, repository: &Repository) -> bool {
        let origin = self.of(&repository.host);
        origin.is_some_and(|origin| origin.settings.admits(&repository.name))
    }

    fn of(&self, host: &Host) -> Option<&Origin> {
        self.upstreams.iter().find(|origin| origin.settings.host == *host)
    }
}

/// Something served, and how it came about.
#[derive(Clone, Debug)]
pub(crate) struct Served<T> {
    pub(crate) value: T,
    pub(crate) outcome: Outcome,
}

/// The fetches of manifests under way, by what their clients accept too; the outcome tells whether upstream has the
/// copy of this mirror.
type ManifestFlights = Flights<(Repository, Reference, Accept), Result<(Manifest, Outcome), Failure>>;

/// The pull path. Shared by all requests.
pub struct Pull {
    store: Store,
    clock: Clock,
    live: ArcSwap<Live>,
    manifests: ManifestFlights,
    inflight: Arc<Inflight>,
    requests: Arc<Places>,
    passing: Arc<Places>,
    absent: Absent,
    refusals: Refusals,
    referrers: referrers::Known,
    asked_referrers: Flights<(Repository, Digest), referrers::Asked>,
    sizes: sizes::Named,
}

impl Pull {
    /// A pull path over this store.
    pub fn new(store: Store, live: Live, clock: Clock, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            inflight: Arc::new(Inflight::new(store.clone(), clock.clone(), metrics.clone())),
            store,
            clock,
            live: ArcSwap::from_pointee(live),
            manifests: Flights::default(),
            requests: Places::new(REQUESTS),
            passing: Places::new(PASS_THROUGH),
            absent: Absent::default(),
            refusals: Refusals::default(),
            referrers: referrers::Known::default(),
            asked_referrers: Flights::default(),
            sizes: sizes::Named::default(),
        })
    }

    /// Takes new upstreams and settings. What is under way ends by the old ones.
    pub fn reload(&self, live: Live) {
        let is_configured = |host: &Host| live.of(host).is_some();
        self.referrers.retain(is_configured);
        self.refusals.retain(is_configured);
        self.sizes.retain(is_configured);
        self.live.store(Arc::new(live));
        self.absent.clear();
    }

    /// The upstreams and settings in force.
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Returns the configured registry that a client means by this name.
    pub(crate) fn host(&self, name: &str) -> Option<Host> {
        choice::find(&self.live.load().hosts(), name).cloned()
    }

    /// Returns the repository that a request is for.
    pub(crate) fn choose(&self, ns: Option<&str>, path: &str) -> Result<Repository, NoChoice> {
        let live = self.live.load();
        let repository = choice::choose(&live.hosts(), ns, path)?;
        if live.admits(&repository) {
            return Ok(repository);
        }
        Err(NoChoice::KeptOut(repository))
    }

    /// How long a client waits for upstream's word where there is a copy.
    fn patience(&self, repository: &Repository) -> Duration {
        match self.origin(repository) {
            Ok(upstream) if upstream.is_probing() => Duration::ZERO,
            _ => PATIENCE,
        }
    }

    /// Returns whether upstream refused something of this repository last: none of it is served without upstream's yes
    /// then, unless the settings say otherwise.
    fn is_refused(&self, repository: &Repository) -> bool {
        self.refusals.has_repository(repository) && self.heeds_refusals()
    }

    fn heeds_refusals(&self) -> bool {
        let live = self.live.load();
        !live.cache.stale_if_denied && !live.cache.offline
    }

    /// Remembers what upstream said to a request for content of a repository, for a tag if there is one. `generation` is
    /// that of the credential when the request began: what is said to one that was replaced since is no refusal.
    fn heed<T>(
        &self,
        (upstream, generation): (&Upstream, u64),
        repository: &Repository,
        tag: Option<&Tag>,
        said: &Result<T, Failure>,
    ) {
        match said {
            Ok(_) => self.refusals.remove(repository, tag),
            Err(failure) if failure.is_refusal() && generation == upstream.credential_generation() => {
                self.refusals.insert(repository, tag);
            }
            Err(_) => {}
        }
    }

    /// Waits for a turn of a client's to ask the repository's registry.
    async fn turn(&self, repository: &Repository, client: ClientAddress) -> Result<Turn, Failure> {
        Ok(self.requests.turn(&repository.host, client).await?)
    }

    /// The client for this repository's registry.
    fn origin(&self, repository: &Repository) -> Result<Arc<Upstream>, Failure> {
        let live = self.live.load();
        if live.cache.offline {
            return Err(Failure::unavailable(
                "this mirror is offline (cache.offline), and has no copy of this",
            ));
        }
        let Some(origin) = live.of(&repository.host) else {
            return Err(Failure::unavailable(format!(
                "{} is no upstream any more",
                repository.host
            )));
        };
        Ok(Arc::clone(&origin.client))
    }
}

/// The cache could not be read: that is a miss, and the admin's to know.
fn unreadable<T>(result: Result<Option<T>, crate::store::Error>) -> Option<T> {
    result.unwrap_or_else(|error| {
        warn!(%error, "the cache can't be read; asking upstream instead");
        None
    })
}
