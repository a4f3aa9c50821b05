//! What happens beside requests: marks reach the disk, old content goes, the index learns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;

use crate::config::TtlFrom;
use crate::store::durable::on;
use crate::store::hits::lock;
use crate::store::index::{Entry, Link, Op, Order};
use crate::store::scheduler_state::{self, Kind};
use crate::store::scrub::Suspects;
use crate::store::{Error, Inner, Store, rebuild};

/// Distribution's expiries are turned into ours in batches of this size.
const BATCH: usize = 4096;

/// The state of the work beside requests.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    learning: AtomicBool,
    /// How long content is kept and from when on, as far as anybody said so.
    ttl: Mutex<Option<(Duration, TtlFrom)>>,
    /// What the expiry state was last written for.
    state_of: Mutex<Option<(u64, Duration, TtlFrom)>>,
    pub(super) suspects: Suspects,
}

impl Store {
    /// Writes what was only marked in memory, and Distribution's expiry state for the default upstream
    /// where it changed. To be called every minute and before exit.
    pub async fn flush(&self) {
        learn_if_needed(&self.inner);
        if let Err(error) = self.blocking(Inner::flush).await {
            tracing::warn!(%error, "the cache's state could not be written; it is tried again");
        }
    }

    /// Removes what is older than `ttl` (`None`: nothing is), and what is over a limit that was lowered.
    /// Returns how many pieces of content expired.
    ///
    /// What clients read at the moment stays until the next call. Nothing goes before the store knows
    /// all of its files.
    pub async fn expire(&self, ttl: Option<Duration>, from: TtlFrom) -> Result<u64, Error> {
        self.blocking(move |inner| {
            *lock(&inner.upkeep.ttl) = ttl.map(|ttl| (ttl, from));
            if inner.space.is_paused() {
                return Ok(0);
            }
            inner.trim()?;
            let Some(ttl) = ttl else { return Ok(0) };
            let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            inner.resolve_imported(ttl)?;
            let order = match from {
                TtlFrom::LastUse => Order::Use,
                TtlFrom::FirstFetch => Order::Fetch,
            };
            inner.expire(order, inner.clock.now().as_millisecond().saturating_sub(ttl))
        })
        .await
    }

    /// True once the store knows all of its files, which takes a moment after a take-over.
    pub fn is_settled(&self) -> bool {
        !self.inner.space.is_paused()
    }
}

/// Starts to learn from the files, in the background, where the index does not know them all.
pub(super) fn learn_if_needed(inner: &Arc<Inner>) {
    let needed = !inner.readonly && !inner.index.is_complete();
    if !needed || inner.upkeep.learning.swap(true, Ordering::AcqRel) {
        return;
    }
    inner.begin_count(true);
    let store = Arc::downgrade(inner);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = rebuild::run(&store) {
            tracing::warn!(%error, "the cache's index can't be rebuilt now; it is tried again");
        }
        if let Some(inner) = store.upgrade() {
            inner.upkeep.learning.store(false, Ordering::Release);
        }
    });
}

impl Inner {
    /// Begins to count from what the index knows; `paused` where that is not all.
    pub(super) fn begin_count(&self, paused: bool) {
        let (bytes, blobs) = self.index.totals().unwrap_or_default();
        self.space.begin(bytes, blobs, paused);
    }

    fn flush(&self) -> Result<(), Error> {
        self.write_marks()?;
        let ttl = *lock(&self.upkeep.ttl);
        if let Some((ttl, from)) = ttl.filter(|_| !self.readonly && !self.space.is_paused()) {
            self.write_scheduler_state(ttl, from)?;
        }
        Ok(())
    }

    /// A fetch that Distribution counts from is `ttl` before its expiry, whatever its `ttl` was.
    fn resolve_imported(&self, ttl: i64) -> Result<(), Error> {
        loop {
            let batch = self.index.imported(BATCH)?;
            if batch.is_empty() {
                return Ok(());
            }
            let resolve = |(digest, expires): (_, i64)| Op::Resolve(digest, expires.saturating_sub(ttl));
            self.index.write(batch.into_iter().map(resolve).collect())?;
        }
    }

    /// Written whole and renamed, and only where something changed since.
    fn write_scheduler_state(&self, ttl: Duration, from: TtlFrom) -> Result<(), Error> {
        let path = self.layout.scheduler_state();
        let now = (self.index.changes(), ttl, from);
        let mut written_for = lock(&self.upkeep.state_of);
        if *written_for == Some(now) {
            return Ok(());
        }
        let (file, scratch) = self.scratch.create()?;
        scheduler_state::write::<Error>(file, &scratch.0, |writer| {
            self.index.each_link(|digest, link, entry| {
                let (repository, kind) = match link {
                    Link::Layer(repository, _) => (repository, Kind::Blob),
                    Link::Revision(repository, _) => (repository, Kind::Manifest),
                    Link::Tag(..) => return Ok(()),
                };
                if repository.host != *self.layout.default_host() {
                    return Ok(());
                }
                writer
                    .entry(&repository.name, digest, expiry(entry, ttl, from), kind)
                    .map_err(|error| on("write", &scratch.0)(error).into())
            })
        })?;
        self.scratch.ours.place(&scratch.0, &path)?;
        let seen = scheduler_state::fingerprint(&path);
        self.index.write(vec![Op::StateSeen(seen)])?;
        *written_for = Some(now);
        Ok(())
    }
}

fn expiry(entry: Entry, ttl: Duration, from: TtlFrom) -> Timestamp {
    let since = match from {
        TtlFrom::LastUse => entry.used,
        TtlFrom::FirstFetch => entry.fetched,
    };
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(since.saturating_add(ttl)).unwrap_or(Timestamp::MAX)
}
