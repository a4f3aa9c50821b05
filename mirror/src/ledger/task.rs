//! The background task: records uploads and uses, evicts, and saves what changed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::entry::LedgerEntry;
use super::evict::Eviction;
use super::exchange::PeerLedger;
use super::journal::Event;
use super::{Ledger, LedgerError, Shared};
use crate::bucket::Breaker;
use crate::config::Cache;
use crate::peers::Shard;
use crate::store::BucketUpload;

/// The time between two steps.
const TICK: Duration = Duration::from_secs(1);
/// The requests to the bucket at a time.
const AT_ONCE: usize = 16;
/// The time after the start at which it looks for uploads in parts that nothing ends.
const FIRST_SWEEP: Duration = Duration::from_mins(2);
/// The time from one such look to the next.
const DAILY: Duration = Duration::from_hours(24);
/// The uploads that are recorded in one step.
const BATCH: usize = 1_024;
/// The time that the last save has when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// The state that only the task has.
struct Task {
    shared: Arc<Shared>,
    queue: Receiver<BucketUpload>,
    cache: watch::Receiver<Cache>,
    uploads: Vec<BucketUpload>,
    pause: Breaker,
    started: Instant,
    eviction: Eviction,
    exchange: PeerLedger,
    /// The last look for uploads in parts that nothing ends.
    swept: Option<Instant>,
}

impl Ledger {
    /// Runs until `shutdown` with the settings of the cache, and saves what changed.
    pub(crate) async fn run(self, cache: watch::Receiver<Cache>, shutdown: CancellationToken) {
        let Some(queue) = self.uploads.lock().take() else {
            return;
        };
        let mut task = Task::new(Arc::clone(&self.shared), queue, cache);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = task.follow() => {}
        }
        if tokio::time::timeout(GRACE, task.finish()).await.is_err() {
            tracing::info!(
                "the ledger of the bucket was not saved in time: the next start completes it from the index"
            );
        }
    }
}

impl Task {
    fn new(shared: Arc<Shared>, queue: Receiver<BucketUpload>, cache: watch::Receiver<Cache>) -> Self {
        Self {
            shared,
            queue,
            cache,
            uploads: Vec::new(),
            pause: Breaker::default(),
            started: Instant::now(),
            eviction: Eviction::default(),
            exchange: PeerLedger::default(),
            swept: None,
        }
    }

    async fn follow(&mut self) {
        loop {
            let has_room = self.uploads.len() < BATCH;
            tokio::select! {
                Some(upload) = self.queue.recv(), if has_room => self.uploads.push(upload),
                () = tokio::time::sleep(TICK) => {}
            }
            self.drain();
            if self.pause.remaining().is_zero()
                && self.shared.bucket.is_available()
                && !self.shared.store.is_readonly()
            {
                match self.step().await {
                    Ok(()) => self.pause.close(),
                    Err(error) => {
                        self.pause.open();
                        tracing::warn!(%error, "the ledger of the bucket cannot be kept up to date; it is tried again");
                    }
                }
            } else {
                self.record_loaded();
            }
        }
    }

    /// Takes the uploads that wait.
    fn drain(&mut self) {
        while self.uploads.len() < BATCH
            && let Ok(upload) = self.queue.try_recv()
        {
            self.uploads.push(upload);
        }
    }

    async fn step(&mut self) -> Result<(), LedgerError> {
        (*self.shared.patterns.lock()).clone_from(&self.cache.borrow().pinned);
        let Some(owned) = self.exchange.owned(&self.shared) else {
            self.record(&[]).await?;
            return Ok(());
        };
        self.shared.uses.set_owned(&owned);
        // First: a ledger that cannot be written must not keep uploads of shards of others.
        self.record(&owned).await?;
        self.hand_over(&owned).await?;
        self.shared.load_all(owned.iter().copied()).await?;
        self.shared.record_uses();
        self.exchange.poll(&self.shared, &owned, false).await?;
        if let Some(totals) = self.shared.count(&owned) {
            *self.shared.totals.lock() = Some(totals);
            self.evict(&owned, totals).await?;
        }
        self.shared.save_due(&owned).await?;
        self.abort_leftovers(&owned).await;
        Ok(())
    }

    /// Aborts old uploads in parts once a day, as the owner of the first shard.
    async fn abort_leftovers(&mut self, owned: &[u8]) {
        let is_due = match self.swept {
            Some(swept) => swept.elapsed() >= DAILY,
            None => self.started.elapsed() >= FIRST_SWEEP,
        };
        if !is_due || !owned.contains(&0) {
            return;
        }
        self.swept = Some(Instant::now());
        match self.shared.bucket.abort_old_uploads().await {
            Ok(0) => {}
            Ok(aborted) => tracing::info!(aborted, "uploads in parts that nothing ended were aborted"),
            // Not every credential may list uploads: a lifecycle rule of the store does the same.
            Err(error) => {
                tracing::warn!(%error, "uploads in parts that nothing ended cannot be listed; let a lifecycle rule end them");
            }
        }
    }

    /// Records the uploads whose shards are in memory, by no request: uploads to the bucket wait for the ledger only while it
    /// was never read.
    fn record_loaded(&mut self) {
        let shared = &self.shared;
        self.uploads.retain(|upload| !shared.record_upload(upload));
    }

    /// Records uploads in their shards, which are read first.
    async fn record(&mut self, owned: &[u8]) -> Result<(), LedgerError> {
        let shard = |upload: &BucketUpload| Shard::of_blob(&upload.digest).index();
        let needed: BTreeSet<_> = self.uploads.iter().map(shard).collect();
        let needed = needed.into_iter().filter(|shard| owned.contains(shard));
        self.shared.load_all(needed).await?;
        for upload in self.uploads.drain(..) {
            if !owned.contains(&shard(&upload)) {
                let event = Event::Upload(LedgerEntry::from(&upload));
                self.shared.journal.lock().push(upload.digest, event);
                continue;
            }
            self.shared.record_upload(&upload);
        }
        Ok(())
    }

    /// Writes and drops the shards that other members own now.
    async fn hand_over(&self, owned: &[u8]) -> Result<(), LedgerError> {
        let is_lost = |shard: &u8| !owned.contains(shard) && self.shared.is_loaded(*shard);
        let lost: Vec<_> = (0..=u8::MAX).filter(is_lost).collect();
        self.shared.save_all(&lost).await?;
        for shard in lost {
            *self.shared.slot(shard).lock() = None;
        }
        Ok(())
    }

    async fn evict(&mut self, owned: &[u8], totals: super::LedgerTotals) -> Result<(), LedgerError> {
        let shared = Arc::clone(&self.shared);
        let limits = shared.limits(owned, &self.cache.borrow());
        if !self.eviction.is_due(limits, totals) {
            return Ok(());
        }
        // Uses that are in memory count.
        shared.store.flush_uses().await?;
        shared.record_uses();
        self.exchange.poll(&shared, owned, true).await?;
        self.eviction.run(&shared, owned, limits).await?;
        *shared.totals.lock() = shared.count(owned);
        Ok(())
    }

    /// Records what the channels still have, and saves what changed.
    async fn finish(&mut self) {
        self.drain();
        let owned = self.exchange.owned(&self.shared).unwrap_or_default();
        let ended = async {
            self.record(&owned).await?;
            self.shared.record_uses();
            let all: Vec<_> = (0..=u8::MAX).collect();
            self.shared.save_all(&all).await
        };
        if let Err(error) = ended.await {
            tracing::warn!(%error, "the ledger of the bucket was not saved: the next start completes it from the index");
        }
    }
}

/// Runs requests to the bucket, a few at a time, until one fails.
pub(super) async fn some_at_once(
    requests: Vec<BoxFuture<'_, Result<(), LedgerError>>>,
) -> Result<(), LedgerError> {
    let running = stream::iter(requests).buffer_unordered(AT_ONCE);
    running.try_collect().await
}

impl Shared {
    /// Records an upload in its shard; returns false if that is not in memory.
    fn record_upload(&self, upload: &BucketUpload) -> bool {
        let digest = &upload.digest;
        let mut slot = self.slot(Shard::of_blob(digest).index()).lock();
        let Some(table) = slot.as_mut() else { return false };
        if !table.merge(digest.clone(), LedgerEntry::from(upload)) {
            tracing::debug!(%digest, "the ledger has no room: the bucket keeps this content");
        }
        true
    }

    /// Reads the shards that are not in memory.
    async fn load_all(&self, shards: impl Iterator<Item = u8>) -> Result<(), LedgerError> {
        let lacking = shards.filter(|shard| !self.is_loaded(*shard));
        some_at_once(lacking.map(|shard| self.load(shard).boxed()).collect()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::unreachable_uploader;
    use crate::clock::Clock;
    use crate::digest::{Algorithm, Digest};
    use crate::ledger::table::ShardTable;
    use crate::metrics::Metrics;

    fn upload(digest: Digest) -> BucketUpload {
        BucketUpload {
            digest,
            size: 1,
            fetched: 1,
            used: 1,
            uploaded: 1,
            links: Vec::new(),
        }
    }

    /// Uploads to shards in memory are recorded while the bucket fails; others wait until their shards are read.
    #[tokio::test]
    async fn uploads_are_recorded_while_the_bucket_fails() {
        let root = tempfile::tempdir().unwrap();
        let (uploader, store, cache) = unreachable_uploader(root.path()).await;
        let ledger = Ledger::new(&uploader, store, None, Clock::system(), Metrics::new());
        let queue = ledger.uploads.lock().take().unwrap();
        let (_sender, cache) = watch::channel(cache);
        let mut task = Task::new(Arc::clone(&ledger.shared), queue, cache);
        let [loaded, other] = [b"a", b"b"].map(|content| Digest::compute(Algorithm::Sha256, content));
        let shard = Shard::of_blob(&loaded).index();
        *ledger.shared.slot(shard).lock() = Some(ShardTable::default());
        task.uploads = vec![upload(loaded.clone()), upload(other.clone())];
        task.record_loaded();
        let waiting: Vec<_> = task.uploads.iter().map(|upload| &upload.digest).collect();
        assert_eq!(waiting, [&other]);
        let slot = ledger.shared.slot(shard).lock();
        assert!(slot.as_ref().unwrap().get(&loaded).is_some());
    }
}
