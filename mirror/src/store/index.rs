//! What the files can't tell: when content was fetched, used, verified, what leads to it, and in which
//! order it was used.
//!
//! The files are the truth, and an entry always precedes its file, so a crash leaves entries without
//! files (found and dropped when they are met) and never files without entries.

mod apply;
mod query;
mod tables;

use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use redb::{Builder, Database, Durability, ReadTransaction, ReadableDatabase, StorageError};

use crate::store::durable::{IoError, on};
use crate::store::hits::lock;
pub(super) use apply::{Added, Op};
pub(super) use query::{Entry, Order};
pub(super) use tables::Link;

/// What the index may hold of itself in memory.
const CACHE: usize = 16 << 20;

/// The index failed; it mends itself, by opening it again or by building a new one from the files.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the index of the cache failed: {reason}")]
pub struct Failure {
    reason: String,
    full: bool,
}

impl Failure {
    /// True where room on the file system ran out.
    pub fn is_full(&self) -> bool {
        self.full
    }
}

type Outcome = Arc<OnceLock<Result<Added, Failure>>>;

/// The index, which one process has open.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    queue: Mutex<Vec<(Vec<Op>, Outcome)>>,
    writer: Mutex<()>,
    changes: AtomicU64,
}

impl Index {
    /// Opens it, or begins a new one where it is missing or damaged.
    pub(super) fn open(path: &Path) -> Result<Self, IoError> {
        let database = match open_or_panic(path) {
            Ok(database) => database,
            Err(failure) => {
                tracing::warn!(%failure, "the cache's index is damaged and is rebuilt from the files");
                begin_anew(path)?
            }
        };
        Ok(Self {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            queue: Mutex::default(),
            writer: Mutex::default(),
            changes: AtomicU64::new(0),
        })
    }

    /// Writes; what several threads write at once becomes one transaction with one sync.
    pub(super) fn write(&self, ops: Vec<Op>) -> Result<Added, Failure> {
        if ops.is_empty() {
            return Ok(Added::default());
        }
        let outcome = Outcome::default();
        lock(&self.queue).push((ops, outcome.clone()));
        let writer = lock(&self.writer);
        // Whoever held the writer before may have taken ours along.
        if outcome.get().is_none() {
            self.write_queue();
        }
        drop(writer);
        outcome.get().cloned().unwrap_or(Ok(Added::default()))
    }

    /// Counts the transactions that changed what expires when.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn write_queue(&self) {
        let batch = std::mem::take(&mut *lock(&self.queue));
        let result = self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            if !batch.iter().flat_map(|(ops, _)| ops).any(Op::must_last) {
                transaction.set_durability(Durability::None)?;
            }
            let added = batch
                .iter()
                .map(|(ops, _)| apply::apply(&transaction, ops))
                .collect::<Result<Vec<_>, _>>()?;
            transaction.commit()?;
            if batch.iter().flat_map(|(ops, _)| ops).any(Op::moves_expiry) {
                self.changes.fetch_add(1, Ordering::Release);
            }
            Ok(added)
        });
        for (number, (_, outcome)) in batch.iter().enumerate() {
            let own = result
                .as_ref()
                .map(|added| added.get(number).copied().unwrap_or_default());
            // Set once: nobody else knows this outcome.
            let _ = outcome.set(own.map_err(Clone::clone));
        }
    }

    fn read<T>(&self, query: impl FnOnce(ReadTransaction) -> Result<T, redb::Error>) -> Result<T, Failure> {
        self.with(|database| query(database.begin_read()?))
    }

    /// Runs against the database. A failure or a panic (a damaged page) closes it; it is opened again,
    /// or begun anew, by the next call.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, Failure> {
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            drop(guard);
            self.reopen();
            return Err(Failure {
                reason: "it was closed after a failure".to_owned(),
                full: false,
            });
        };
        let done = catch_unwind(AssertUnwindSafe(|| work(database)));
        drop(guard);
        let (failure, damaged) = match done {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => (describe(&error), matches!(error, redb::Error::Corrupted(_))),
            Err(_) => (panicked(), true),
        };
        self.close(damaged);
        Err(failure)
    }

    fn close(&self, damaged: bool) {
        let closed = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if catch_unwind(AssertUnwindSafe(move || drop(closed))).is_err() || damaged {
            // The next start, or call, begins anew.
            let _ = fs::remove_file(&self.path);
        }
        self.reopen();
    }

    fn reopen(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = open_or_panic(&self.path).ok();
        }
    }
}

fn open_or_panic(path: &Path) -> Result<Database, Failure> {
    let open = || -> Result<Database, redb::Error> {
        let database = Builder::new().set_cache_size(CACHE).create(path)?;
        tables::check(&database)?;
        Ok(database)
    };
    match catch_unwind(open) {
        Ok(opened) => opened.map_err(|error| describe(&error)),
        Err(_) => Err(panicked()),
    }
}

fn begin_anew(path: &Path) -> Result<Database, IoError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(on("remove", path)(error)),
        _ => {}
    }
    open_or_panic(path).map_err(|failure| on("open", path)(std::io::Error::other(failure)))
}

fn describe(error: &redb::Error) -> Failure {
    Failure {
        reason: error.to_string(),
        full: matches!(error, redb::Error::Io(io) if matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)),
    }
}

fn panicked() -> Failure {
    Failure {
        reason: StorageError::Corrupted("a damaged page".to_owned()).to_string(),
        full: false,
    }
}
