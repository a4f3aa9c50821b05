//! Reading a shard: its object, and what the index knows that the object lacks.

use super::document::{self, LedgerDocument, MAX_LEDGER};
use super::entry::LedgerEntry;
use super::table::{MAX_SHARD_MEMORY, ShardTable};
use super::{LedgerError, Shared};

/// The time that clocks may differ by and an upload may take to be recorded, in ms.
pub(super) const SLACK_MS: i64 = 120_000;
/// The most pieces of content that the index or a listing adds to a shard: more have no room in memory.
pub(super) const MOST: usize = MAX_SHARD_MEMORY / 192;

impl Shared {
    /// Reads a shard into memory.
    pub(super) async fn load(&self, shard: u8) -> Result<(), LedgerError> {
        let mut table = ShardTable::default();
        let document = self.read_document(shard).await?;
        for (digest, entry) in document.entries {
            table.merge(digest, entry);
        }
        // What was listed in place of a damaged object has to be written.
        if document.written > 0 {
            table.set_saved(table.changes(), document.written);
        }
        let since = document.written.saturating_sub(SLACK_MS);
        for upload in self.store.own_uploads(shard, MOST).await? {
            // An older upload that the object lacks was evicted.
            if upload.uploaded >= since || table.get(&upload.digest).is_some() {
                table.merge(upload.digest.clone(), LedgerEntry::from(&upload));
            }
        }
        for (digest, entry) in self.shard_of_members(shard, since).await {
            table.merge(digest, entry);
        }
        // Uses that the previous owner may not have got.
        for (digest, used) in self.journal.lock().uses_of(shard) {
            table.on_use(&digest, used);
        }
        *self.slot(shard).lock() = Some(table);
        Ok(())
    }

    /// Returns the object of a shard. One that is damaged is replaced by a listing of the shard, which finds content by
    /// the attribute that mirrors give it.
    async fn read_document(&self, shard: u8) -> Result<LedgerDocument, LedgerError> {
        let Some(text) = self.bucket.ledger(shard, MAX_LEDGER).await? else {
            return Ok(LedgerDocument::default());
        };
        if let Ok(document) = document::decode(&text, shard) {
            return Ok(document);
        }
        tracing::warn!(shard, "the ledger of the bucket is damaged: this shard is listed");
        let listed = self.bucket.list_own(shard, MOST).await?.into_iter();
        let entries = listed.map(|found| {
            let entry = LedgerEntry::new(found.size, found.modified, found.modified);
            (found.digest, entry)
        });
        Ok(LedgerDocument {
            entries: entries.collect(),
            ..LedgerDocument::default()
        })
    }
}
