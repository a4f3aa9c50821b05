//! A fill: one blob on its way from upstream to the disk, read by any number of clients as it grows.

mod batch;
pub(crate) mod inflight;
mod places;
mod task;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

use crate::block_reader;
use crate::digest::Digest;
use crate::metrics;
use crate::name::Repository;
use crate::origins::{FillSource, Origins};
use crate::pull_error::PullError;
use crate::store::{StageError, Store};
use crate::upstream::BlobAnswer;

pub(crate) use places::{NoPlace, PlaceLimits, RequestPlaces, Turn};
pub(crate) use task::FillTask;

/// The number of bytes at the end of a blob that are held back until the digest of the whole is verified.
pub(crate) const HELD_BACK: u64 = 256 * 1024;

/// The progress of a fill.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// The phase.
    pub(crate) phase: Phase,
    /// Bytes that can be read from the file.
    pub(crate) written: u64,
    /// The size of the blob, if the upstream announced it.
    pub(crate) size: Option<u64>,
}

/// The phases of a fill, in order.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// The upstream has not answered yet.
    Asking,
    /// Bytes arrive.
    Filling,
    /// All bytes arrived and the digest matches; the store commits the blob, or has done so.
    Verified,
    /// The cache has no space, or is read-only: each client fetches for itself, also the remainder of a blob that it has
    /// a part of.
    NoRoom,
    /// The fill failed.
    Failed(PullError),
}

/// A truncated response: announced bytes do not arrive, so the server must close the connection early.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the answer was cut: {0}")]
pub(crate) struct Cut(pub(crate) String);

/// A fill as its readers use it.
pub(crate) struct Fill {
    progress: watch::Receiver<Progress>,
    file: Arc<ArcSwapOption<File>>,
    repositories: Arc<Mutex<Repositories>>,
    unused: Arc<Mutex<Option<BlobAnswer>>>,
    source: Arc<FillSource>,
    started: Instant,
}

/// The repositories that a fill links its blob to.
struct Repositories {
    all: Vec<Repository>,
    /// All of them have their links, and the job links no more.
    closed: bool,
}

/// Prepares the fill of a blob, of which a manifest names the size, and `least` bytes had come when the room for it ran out
/// the last time; its job has to be run.
pub(crate) fn prepare(
    digest: &Digest,
    repository: &Repository,
    origins: &Origins,
    store: &Store,
    (named, least): (Option<u64>, u64),
) -> (Arc<Fill>, FillTask) {
    let start = Progress {
        phase: Phase::Asking,
        written: 0,
        size: None,
    };
    let (sender, progress) = watch::channel(start);
    let origins = origins.of_blob(&repository.name, digest);
    let fill = Fill {
        progress,
        file: Arc::default(),
        repositories: Arc::new(Mutex::new(Repositories {
            all: vec![repository.clone()],
            closed: false,
        })),
        unused: Arc::default(),
        source: origins.source(),
        started: Instant::now(),
    };
    let task = FillTask {
        digest: digest.clone(),
        repository: repository.clone(),
        origins,
        store: store.clone(),
        named,
        least,
        progress: sender,
        file: Arc::clone(&fill.file),
        repositories: Arc::clone(&fill.repositories),
        unused: Arc::clone(&fill.unused),
    };
    (Arc::new(fill), task)
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
    /// Returns the offset up to which bytes may be read now.
    fn readable(&self) -> u64 {
        match (&self.phase, self.size) {
            (Phase::Verified, _) => self.written,
            (_, Some(size)) => self.written.min(size.saturating_sub(HELD_BACK)),
            (_, None) => self.written.saturating_sub(HELD_BACK),
        }
    }

    /// Returns `true` if a reader at this position has read the whole blob.
    pub(crate) fn is_whole(&self, position: u64) -> bool {
        matches!(self.phase, Phase::Verified) && position == self.written
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Verified | Phase::NoRoom | Phase::Failed(_))
    }
}

impl Fill {
    /// Adds a repository that the upstream authorized to those that the task links; returns `false` if the task has
    /// ended.
    pub(crate) fn also_for(&self, repository: &Repository) -> bool {
        let mut repositories = self.repositories.lock();
        if !repositories.closed && !repositories.all.contains(repository) {
            repositories.all.push(repository.clone());
        }
        !repositories.closed
    }

    /// Returns whether the blob is being fetched for this repository: upstream permitted it, or will, or won't.
    pub(crate) fn is_for(&self, repository: &Repository) -> bool {
        self.repositories.lock().all.contains(repository)
    }

    /// Returns whether this repository may have the blob, which is there and right, though its link may not be there yet.
    pub(crate) fn is_verified_for(&self, repository: &Repository) -> bool {
        self.is_for(repository) && matches!(self.progress.borrow().phase, Phase::Verified)
    }

    /// Returns whether the fill waits for no owner among the replicas.
    pub(crate) fn is_direct(&self) -> bool {
        self.source.is_direct()
    }

    /// Records that another replica reads the fill; see [`FillSource::feed_replica`].
    pub(crate) fn feed_replica(&self) {
        self.source.feed_replica();
    }

    /// Returns the origin of the bytes.
    pub(crate) fn origin(&self) -> metrics::Source {
        self.source.origin()
    }

    /// Returns whether bytes of the blob are there already.
    pub(crate) fn has_bytes(&self) -> bool {
        let progress = self.progress.borrow();
        matches!(progress.phase, Phase::Filling | Phase::Verified) && progress.written > 0
    }

    /// Returns the time since the start, and a repository that the blob is fetched for.
    pub(crate) fn age(&self) -> (Duration, Option<Repository>) {
        let repository = self.repositories.lock().all.first().cloned();
        (self.started.elapsed(), repository)
    }

    /// Takes the response of the upstream that had no space in the cache: the first reader streams it, the others send
    /// their own requests.
    pub(crate) fn take_answer(&self) -> Option<BlobAnswer> {
        self.unused.lock().take()
    }

    /// Returns `true` if the fill failed.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.progress.borrow().phase, Phase::Failed(_))
    }

    /// Returns `true` if the cache had no room for the blob, or for the remainder of it.
    pub(crate) fn ran_out_of_room(&self) -> bool {
        matches!(self.progress.borrow().phase, Phase::NoRoom)
    }

    /// Returns the current progress.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until a response can start: the upstream answered, and a blob that fits into the held-back part is
    /// verified.
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

    /// Waits for the end of the fill.
    pub(crate) async fn ended(&self) -> Progress {
        self.wait(Progress::has_ended).await
    }

    /// Waits until the task has ended: a verified blob is committed and linked, or could not be kept.
    pub(crate) async fn settled(&self) {
        let mut progress = self.progress.clone();
        while progress.changed().await.is_ok() {}
    }

    /// Reads the first bytes of `range` once they are readable: at most a block, never beyond the range.
    pub(crate) async fn read(&self, range: &Range<u64>) -> Result<Bytes, Cut> {
        let (file, there) = self.there(range).await?;
        read(&file, &there).await
    }

    /// Waits until the start of `range` is readable. Returns the readable part, and its file.
    pub(crate) async fn there(&self, range: &Range<u64>) -> Result<(Arc<File>, Range<u64>), Cut> {
        let progress = self.wait(|p| p.readable() > range.start || p.has_ended()).await;
        let end = progress.readable().min(range.end);
        if end <= range.start {
            return Err(Cut(why(&progress)));
        }
        let file = self
            .file
            .load_full()
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

/// Reads at most a block of a readable range.
pub(crate) async fn read(file: &Arc<File>, there: &Range<u64>) -> Result<Bytes, Cut> {
    let length = usize::try_from(there.end - there.start).unwrap_or(usize::MAX);
    block_reader::read(file, there.start, length)
        .await
        .map_err(|error| Cut(error.to_string()))
}

/// Returns the final progress of a task that ended without reporting.
fn given_up(last: Progress) -> Progress {
    if last.has_ended() {
        return last;
    }
    Progress {
        phase: Phase::Failed(PullError::unavailable("the fetch was given up")),
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
