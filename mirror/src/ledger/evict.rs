//! Eviction from the bucket: by least recent use for room, by age.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::policy::{self, BucketLimits, EvictionCandidate};
use super::table::ShardTable;
use super::{LedgerError, LedgerTotals, Shared};
use crate::config::Cache;
use crate::digest::Digest;
use crate::metrics::EvictionReason;
use crate::peers::Shard;
use crate::store;

/// The time from one check for expired content to the next, and from an eviction that was not enough to the next.
const INTERVAL: Duration = Duration::from_mins(1);
/// The pieces of content that are deleted at a time.
const BATCH: usize = 100;

/// The state of evictions.
#[derive(Debug, Default)]
pub(super) struct Eviction {
    /// The last check for expired content.
    expired: Option<Instant>,
    /// The last eviction, if content over the limit had to stay.
    in_vain: Option<Instant>,
}

impl Eviction {
    /// Returns whether content may have to go.
    pub(super) fn is_due(&mut self, limits: BucketLimits, totals: LedgerTotals) -> bool {
        let is_past = |last: Option<Instant>| last.is_none_or(|last| last.elapsed() >= INTERVAL);
        let is_over = limits.bytes.is_some_and(|limit| totals.bytes > limit) && is_past(self.in_vain);
        let expires = limits.expired.is_some() && is_past(self.expired);
        if expires {
            self.expired = Some(Instant::now());
        }
        is_over || expires
    }

    /// Deletes the content of these shards that has expired, or that is over the limit.
    pub(super) async fn run(
        &mut self,
        shared: &Arc<Shared>,
        owned: &[u8],
        limits: BucketLimits,
    ) -> Result<(), LedgerError> {
        if !shared.has_departures(owned, limits) {
            return Ok(());
        }
        let chosen = match shared.all_pinned(owned).await? {
            Some(pinned) => shared.choose(owned, limits, pinned).await?,
            None => Vec::new(),
        };
        for batch in chosen.chunks(BATCH) {
            shared.delete(batch).await?;
        }
        let is_over = shared
            .count(owned)
            .is_some_and(|totals| limits.bytes.is_some_and(|limit| totals.bytes > limit));
        self.in_vain = is_over.then(Instant::now);
        Ok(())
    }
}

impl Shared {
    /// Returns the limits of the content of these shards now.
    pub(super) fn limits(&self, owned: &[u8], cache: &Cache) -> BucketLimits {
        let now = self.clock.settled().as_millisecond();
        let expired = cache.ttl.map(|ttl| {
            let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            (now.saturating_sub(ttl), cache.ttl_from)
        });
        let bytes = self.bucket.max_size();
        BucketLimits {
            bytes: bytes.map(|limit| policy::share(limit, owned.len())),
            expired,
        }
    }

    /// Returns the content that has to go.
    async fn choose(
        self: &Arc<Self>,
        owned: &[u8],
        limits: BucketLimits,
        mut pinned: HashSet<Digest>,
    ) -> Result<Vec<(EvictionCandidate, EvictionReason)>, LedgerError> {
        loop {
            let (shared, shards, held) = (Arc::clone(self), owned.to_vec(), pinned.clone());
            let choose = move || {
                let is_pinned = |one: &EvictionCandidate| held.contains(&one.digest);
                policy::choose(shared.candidates(&shards), limits, is_pinned)
            };
            let chosen = tokio::task::spawn_blocking(choose)
                .await
                .map_err(store::Error::from)?;
            let digests = chosen.iter().map(|(one, _)| one.digest.clone()).collect();
            let stay: HashSet<Digest> = self.store.pinned_of(digests).await?.into_iter().collect();
            if stay.is_empty() {
                return Ok(chosen);
            }
            pinned.extend(stay);
        }
    }

    /// Returns whether content has expired or is over the limit.
    fn has_departures(&self, shards: &[u8], limits: BucketLimits) -> bool {
        let is_over = |totals: LedgerTotals| limits.bytes.is_some_and(|limit| totals.bytes > limit);
        self.count(shards).is_some_and(is_over)
            || shards.iter().any(|shard| {
                let slot = self.slot(*shard).lock();
                let mut entries = slot.iter().flat_map(ShardTable::iter);
                entries.any(|(_, entry)| policy::is_expired(entry.used, entry.fetched, limits))
            })
    }

    fn candidates(&self, shards: &[u8]) -> Vec<EvictionCandidate> {
        let mut all = Vec::new();
        for shard in shards {
            let slot = self.slot(*shard).lock();
            let table = slot.iter().flat_map(ShardTable::iter);
            all.extend(table.map(|(digest, entry)| EvictionCandidate::new(digest, entry)));
        }
        all
    }

    /// Deletes content from the bucket, and then from the ledger: what a killed process left is deleted again.
    async fn delete(&self, batch: &[(EvictionCandidate, EvictionReason)]) -> Result<(), LedgerError> {
        let with_links = |(one, _): &(EvictionCandidate, EvictionReason)| {
            let slot = self.slot(Shard::of_blob(&one.digest).index()).lock();
            let entry = slot.as_ref().and_then(|table| table.get(&one.digest));
            let links = entry.map(|entry| entry.links(&one.digest).collect());
            (one.digest.clone(), links.unwrap_or_default())
        };
        let content: Vec<_> = batch.iter().map(with_links).collect();
        self.bucket.delete_content(&content).await?;
        for (one, reason) in batch {
            let mut slot = self.slot(Shard::of_blob(&one.digest).index()).lock();
            if slot
                .as_mut()
                .and_then(|table| table.remove(&one.digest))
                .is_some()
            {
                self.metrics.evicted_from_bucket(*reason, one.size);
            }
        }
        tracing::debug!(objects = batch.len(), "content left the bucket");
        Ok(())
    }
}
