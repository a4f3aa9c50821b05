//! A fill: one blob on its way from upstream to the disk, read by any number of clients as it grows.

mod job;
mod places;

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;
use tracing::warn;

use crate::block_reader;
use crate::digest::Digest;
use crate::name::Repository;
use crate::pull::Failure;
use crate::store::{StageError, Store};
use crate::upstream::{BlobAnswer, Upstream};

pub(crate) use job::Job;
pub(crate) use places::{NoPlace, PlaceLimits, Places, Turn};

/// The end of every answer is held back until the digest of the whole has been checked: this many bytes.
pub(crate) const HELD_BACK: u64 = 256 * 1024;

/// How far a fill is.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// What happens now.
    pub(crate) phase: Phase,
    /// Bytes that can be read from the file.
    pub(crate) written: u64,
    /// The blob's size, where upstream told it.
    pub(crate) size: Option<u64>,
}

/// The stages of a fill, in order.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Upstream has not answered yet.
    Asking,
    /// Bytes come in.
    Filling,
    /// All is there and the digest matches; being made durable, or durable already.
    Verified,
    /// There is no room to keep it, or the cache is read-only: everybody fetches for themselves.
    NoRoom,
    /// It ended without success.
    Failed(Failure),
}

/// Bytes that were promised do not come: the connection to the client has to end short.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the answer was cut: {0}")]
pub(crate) struct Cut(pub(crate) String);

/// A fill as its readers see it.
pub(crate) struct Fill {
    progress: watch::Receiver<Progress>,
    file: Arc<OnceLock<Arc<File>>>,
    repositories: Arc<Mutex<Repositories>>,
    unused: Arc<Mutex<Option<BlobAnswer>>>,
}

/// The repositories that a fill links its blob to.
struct Repositories {
    all: Vec<Repository>,
    /// All of them have their links, and the job links no more.
    closed: bool,
}

/// Prepares the fill of a blob, of which `least` bytes had come when the room for it ran out the last time; its job has
/// to be run.
pub(crate) fn prepare(
    digest: &Digest,
    repository: &Repository,
    upstream: &Arc<Upstream>,
    store: &Store,
    least: u64,
) -> (Arc<Fill>, Job) {
    let start = Progress {
        phase: Phase::Asking,
        written: 0,
        size: None,
    };
    let (sender, progress) = watch::channel(start);
    let fill = Fill {
        progress,
        file: Arc::default(),
        repositories: Arc::new(Mutex::new(Repositories {
            all: vec![repository.clone()],
            closed: false,
        })),
        unused: Arc::default(),
    };
    let job = Job {
        digest: digest.clone(),
        repository: repository.clone(),
        upstream: Arc::clone(upstream),
        store: store.clone(),
        least,
        progress: sender,
        file: Arc::clone(&fill.file),
        repositories: Arc::clone(&fill.repositories),
        unused: Arc::clone(&fill.unused),
    };
    (Arc::new(fill), job)
}

impl Repositories {
    /// Returns those that are not among the `linked` ones; where there are none, none can join any more.
    fn without(&mut self, linked: &[Repository]) -> Vec<Repository> {
        let missing = self.all.iter().filter(|repository| !linked.contains(repository));
        let missing: Vec<_> = missing.cloned().collect();
        self.closed = missing.is_empty();
        missing
    }
}

impl Progress {
    /// Where reading has to stop for now.
    fn readable(&self) -> u64 {
        match (&self.phase, self.size) {
            (Phase::Verified, _) => self.written,
            (_, Some(size)) => self.written.min(size.saturating_sub(HELD_BACK)),
            (_, None) => self.written.saturating_sub(HELD_BACK),
        }
    }

    /// Whether a reader at this position has read all there is.
    pub(crate) fn is_whole(&self, position: u64) -> bool {
        matches!(self.phase, Phase::Verified) && position == self.written
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Verified | Phase::NoRoom | Phase::Failed(_))
    }
}

impl Fill {
    /// Has the job link the blob to a further repository, which upstream permitted; false where it ended before that.
    pub(crate) fn also_for(&self, repository: &Repository) -> bool {
        let mut repositories = lock(&self.repositories);
        if !repositories.closed && !repositories.all.contains(repository) {
            repositories.all.push(repository.clone());
        }
        !repositories.closed
    }

    /// Returns whether the blob is being fetched for this repository: upstream permitted it, or will, or won't.
    pub(crate) fn is_for(&self, repository: &Repository) -> bool {
        lock(&self.repositories).all.contains(repository)
    }

    /// Returns whether this repository may have the blob, which is there and right, though its link may not be there yet.
    pub(crate) fn is_verified_for(&self, repository: &Repository) -> bool {
        self.is_for(repository) && matches!(self.progress.borrow().phase, Phase::Verified)
    }

    /// Upstream's answer, where there was no room for it: the first reader streams it, the others ask again.
    pub(crate) fn take_answer(&self) -> Option<BlobAnswer> {
        lock(&self.unused).take()
    }

    /// Whether it ended without the blob.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.progress.borrow().phase, Phase::Failed(_))
    }

    /// How far it is now.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until an answer can begin: upstream answered, and a blob that fits in what is held back is verified.
    pub(crate) async fn begun(&self) -> Progress {
        self.wait(|progress| match progress.phase {
            Phase::Asking => false,
            Phase::Filling => progress
                .size
                .map_or(progress.written > HELD_BACK, |size| size > HELD_BACK),
            _ => true,
        })
        .await
    }

    /// Waits for the end: all is there and right, or nothing more will come.
    pub(crate) async fn ended(&self) -> Progress {
        self.wait(Progress::has_ended).await
    }

    /// Reads at the start of `range`, as soon as there is something: at most a block, never beyond the range.
    pub(crate) async fn read(&self, range: &Range<u64>) -> Result<Bytes, Cut> {
        let (file, there) = self.there(range).await?;
        read(file, &there).await
    }

    /// What there is at the start of `range`, as soon as there is something, and the file that has it.
    pub(crate) async fn there(&self, range: &Range<u64>) -> Result<(&Arc<File>, Range<u64>), Cut> {
        let progress = self.wait(|p| p.readable() > range.start || p.has_ended()).await;
        let end = progress.readable().min(range.end);
        if end <= range.start {
            return Err(Cut(why(&progress)));
        }
        let file = self
            .file
            .get()
            .ok_or_else(|| Cut("the fill has no file".into()))?;
        Ok((file, range.start..end))
    }

    async fn wait(&self, until: impl FnMut(&Progress) -> bool) -> Progress {
        let mut progress = self.progress.clone();
        match progress.wait_for(until).await {
            Ok(reached) => reached.clone(),
            Err(_) => given_up(self.progress()),
        }
    }
}

/// Links a blob to a repository that upstream permitted it to. A link that can't be written costs another question.
pub(crate) async fn link(store: &Store, repository: &Repository, digest: &Digest) {
    match store.link_blob(repository, digest).await {
        Ok(()) | Err(StageError::ReadOnly) => {}
        Err(error) => warn!(%repository, %digest, %error, "a blob could not be linked"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block, at most, of what is there.
pub(crate) async fn read(file: &Arc<File>, there: &Range<u64>) -> Result<Bytes, Cut> {
    let length = usize::try_from(there.end - there.start).unwrap_or(usize::MAX);
    block_reader::read(file, there.start, length)
        .await
        .map_err(|error| Cut(error.to_string()))
}

/// The job is gone without a word: whatever phase it was in, nothing more will come.
fn given_up(last: Progress) -> Progress {
    if last.has_ended() {
        return last;
    }
    Progress {
        phase: Phase::Failed(Failure::unavailable("the fetch was given up")),
        ..last
    }
}

fn why(progress: &Progress) -> String {
    match &progress.phase {
        Phase::Failed(failure) => failure.to_string(),
        phase => format!("nothing to read in phase {phase:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    const MIB: u64 = 1024 * 1024;

    #[test_case(Phase::Filling, MIB, Some(4 * MIB), MIB; "far from the end all that is written")]
    #[test_case(Phase::Filling, 4 * MIB, Some(4 * MIB), 4 * MIB - HELD_BACK; "the end is held back")]
    #[test_case(Phase::Filling, 100, Some(100), 0; "a small blob is held back whole")]
    #[test_case(Phase::Filling, MIB, None, MIB - HELD_BACK; "without a size any byte may be the end")]
    #[test_case(Phase::Verified, 4 * MIB, Some(4 * MIB), 4 * MIB; "verified")]
    fn readable(phase: Phase, written: u64, size: Option<u64>, expected: u64) {
        assert_eq!(Progress { phase, written, size }.readable(), expected);
    }
}
