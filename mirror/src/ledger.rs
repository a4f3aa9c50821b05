//! The ledger of the bucket: size, last use and links of the content that mirrors uploaded, which their owner evicts.
//!
//! The content is in 256 shards, by the first byte of the digest; each has one owner among the replicas. The owner has the
//! shard in memory, and writes it to `_mirror/v1/ledger/` now and then. A lost ledger costs accuracy and never content:
//! what it does not know is not deleted, and what was deleted is a miss.

mod document;
mod entry;
mod evict;
mod exchange;
mod journal;
mod load;
mod pins;
mod policy;
mod save;
mod table;
mod task;
mod uses;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, Receiver};

use crate::bucket::{Bucket, ObjectError, Uploader};
use crate::clock::Clock;
use crate::config::Globs;
use crate::metrics::Metrics;
use crate::peers::{self, Fleet};
use crate::store::{self, BucketUpload, Store};
use journal::Journal;
use pins::BucketPins;
use table::ShardTable;
use uses::UseQueue;

/// The number of shards.
const SHARDS: u16 = 256;
/// The uploads that wait for the task.
const MAX_UPLOADS: usize = 1_024;
/// The batches of uses that wait for the task.
const MAX_USES: usize = 16;

/// The reason why the ledger did not take a step.
#[derive(Debug, thiserror::Error)]
enum LedgerError {
    /// The bucket refused or did not answer.
    #[error(transparent)]
    Bucket(#[from] ObjectError),
    /// The cache failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The content of the shards that this server owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LedgerTotals {
    /// Pieces of content.
    pub(crate) objects: u64,
    /// Their size in bytes.
    pub(crate) bytes: u64,
    /// The oldest last use, in ms since 1970; eviction begins there.
    pub(crate) oldest_use: Option<i64>,
}

/// The ledger, as the server's parts share it.
#[derive(Clone)]
pub(crate) struct Ledger {
    shared: Arc<Shared>,
    /// Taken by the task.
    uploads: Arc<Mutex<Option<Receiver<BucketUpload>>>>,
}

/// The state of the task.
struct Shared {
    bucket: Arc<Bucket>,
    store: Store,
    /// The other replicas, if there are any.
    fleet: Option<Arc<Fleet>>,
    clock: Clock,
    metrics: Metrics,
    /// The random id of this process.
    writer: String,
    /// The shards that are in memory.
    slots: Vec<Mutex<Option<ShardTable>>>,
    uses: UseQueue,
    /// The uploads and uses that the owners of other shards ask for.
    journal: Mutex<Journal>,
    /// The patterns of pinned content.
    patterns: Mutex<Globs>,
    /// The content that they pin by what this server has in memory.
    pins: tokio::sync::Mutex<BucketPins>,
    totals: Mutex<Option<LedgerTotals>>,
}

impl Ledger {
    /// Creates the ledger of a bucket with a limit.
    pub(crate) fn new(
        uploader: &Uploader,
        store: Store,
        fleet: Option<Arc<Fleet>>,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let (upload_sender, uploads) = mpsc::channel(MAX_UPLOADS);
        let (use_sender, uses) = mpsc::channel(MAX_USES);
        uploader.listen(upload_sender);
        store.listen_uses(use_sender);
        let shared = Shared {
            bucket: uploader.bucket(),
            store,
            fleet,
            clock,
            metrics,
            writer: peers::random_id(),
            slots: (0..SHARDS).map(|_| Mutex::default()).collect(),
            uses: UseQueue::new(uses),
            journal: Mutex::default(),
            patterns: Mutex::default(),
            pins: tokio::sync::Mutex::default(),
            totals: Mutex::default(),
        };
        let shared = Arc::new(shared);
        if let Some(fleet) = &shared.fleet {
            fleet.add_source(exchange::source(&shared));
        }
        Self {
            shared,
            uploads: Arc::new(Mutex::new(Some(uploads))),
        }
    }

    /// Returns the totals of the shards that this server owns; `None` while it reads them.
    pub(crate) fn totals(&self) -> Option<LedgerTotals> {
        let mut totals = (*self.shared.totals.lock())?;
        totals.oldest_use = self.shared.oldest_use();
        Some(totals)
    }
}

impl Shared {
    fn now(&self) -> i64 {
        self.clock.now().as_millisecond()
    }

    /// Returns the oldest last use of content in memory, in ms since 1970.
    fn oldest_use(&self) -> Option<i64> {
        let oldest = |slot: &Mutex<Option<ShardTable>>| {
            let slot = slot.lock();
            slot.as_ref()?.iter().map(|(_, entry)| entry.used).min()
        };
        self.slots.iter().filter_map(oldest).min()
    }

    fn slot(&self, shard: u8) -> &Mutex<Option<ShardTable>> {
        &self.slots[usize::from(shard)]
    }

    fn is_loaded(&self, shard: u8) -> bool {
        self.slot(shard).lock().is_some()
    }

    /// Computes the totals of these shards; `None` if one is not in memory.
    fn count(&self, shards: &[u8]) -> Option<LedgerTotals> {
        let mut totals = LedgerTotals::default();
        for shard in shards {
            let slot = self.slot(*shard).lock();
            let table = slot.as_ref()?;
            totals.objects += table.len();
            totals.bytes = totals.bytes.saturating_add(table.bytes());
        }
        Some(totals)
    }
}
