//! Data that the files cannot hold: the times at which content was fetched, used and verified, the links to it, and the
//! order of use.
//!
//! The files are authoritative, and an entry always precedes its file: a crash leaves entries without files (dropped
//! when a lookup finds them) and never files without entries.

mod apply;
mod query;
mod tables;

use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, StorageError, backends::FileBackend,
};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::store::blobs::is_damage;
use crate::store::durable::{IoError, on, remove};
use crate::store::no_links;
pub(super) use apply::{Added, Op};
use parking_lot::{Mutex, RwLock};
pub(super) use query::{IndexEntry, Order};
pub(crate) use tables::Link;
pub(super) use tables::digest_of;
#[cfg(any(test, fuzzing))]
pub(super) use tables::key_of;

/// The memory for cached pages of the index, in bytes.
const CACHE: usize = 16 << 20;

/// The index failed; it mends itself, by opening it again or by building a new one from the files.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the index of the cache failed: {reason}")]
pub struct IndexFailure {
    reason: String,
    full: bool,
    damaged: bool,
}

impl IndexFailure {
    /// True where room on the file system ran out.
    pub fn is_full(&self) -> bool {
        self.full
    }
}

impl From<IndexFailure> for std::io::Error {
    fn from(failure: IndexFailure) -> Self {
        if failure.full {
            Self::new(ErrorKind::StorageFull, failure)
        } else {
            Self::other(failure)
        }
    }
}

type Outcome = Arc<OnceLock<Result<Added, IndexFailure>>>;

/// The index, which one process has open.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    queue: Mutex<Vec<(Vec<Op>, Outcome)>>,
    writer: Mutex<()>,
    changes: AtomicU64,
    uses: AtomicU64,
    #[cfg(test)]
    reads: AtomicU64,
}

impl Index {
    /// Opens it, or begins a new one where it is missing or damaged.
    pub(super) fn open(path: &Path) -> Result<Self, IoError> {
        let database = match open_or_panic(path) {
            Ok(database) => database,
            // Not damage: what keeps us from opening it has to end.
            Err(failure) if !failure.damaged => {
                return Err(on("open", path)(failure.into()));
            }
            Err(failure) => {
                tracing::warn!(%failure, "the cache's index is damaged and is rebuilt from the files");
                create_database(path)?
            }
        };
        Ok(Self {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            queue: Mutex::default(),
            writer: Mutex::default(),
            changes: AtomicU64::new(0),
            uses: AtomicU64::new(0),
            #[cfg(test)]
            reads: AtomicU64::new(0),
        })
    }

    /// Writes; what several threads write at once becomes one transaction with one sync.
    pub(super) fn write(&self, ops: Vec<Op>) -> Result<Added, IndexFailure> {
        if ops.is_empty() {
            return Ok(Added::default());
        }
        let outcome = Outcome::default();
        self.queue.lock().push((ops, outcome.clone()));
        let writer = self.writer.lock();
        // The previous writer may have written this batch too.
        if outcome.get().is_none() {
            self.write_queue();
        }
        drop(writer);
        outcome.get().cloned().unwrap_or(Ok(Added::default()))
    }

    /// Counts the transactions that changed what expires when: of content and links, and of uses.
    pub(super) fn changes(&self) -> (u64, u64) {
        (
            self.changes.load(Ordering::Acquire),
            self.uses.load(Ordering::Acquire),
        )
    }

    /// Counts the reads.
    #[cfg(test)]
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn write_queue(&self) {
        let batch = std::mem::take(&mut *self.queue.lock());
        let result = self.commit(&batch).or_else(|failure| {
            // It was opened again by now; and where the disk was full, content may just have gone.
            tracing::debug!(%failure, "a change of the index is tried again");
            self.commit(&batch)
        });
        for (number, (_, outcome)) in batch.iter().enumerate() {
            let own = result
                .as_ref()
                .map(|added| added.get(number).copied().unwrap_or_default());
            // Set once, by this writer only.
            let _ = outcome.set(own.map_err(Clone::clone));
        }
    }

    fn commit(&self, batch: &[(Vec<Op>, Outcome)]) -> Result<Vec<Added>, IndexFailure> {
        let ops = || batch.iter().flat_map(|(ops, _)| ops);
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            if !ops().any(Op::must_last) {
                transaction.set_durability(Durability::None)?;
            }
            let added = batch
                .iter()
                .map(|(ops, _)| apply::apply(&transaction, ops))
                .collect::<Result<Vec<_>, _>>()?;
            transaction.commit()?;
            if ops().any(Op::moves_expiry) {
                self.changes.fetch_add(1, Ordering::Release);
            }
            if ops().any(|op| matches!(op, Op::Use(..))) {
                self.uses.fetch_add(1, Ordering::Release);
            }
            Ok(added)
        })
    }

    fn read<T>(
        &self,
        query: impl FnOnce(ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, IndexFailure> {
        #[cfg(test)]
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.with(|database| query(database.begin_read()?))
    }

    /// Runs against the database. A failure or a panic (a damaged page) closes it; the next call opens it again, or
    /// starts an empty one.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, IndexFailure> {
        let guard = self.database.read();
        let Some(database) = guard.as_ref() else {
            drop(guard);
            self.reopen();
            return Err(IndexFailure {
                reason: "it was closed after a failure".to_owned(),
                full: false,
                damaged: false,
            });
        };
        let done = catch_unwind(AssertUnwindSafe(|| work(database)));
        drop(guard);
        let failure = match done {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => describe(&error),
            Err(_) => panicked(),
        };
        self.close(failure.damaged);
        Err(failure)
    }

    fn close(&self, damaged: bool) {
        let closed = self.database.write().take();
        if catch_unwind(AssertUnwindSafe(move || drop(closed))).is_err() || damaged {
            // The next start, or call, creates an empty one.
            let _ = remove(&self.path);
        }
        self.reopen();
    }

    fn reopen(&self) {
        let mut database = self.database.write();
        if database.is_none() {
            *database = open_or_panic(&self.path).ok();
        }
    }
}

fn open_or_panic(path: &Path) -> Result<Database, IndexFailure> {
    let open = || -> Result<Database, redb::Error> {
        let file = FileBackend::new(open_file(path)?)?;
        let database = Builder::new().set_cache_size(CACHE).create_with_backend(file)?;
        tables::check(&database)?;
        Ok(database)
    };
    match catch_unwind(open) {
        Ok(opened) => opened.map_err(|error| describe(&error)),
        Err(_) => Err(panicked()),
    }
}

/// Opens the file of the index; anything else in its place is damage.
fn open_file(path: &Path) -> std::io::Result<File> {
    let file = no_links::open(path, OFlags::RDWR | OFlags::CREATE);
    let damage = || {
        std::io::Error::new(
            ErrorKind::InvalidData,
            "something else is in the place of the file",
        )
    };
    match file {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(damage()),
        // The latter is a socket.
        Err(error) if is_damage(&error) || Errno::from_io_error(&error) == Some(Errno::NXIO) => Err(damage()),
        Err(error) => Err(error),
    }
}

fn create_database(path: &Path) -> Result<Database, IoError> {
    remove(path)?;
    open_or_panic(path).map_err(|failure| on("open", path)(failure.into()))
}

fn describe(error: &redb::Error) -> IndexFailure {
    let kind = match error {
        redb::Error::Io(io) => Some(io.kind()),
        _ => None,
    };
    IndexFailure {
        reason: error.to_string(),
        full: matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)),
        damaged: matches!(kind, Some(ErrorKind::InvalidData | ErrorKind::UnexpectedEof))
            || matches!(error, redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_)),
    }
}

fn panicked() -> IndexFailure {
    IndexFailure {
        reason: StorageError::Corrupted("a damaged page".to_owned()).to_string(),
        full: false,
        damaged: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::digest::{Algorithm, Digest};
    use crate::name::Repository;

    fn digest(number: u64) -> Digest {
        Digest::compute(Algorithm::Sha256, &number.to_le_bytes())
    }

    fn admit(number: u64) -> Op {
        Op::Admit {
            digest: digest(number),
            size: 10,
            now: i64::try_from(number).unwrap(),
        }
    }

    fn filled(path: &Path, count: u64) -> Index {
        let index = Index::open(path).unwrap();
        index.write((0..count).map(admit).collect()).unwrap();
        index
    }

    /// The index keeps what was written when the process is killed.
    #[test]
    fn written_index_survives_a_kill() {
        let root = tempfile::tempdir().unwrap();
        let index = filled(&root.path().join("index"), 1000);
        index.write(vec![Op::Remove(digest(0))]).unwrap();
        // The file of an open index has the content that a killed process leaves.
        let copy = root.path().join("copy");
        fs::copy(root.path().join("index"), &copy).unwrap();
        let again = Index::open(&copy).unwrap();
        let (bytes, blobs) = again.totals().unwrap();
        assert!(
            blobs >= 999 && bytes == blobs * 10,
            "{bytes} bytes, {blobs} blobs"
        );
        assert_eq!(again.get(&digest(7)).unwrap().unwrap().used, 7);
    }

    /// The index returns the oldest entries in order, page by page.
    #[test]
    fn oldest_entries_come_in_order_by_page() {
        let root = tempfile::tempdir().unwrap();
        let index = filled(&root.path().join("index"), 10);
        index
            .write(vec![Op::Use(digest(0), 100), Op::Use(digest(3), 2)])
            .unwrap();
        let first = index.oldest(Order::Use, None, 4).unwrap();
        let then = index.oldest(Order::Use, first.last(), 100).unwrap();
        let times: Vec<_> = first.iter().chain(&then).map(|(time, _)| *time).collect();
        assert_eq!(times, [1, 2, 3, 4, 5, 6, 7, 8, 9, 100]);
        let fetched = index.oldest(Order::Fetch, None, 1).unwrap();
        assert_eq!(fetched, [(0, digest(0))]);
    }

    #[test]
    fn every_change_may_be_applied_twice() {
        let root = tempfile::tempdir().unwrap();
        let index = filled(&root.path().join("index"), 2);
        index.write(vec![admit(1), admit(1)]).unwrap();
        assert_eq!(index.totals().unwrap(), (20, 2));
        index
            .write(vec![Op::Remove(digest(1)), Op::Remove(digest(1))])
            .unwrap();
        assert_eq!(index.totals().unwrap(), (10, 1));
    }

    /// The index removes the links of content with it, and no other link.
    #[test]
    fn links_are_removed_with_their_content() {
        let root = tempfile::tempdir().unwrap();
        let index = filled(&root.path().join("index"), 2);
        let repository = Repository {
            host: "docker.io".parse().unwrap(),
            name: "a/b".parse().unwrap(),
        };
        let links = [
            Link::Layer(repository.clone(), digest(0)),
            Link::Revision(repository.clone(), digest(0)),
            Link::Tag(repository, "latest".parse().unwrap()),
        ];
        for number in 0..2 {
            let ops = links.iter().map(|link| Op::Link(digest(number), link.clone()));
            index.write(ops.collect()).unwrap();
        }
        assert_eq!(index.links(&digest(0)).unwrap(), links);
        index.write(vec![Op::Remove(digest(0))]).unwrap();
        assert_eq!(index.links(&digest(0)).unwrap(), []);
        assert_eq!(index.links(&digest(1)).unwrap(), links);
    }

    /// Each of several concurrent writers sees its own change.
    #[test]
    fn concurrent_writers_get_their_outcome() {
        let root = tempfile::tempdir().unwrap();
        let index = filled(&root.path().join("index"), 0);
        std::thread::scope(|scope| {
            for number in 0..16 {
                let index = &index;
                scope.spawn(move || {
                    let found = Op::Discover {
                        digest: digest(number / 2),
                        size: 10,
                        now: 1,
                    };
                    index.write(vec![found]).unwrap();
                    assert!(index.get(&digest(number / 2)).unwrap().is_some());
                });
            }
        });
        assert_eq!(index.totals().unwrap(), (80, 8));
    }

    /// Opening an index that is in use fails and leaves it unchanged.
    #[test]
    fn index_in_use_is_an_error_and_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("index");
        let index = filled(&path, 1);
        assert!(Index::open(&path).is_err());
        drop(index);
        assert_eq!(Index::open(&path).unwrap().totals().unwrap(), (10, 1));
    }
}
