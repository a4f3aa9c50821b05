//! The fills under way, and the digests that are refused for a while because upstream sent wrong bytes for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tracing::{Instrument, info_span};

use crate::clock::Clock;
use crate::digest::Digest;
use crate::fill::{self, Fill};
use crate::metrics::{FillResult, Metrics};
use crate::name::Repository;
use crate::store::Store;
use crate::traces::{TARGET, detached};
use crate::upstream::Upstream;

/// Fills under way; more are refused. How many run at once is each upstream's own limit, so that a slow one holds up
/// nobody else.
const ADMITTED: usize = 1_024;
/// How long a digest is refused after a first mismatch; doubles with each further one.
const FIRST_REFUSAL: Duration = Duration::from_secs(2);
const LONGEST_REFUSAL: Duration = Duration::from_mins(5);
/// Digests whose refusals, or sizes, are remembered.
const REFUSALS: usize = 10_000;

/// Why no fill was started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotNow {
    /// Upstream's bytes did not match the digest; ask again after this time.
    Refused(Duration),
    /// Too many fills.
    Full,
}

/// All fills of this process. A blob has at most one.
pub(crate) struct Inflight {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    fills: HashMap<Digest, Arc<Fill>>,
    refusals: HashMap<Digest, Refusal>,
    /// How many bytes there were of blobs of untold size when the room for them ran out: they are not begun again
    /// without more room than that, but pass by the cache.
    too_large: HashMap<Digest, u64>,
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
            state: Mutex::default(),
        }
    }

    /// The fill of this digest that is under way.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<Fill>> {
        self.lock().fills.get(digest).cloned()
    }

    /// For how long this digest is still refused.
    pub(crate) fn refused(&self, digest: &Digest) -> Option<Duration> {
        let state = self.lock();
        let refusal = state.refusals.get(digest)?;
        let over = self.clock.is_over(refusal.since, refusal.length);
        (!over).then(|| refusal.length.saturating_sub(self.clock.since(refusal.since)))
    }

    /// Joins the fill of this digest (true), or starts it.
    pub(crate) fn join_or_start(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(Arc<Fill>, bool), NotNow> {
        if let Some(left) = self.refused(digest) {
            return Err(NotNow::Refused(left));
        }
        let mut state = self.lock();
        if let Some(fill) = state.fills.get(digest).filter(|fill| !fill.has_failed()) {
            return Ok((Arc::clone(fill), true));
        }
        if state.fills.len() >= ADMITTED {
            return Err(NotNow::Full);
        }
        let least = state.too_large.get(digest).copied().unwrap_or_default();
        let (fill, job) = fill::prepare(digest, repository, upstream, &self.store, least);
        state.fills.insert(digest.clone(), Arc::clone(&fill));
        drop(state);
        let ended = Ended {
            inflight: Arc::clone(self),
            digest: digest.clone(),
            fill: Arc::clone(&fill),
        };
        let span = info_span!(target: TARGET, parent: None, "fill", registry_mirror.digest = %digest);
        let run = async move {
            ended.inflight.metrics.fills_active.inc();
            Box::pin(job.run(|result| ended.note(result))).await;
            ended.inflight.metrics.fills_active.dec();
        };
        tokio::spawn(run.instrument(detached(span)));
        Ok((fill, false))
    }

    /// Notes that upstream's bytes for this digest were wrong. Several clients may see the same wrong bytes: once
    /// refused is refused.
    pub(crate) fn refuse(&self, digest: &Digest) {
        if self.refused(digest).is_some() {
            return;
        }
        let (mut state, since) = (self.lock(), self.clock.now());
        if state.refusals.len() >= REFUSALS {
            state.refusals.clear();
        }
        let last = state.refusals.get(digest).map(|refusal| refusal.length);
        let length = last.map_or(FIRST_REFUSAL, |last| (last * 2).min(LONGEST_REFUSAL));
        state.refusals.insert(digest.clone(), Refusal { length, since });
    }

    fn forgive(&self, digest: &Digest) {
        let mut state = self.lock();
        state.refusals.remove(digest);
        state.too_large.remove(digest);
    }

    /// Notes that there was no room for more than `written` bytes of a blob.
    fn remember_size(&self, digest: &Digest, written: u64) {
        let mut state = self.lock();
        if state.too_large.len() >= REFUSALS {
            state.too_large.clear();
        }
        let least = state.too_large.entry(digest.clone()).or_default();
        *least = written.max(*least);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a fill off the list however its task ends.
struct Ended {
    inflight: Arc<Inflight>,
    digest: Digest,
    fill: Arc<Fill>,
}

impl Ended {
    fn note(&self, result: FillResult) {
        match result {
            FillResult::Stored => self.inflight.forgive(&self.digest),
            FillResult::Mismatch => self.inflight.refuse(&self.digest),
            FillResult::NoRoom => self
                .inflight
                .remember_size(&self.digest, self.fill.progress().written),
            _ => {}
        }
        self.inflight.metrics.fill(result);
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut state = self.inflight.lock();
        // One that failed may have been followed by another already.
        if state
            .fills
            .get(&self.digest)
            .is_some_and(|fill| Arc::ptr_eq(fill, &self.fill))
        {
            state.fills.remove(&self.digest);
        }
    }
}
