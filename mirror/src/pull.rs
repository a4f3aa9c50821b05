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
mod referrers;
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
pub(crate) use referrers::of_type;
pub(crate) use through::Through;

use crate::clock::Clock;
use crate::config::{self, Cache};
use crate::digest::Digest;
use crate::inflight::Inflight;
use crate::metrics::{Metrics, Outcome};
use crate::name::{Host, Reference, Repository};
use crate::store::{Manifest, Store};
use crate::upstream::{Accept, Upstream};

use absent::Absent;
pub(crate) use flight::Flights;

/// How long a client waits where there is a copy, and no doubt yet that upstream answers.
const PATIENCE: Duration = Duration::from_millis(1_500);

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
    absent: Absent,
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
            absent: Absent::default(),
            referrers: referrers::Known::default(),
            asked_referrers: Flights::default(),
            sizes: sizes::Named::default(),
        })
    }

    /// Takes new upstreams and settings. What is under way ends by the old ones.
    pub fn reload(&self, live: Live) {
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
        if live
            .of(&repository.host)
            .is_some_and(|origin| origin.settings.admits(&repository.name))
        {
            return Ok(repository);
        }
        Err(NoChoice::KeptOut(repository))
    }

    /// How long a client waits for upstream's word where there is a copy.
    fn patience(&self, repository: &Repository) -> Duration {
        match self.origin(repository) {
            Ok(upstream) if upstream.is_doubted() => Duration::ZERO,
            _ => PATIENCE,
        }
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
