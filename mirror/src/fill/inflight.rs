//! The fills under way, and the digests that are refused for a while because their upstream sent wrong bytes for them.
//!
//! All of it is kept by upstream and digest: what one upstream sends, or does not send, changes nothing for the clients
//! of another. Verified content alone is shared, by the store.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tracing::{Instrument, info_span};

use crate::client_address::ClientAddress;
use crate::clock::Clock;
use crate::digest::Digest;
use crate::fill::{self, Fill, NoPlace, PlaceLimits, RequestPlaces, Turn};
use crate::metrics::{FillResult, Metrics};
use crate::name::{Host, Repository};
use crate::origins::Origins;
use crate::store::Store;
use crate::traces::{TARGET, detached};

/// The places of fills. Of the downloads that an upstream has at a time (see `upstream::Limits`), one client has three
/// quarters at most.
const FILLS: PlaceLimits = PlaceLimits {
    total: 2_048,
    upstream: 512,
    client: 1_024,
    share: 256,
    running: 96,
    wait: Duration::from_secs(10),
};
/// The cooldown of a digest after its first mismatch; doubles with each further one.
const FIRST_REFUSAL: Duration = Duration::from_secs(2);
const LONGEST_REFUSAL: Duration = Duration::from_mins(5);
/// The digests of an upstream whose refusals, or sizes, are remembered.
const REMEMBERED: usize = 10_000;

/// The reason for which no fill was started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FillRejected {
    /// Upstream's bytes did not match the digest; clients may ask again after this time.
    Cooldown(Duration),
    /// Too many fills.
    TooManyInFlight(NoPlace),
}

/// A fill that runs.
#[derive(Clone, Debug)]
pub struct FillSnapshot {
    /// A repository that the blob is fetched for.
    pub repository: Repository,
    /// The blob.
    pub digest: Digest,
    /// The bytes that arrived.
    pub written: u64,
    /// The size, if the upstream announced it.
    pub size: Option<u64>,
    /// The clients that read or wait.
    pub clients: usize,
    /// The time since the start.
    pub age: Duration,
}

/// A blob at one upstream.
type Key = (Host, Digest);

/// All fills of this process: at most one for each blob and upstream.
pub(crate) struct Inflight {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    places: Arc<RequestPlaces>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    fills: HashMap<Key, Arc<Fill>>,
    refusals: HashMap<Key, Refusal>,
    /// The bytes that had come of blobs when the room for them ran out: such a fill starts with more room than that, or
    /// its blob passes by the cache.
    too_large: HashMap<Key, u64>,
}

impl State {
    /// Returns the fill that a client or another replica may join.
    fn joinable(&self, key: &Key) -> Option<Arc<Fill>> {
        self.fills.get(key).filter(|fill| !fill.has_failed()).cloned()
    }
}

struct Refusal {
    length: Duration,
    since: Timestamp,
}

impl Inflight {
    pub(crate) fn new(store: Store, clock: Clock, metrics: Metrics) -> Self {
        Self {
            store,
            clock,
            metrics,
            places: RequestPlaces::new(FILLS),
            state: Mutex::default(),
        }
    }

    /// Returns the fill of this blob from the repository's upstream that is under way.
    pub(crate) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Fill>> {
        self.state.lock().fills.get(&key(repository, digest)).cloned()
    }

    /// Returns the time for which this blob of this upstream is still refused.
    fn refused(&self, key: &Key) -> Option<Duration> {
        let state = self.state.lock();
        let refusal = state.refusals.get(key)?;
        let over = self.clock.is_over(refusal.since, refusal.length);
        (!over).then(|| refusal.length.saturating_sub(self.clock.since(refusal.since)))
    }

    /// Joins the fill of this blob from this upstream (true), or starts it in a turn of this client's. A fill that can be
    /// joined has its turn: no client waits for another client's. A fill that another replica joins asks no replica. A
    /// manifest of the repository may name the size of the blob.
    pub(crate) async fn join_or_start(
        self: &Arc<Self>,
        origins: &Origins,
        repository: &Repository,
        (digest, named): (&Digest, Option<u64>),
        client: ClientAddress,
    ) -> Result<(Arc<Fill>, bool), FillRejected> {
        let blob = (digest, named);
        let (fill, joined) = self.fill_of_client(origins, repository, blob, client).await?;
        if client.is_replica() {
            fill.feed_replica();
        }
        Ok((fill, joined))
    }

    async fn fill_of_client(
        self: &Arc<Self>,
        origins: &Origins,
        repository: &Repository,
        (digest, named): (&Digest, Option<u64>),
        client: ClientAddress,
    ) -> Result<(Arc<Fill>, bool), FillRejected> {
        let key = key(repository, digest);
        if let Some(fill) = self.join(&key)? {
            return Ok((fill, true));
        }
        let turn = self.places.turn(&repository.host, client).await;
        let turn = turn.map_err(FillRejected::TooManyInFlight)?;
        // Another client may have started it meanwhile, and it may have ended.
        if let Some(fill) = self.join(&key)? {
            return Ok((fill, true));
        }
        Ok(self.start(turn, (key, named), origins, repository))
    }

    /// Returns the fills that run, the oldest first.
    pub(crate) fn running(&self) -> Vec<FillSnapshot> {
        let fills: Vec<_> = {
            let state = self.state.lock();
            state
                .fills
                .iter()
                .map(|(key, fill)| (key.1.clone(), Arc::clone(fill)))
                .collect()
        };
        let running = fills.into_iter().filter_map(|(digest, fill)| {
            // The list, the end of the task and this query hold the fill, too.
            let clients = Arc::strong_count(&fill).saturating_sub(3);
            let (progress, (age, repository)) = (fill.progress(), fill.age());
            let (repository, written, size) = (repository?, progress.written, progress.size);
            Some(FillSnapshot {
                repository,
                digest,
                written,
                size,
                clients,
                age,
            })
        });
        let mut running: Vec<_> = running.collect();
        running.sort_by_key(|fill| Reverse(fill.age));
        running
    }

    fn join(&self, key: &Key) -> Result<Option<Arc<Fill>>, FillRejected> {
        match self.refused(key) {
            Some(left) => Err(FillRejected::Cooldown(left)),
            None => Ok(self.state.lock().joinable(key)),
        }
    }

    fn start(
        self: &Arc<Self>,
        turn: Turn,
        (key, named): (Key, Option<u64>),
        origins: &Origins,
        repository: &Repository,
    ) -> (Arc<Fill>, bool) {
        let mut state = self.state.lock();
        if let Some(fill) = state.joinable(&key) {
            return (fill, true);
        }
        let digest = &key.1;
        let least = state.too_large.get(&key).copied().unwrap_or_default();
        let (fill, task) = fill::prepare(digest, repository, origins, &self.store, (named, least));
        state.fills.insert(key.clone(), Arc::clone(&fill));
        drop(state);
        let span = info_span!(target: TARGET, parent: None, "fill", registry_mirror.digest = %digest);
        let ended = Ended {
            inflight: Arc::clone(self),
            key,
            fill: Arc::clone(&fill),
        };
        let run = async move {
            let _turn = turn;
            ended.inflight.metrics.fills_active.inc();
            Box::pin(task.run(|result| ended.on_fill_end(result))).await;
            ended.inflight.metrics.fills_active.dec();
        };
        tokio::spawn(run.instrument(detached(span)));
        (fill, false)
    }

    /// Refuses a blob of which this repository's upstream sent wrong bytes. Several clients may see the same wrong bytes:
    /// a refusal in force is not prolonged.
    pub(crate) fn refuse(&self, repository: &Repository, digest: &Digest) {
        self.refuse_key(&key(repository, digest));
    }

    fn refuse_key(&self, key: &Key) {
        if self.refused(key).is_some() {
            return;
        }
        let (mut state, since) = (self.state.lock(), self.clock.now());
        make_room(&mut state.refusals, &key.0);
        let last = state.refusals.get(key).map(|refusal| refusal.length);
        let length = last.map_or(FIRST_REFUSAL, |last| (last * 2).min(LONGEST_REFUSAL));
        state.refusals.insert(key.clone(), Refusal { length, since });
    }

    fn forgive(&self, key: &Key) {
        let mut state = self.state.lock();
        state.refusals.remove(key);
        state.too_large.remove(key);
    }

    /// Records that there was no room for more than `written` bytes of a blob.
    fn remember_size(&self, key: &Key, written: u64) {
        let mut state = self.state.lock();
        make_room(&mut state.too_large, &key.0);
        let least = state.too_large.entry(key.clone()).or_default();
        *least = written.max(*least).max(1);
    }
}

/// Forgets all of an upstream if there is too much of it: another upstream's entries stay.
fn make_room<V>(entries: &mut HashMap<Key, V>, host: &Host) {
    if entries.len() >= REMEMBERED && entries.keys().filter(|key| key.0 == *host).count() >= REMEMBERED {
        entries.retain(|key, _| key.0 != *host);
    }
}

fn key(repository: &Repository, digest: &Digest) -> Key {
    (repository.host.clone(), digest.clone())
}

/// The end of a fill: takes it off the list however its task ends.
struct Ended {
    inflight: Arc<Inflight>,
    key: Key,
    fill: Arc<Fill>,
}

impl Ended {
    fn on_fill_end(&self, result: FillResult) {
        match result {
            FillResult::Stored => self.inflight.forgive(&self.key),
            FillResult::Mismatch => self.inflight.refuse_key(&self.key),
            FillResult::NoRoom => self
                .inflight
                .remember_size(&self.key, self.fill.progress().written),
            _ => {}
        }
        self.inflight.metrics.fill(result);
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut state = self.inflight.state.lock();
        // One that failed may have been followed by another already.
        if state
            .fills
            .get(&self.key)
            .is_some_and(|fill| Arc::ptr_eq(fill, &self.fill))
        {
            state.fills.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn too_many_entries_of_one_upstream_cost_no_other_its_own() {
        let digest = |number: usize| Digest::compute(Algorithm::Sha256, &number.to_le_bytes());
        let [bad, good]: [Host; 2] = ["bad.test", "good.test"].map(|host| host.parse().unwrap());
        let mut entries = HashMap::from([((good.clone(), digest(0)), 0_u8)]);
        for number in 0..=REMEMBERED {
            make_room(&mut entries, &bad);
            entries.insert((bad.clone(), digest(number)), 0);
        }
        assert_eq!(entries.len(), 2);
        assert!(entries.contains_key(&(good, digest(0))));
    }
}
