//! Scrubbing: content that is used, and was not verified for long, is hashed again in the background.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio_util::sync::CancellationToken;

use crate::digest::{Digest, Hasher};
use crate::store::index::Op;
use crate::store::{Error, Inner, Store, durable, no_links};
use parking_lot::{Mutex, MutexGuard};

/// The maximum length of the queue; the next use queues the rest.
const MAX_QUEUE: usize = 1024;
/// The number of bytes per read.
const CHUNK: usize = 1 << 20;
/// The pause after each chunk: at most 32 MiB a second, which leaves the disk to clients.
const PAUSE: Duration = Duration::from_millis(31);
/// `RWF_DONTCACHE` (Linux 6.14): what was not in the page cache does not stay there.
const UNCACHED: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A queue of content that is due for hashing.
#[derive(Debug, Default)]
pub(super) struct ScrubQueue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    period: Option<Duration>,
    waiting: HashSet<Digest>,
}

impl ScrubQueue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    fn next(&self) -> Option<Digest> {
        let mut state = self.state();
        let digest = state.waiting.iter().next()?.clone();
        state.waiting.take(&digest)
    }
}

impl Store {
    /// Sets the age after which content is hashed again when it is used; `None`: never. Content that
    /// another registry left is hashed before its first use.
    pub fn set_scrub_period(&self, period: Option<Duration>) {
        let mut state = self.inner.maintenance.scrub_queue.state();
        state.period = period;
        if period.is_none() {
            state.waiting.clear();
        }
    }

    /// Hashes the content that [`flush`](Self::flush) queued, one piece at a time and slowly, and drops what is
    /// damaged. Returns the number of damaged pieces.
    pub async fn scrub(&self, shutdown: &CancellationToken) -> Result<u64, Error> {
        let mut damaged = 0;
        while let Some(digest) = self.inner.maintenance.scrub_queue.next() {
            let stop = shutdown.clone();
            damaged += u64::from(self.blocking(move |inner| inner.scrub(&digest, &stop)).await?);
        }
        Ok(damaged)
    }
}

impl Inner {
    /// Queues the used content that is due.
    pub(super) fn queue_for_scrub(&self, used: Vec<Digest>) -> Result<(), Error> {
        let Some(period) = self.maintenance.scrub_queue.state().period else {
            return Ok(());
        };
        let period = i64::try_from(period.as_millis()).unwrap_or(i64::MAX);
        let due = self.clock.now().as_millisecond().saturating_sub(period);
        for digest in used {
            if self.index.get(&digest)?.is_some_and(|entry| entry.verified < due) {
                let mut state = self.maintenance.scrub_queue.state();
                if state.waiting.len() < MAX_QUEUE {
                    state.waiting.insert(digest);
                }
            }
        }
        Ok(())
    }

    /// Hashes content and drops it if it is damaged. Returns `true` in that case.
    fn scrub(&self, digest: &Digest, stop: &CancellationToken) -> Result<bool, Error> {
        let path = self.layout.blob_data(digest);
        let Ok(file) = durable::open(&path) else {
            return Ok(false);
        };
        match hash(&file, digest, ScrubRate::Slow, || stop.is_cancelled()) {
            Ok(None) => return Ok(false),
            Ok(Some(found)) if found == *digest => {
                let now = self.clock.now().as_millisecond();
                self.index.write(vec![Op::Verified(digest.clone(), now)])?;
                return Ok(false);
            }
            Ok(Some(_)) => tracing::warn!(%digest, "damaged content dropped: it has another digest"),
            Err(error) => tracing::warn!(%digest, %error, "damaged content dropped: it can't be read"),
        }
        self.remove_unless(digest, || !no_links::is_same_file(&path, &file))?;
        Ok(true)
    }
}

/// The speed of a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScrubRate {
    /// A client waits; what is read stays in the page cache, as it is served next.
    Full,
    /// Clients go first: at most 32 MiB a second.
    Slow,
}

/// Returns the digest of a file, by the algorithm of `digest`; `None` once `is_stopped` is `true`.
pub(super) fn hash(
    file: &File,
    digest: &Digest,
    pace: ScrubRate,
    is_stopped: impl Fn() -> bool,
) -> io::Result<Option<Digest>> {
    let (mut hasher, mut chunk, mut at) = (Hasher::new(digest.algorithm()), vec![0; CHUNK], 0);
    while !is_stopped() {
        let read = match pace {
            ScrubRate::Full => file.read_at(&mut chunk, at)?,
            ScrubRate::Slow => read_uncached(file, &mut chunk, at)?,
        };
        if read == 0 {
            return Ok(Some(hasher.finish()));
        }
        hasher.update(chunk.get(..read).unwrap_or_default());
        at += read as u64;
        if pace == ScrubRate::Slow {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(None)
}

fn read_uncached(file: &File, chunk: &mut [u8], at: u64) -> io::Result<usize> {
    let read = |flags, chunk: &mut [u8]| preadv2(file, &mut [IoSliceMut::new(chunk)], at, flags);
    match read(UNCACHED, chunk) {
        // An older kernel, or a file system that can't.
        Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(read(ReadWriteFlags::empty(), chunk)?),
        done => Ok(done?),
    }
}
