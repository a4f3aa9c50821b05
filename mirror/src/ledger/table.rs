//! The content of one shard in memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Instant;

use super::entry::LedgerEntry;
use crate::digest::Digest;

/// The most memory of the entries of a shard, in bytes. Content beyond it is neither counted nor evicted.
pub(crate) const MAX_SHARD_MEMORY: usize = 1 << 20;

/// The entries of one shard, with their totals.
#[derive(Clone, Debug)]
pub(super) struct ShardTable {
    entries: HashMap<Digest, LedgerEntry>,
    bytes: u64,
    memory: usize,
    /// The number of changes.
    changes: u64,
    /// The number of changes that the object in the bucket has.
    saved_changes: u64,
    /// The time of the object in the bucket, in ms since 1970.
    pub(super) written: i64,
    /// The time since which the object is as old as it is: of its write, or of the read.
    pub(super) saved: Instant,
}

impl Default for ShardTable {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            bytes: 0,
            memory: 0,
            changes: 0,
            saved_changes: 0,
            written: 0,
            saved: Instant::now(),
        }
    }
}

impl ShardTable {
    /// Returns the number of pieces of content.
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Returns the size of the content in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the number of changes, for [`ShardTable::set_saved`].
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Returns whether it differs from the object in the bucket.
    pub(super) fn is_changed(&self) -> bool {
        self.changes != self.saved_changes
    }

    /// Records that the object in the bucket has so many of the changes, since a time in ms since 1970.
    pub(super) fn set_saved(&mut self, changes: u64, written: i64) {
        self.saved_changes = changes;
        self.written = written;
        self.saved = Instant::now();
    }

    /// Returns the entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, &LedgerEntry)> {
        self.entries.iter()
    }

    /// Returns an entry.
    pub(super) fn get(&self, digest: &Digest) -> Option<&LedgerEntry> {
        self.entries.get(digest)
    }

    /// Adds content, or what is new of it. Returns `false` if there is no room for it.
    pub(super) fn merge(&mut self, digest: Digest, entry: LedgerEntry) -> bool {
        match self.entries.entry(digest) {
            Entry::Occupied(mut known) => {
                let before = known.get().clone();
                known.get_mut().merge(&entry);
                if *known.get() != before {
                    // The limit of links bounds what an entry grows by.
                    self.memory = self.memory - before.memory() + known.get().memory();
                    self.changes += 1;
                }
                true
            }
            Entry::Vacant(vacant) => {
                if self.memory + entry.memory() > MAX_SHARD_MEMORY {
                    return false;
                }
                self.memory += entry.memory();
                self.bytes = self.bytes.saturating_add(entry.size);
                self.changes += 1;
                vacant.insert(entry);
                true
            }
        }
    }

    /// Records a use; content that the ledger does not know stays unknown.
    pub(super) fn on_use(&mut self, digest: &Digest, used: i64) {
        if let Some(entry) = self.entries.get_mut(digest)
            && entry.used < used
        {
            entry.used = used;
            self.changes += 1;
        }
    }

    /// Removes content.
    pub(super) fn remove(&mut self, digest: &Digest) -> Option<LedgerEntry> {
        let entry = self.entries.remove(digest)?;
        self.memory -= entry.memory();
        self.bytes -= entry.size.min(self.bytes);
        self.changes += 1;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn digest(number: u64) -> Digest {
        Digest::compute(Algorithm::Sha256, &number.to_le_bytes())
    }

    /// A shard takes no more memory than its limit, however much content it is given.
    #[test]
    fn shard_memory_is_bounded() {
        let mut table = ShardTable::default();
        let accepted = (0..20_000).filter(|n| table.merge(digest(*n), LedgerEntry::new(1, 1, 1)));
        let accepted = accepted.count() as u64;
        assert!(table.memory <= MAX_SHARD_MEMORY);
        assert_eq!((table.len(), table.bytes()), (accepted, accepted));
        assert!((4_000..20_000).contains(&accepted), "{accepted}");
    }

    /// Totals follow merges and removals; the latest use counts.
    #[test]
    fn totals_follow_changes() {
        let mut table = ShardTable::default();
        table.merge(digest(1), LedgerEntry::new(10, 5, 1));
        table.merge(digest(1), LedgerEntry::new(10, 3, 1));
        table.merge(digest(2), LedgerEntry::new(7, 1, 1));
        assert_eq!((table.len(), table.bytes()), (2, 17));
        assert_eq!(table.get(&digest(1)).unwrap().used, 5);
        table.on_use(&digest(1), 9);
        table.on_use(&digest(3), 9);
        assert_eq!(table.get(&digest(1)).unwrap().used, 9);
        assert!(table.remove(&digest(1)).is_some() && table.remove(&digest(1)).is_none());
        assert_eq!((table.len(), table.bytes()), (1, 7));
        table.remove(&digest(2));
        assert_eq!((table.bytes(), table.memory), (0, 0));
    }
}
