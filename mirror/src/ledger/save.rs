//! Writing a shard to the bucket.

use std::time::Duration;

use futures::FutureExt as _;

use super::document::{self, MAX_LEDGER};
use super::table::ShardTable;
use super::task::some_at_once;
use super::{LedgerError, Shared};

/// The time from one write of a shard that changes to the next.
const INTERVAL: Duration = Duration::from_mins(15);

impl Shared {
    /// Writes the shards that changed and were not written for a while.
    pub(super) async fn save_due(&self, shards: &[u8]) -> Result<(), LedgerError> {
        let is_due = |shard: &&u8| {
            let slot = self.slot(**shard).lock();
            slot.as_ref()
                .is_some_and(|table| table.is_changed() && table.saved.elapsed() >= INTERVAL)
        };
        let due: Vec<_> = shards.iter().filter(is_due).copied().collect();
        self.save_all(&due).await
    }

    /// Writes the shards that changed.
    pub(super) async fn save_all(&self, shards: &[u8]) -> Result<(), LedgerError> {
        let changed = shards.iter().filter(|shard| {
            let slot = self.slot(**shard).lock();
            slot.as_ref().is_some_and(ShardTable::is_changed)
        });
        some_at_once(changed.map(|shard| self.save(*shard).boxed()).collect()).await
    }

    /// Writes a shard, with what another server wrote there since: servers that do not know each other may share a bucket.
    async fn save(&self, shard: u8) -> Result<(), LedgerError> {
        let found = self.bucket.ledger(shard, MAX_LEDGER).await?;
        let other = found
            .and_then(|text| document::decode(&text, shard).ok())
            .filter(|other| other.writer != self.writer);
        let now = self.now();
        let (text, changes) = {
            let mut slot = self.slot(shard).lock();
            let Some(table) = slot.as_mut() else { return Ok(()) };
            if let Some(other) = other.filter(|other| other.written > table.written) {
                for (digest, entry) in other.entries {
                    table.merge(digest, entry);
                }
            }
            (document::encode(table, &self.writer, now), table.changes())
        };
        self.bucket.put_ledger(shard, text).await?;
        if let Some(table) = self.slot(shard).lock().as_mut() {
            table.set_saved(changes, now);
        }
        Ok(())
    }
}
