//! Maintenance in the background: recorded uses reach the disk, old content expires, the index is rebuilt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::config::{Globs, TtlFrom};
use crate::store::durable::on;
use crate::store::first_use::FirstUseVerifications;
use crate::store::index::{IndexEntry, Link, Op, Order};
use crate::store::pins::Pins;
use crate::store::scheduler_state::{self, ContentKind};
use crate::store::scrub::ScrubQueue;
use crate::store::{Error, Inner, Store, rebuild};
use parking_lot::Mutex;

/// Distribution's expiries are turned into ours in batches of this size.
const BATCH: usize = 4096;
/// The tolerated clock skew into the future: 60 s.
const MAX_SKEW_MS: i64 = 60_000;
/// Writing the expiry state takes at most one part in so many of the time: less than a hundredth of a core.
const SHARE: u32 = 120;
/// The interval between two writes of the expiry state if content was only used.
const USES_INTERVAL: Duration = Duration::from_hours(1);

/// The state of the background work.
#[derive(Debug)]
pub(super) struct Maintenance {
    rebuilding: AtomicBool,
    /// The time to live and the event that it counts from, once they are set.
    ttl: Mutex<Option<(Duration, TtlFrom)>>,
    /// The last write of the expiry state.
    written: Mutex<Option<Written>>,
    pub(super) scrub_queue: ScrubQueue,
    pub(super) first_use: FirstUseVerifications,
    pub(super) pins: Pins,
    /// The samples of totals that wait for a write.
    pub(super) samples: Mutex<Vec<Op>>,
}

impl Maintenance {
    /// Creates the state of a store that keeps pinned content.
    pub(super) fn new(pinned: Globs) -> Self {
        Self {
            rebuilding: AtomicBool::default(),
            ttl: Mutex::default(),
            written: Mutex::default(),
            scrub_queue: ScrubQueue::default(),
            first_use: FirstUseVerifications::default(),
            pins: Pins::new(pinned),
            samples: Mutex::default(),
        }
    }
}

/// A write of Distribution's expiry state.
#[derive(Debug)]
struct Written {
    what: State,
    when: Timestamp,
    /// The duration of the write.
    took: Duration,
}

/// The input of the expiry state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    content: u64,
    /// 0 where uses move no expiry.
    uses: u64,
    ttl: Duration,
    from: TtlFrom,
}

impl Written {
    /// Returns `true` if the expiry state should be written again. A million entries take seconds, which is too much
    /// for every minute, above all if content was only used.
    fn is_outdated(&self, now: State, at: Timestamp) -> bool {
        let pause = if (State {
            uses: self.what.uses,
            ..now
        }) == self.what
        {
            self.took.saturating_mul(SHARE).max(USES_INTERVAL)
        } else {
            self.took.saturating_mul(SHARE)
        };
        self.what != now && Duration::try_from(at.duration_since(self.when)).is_ok_and(|since| since >= pause)
    }
}

impl Store {
    /// Writes the uses recorded in memory, and the expiry state of Distribution for the default upstream if it changed.
    /// Call it before exit.
    pub async fn flush(&self) {
        self.write(|_, _, _| true).await;
    }

    /// Flushes like [`Store::flush`], but rewrites a large expiry state less often; for calls every minute.
    pub async fn flush_if_due(&self) {
        self.write(Written::is_outdated).await;
    }

    async fn write(&self, outdated: fn(&Written, State, Timestamp) -> bool) {
        rebuild_if_needed(&self.inner);
        if let Err(error) = self.blocking(move |inner| inner.flush(outdated)).await {
            tracing::warn!(%error, "the cache's state could not be written; it is tried again");
        }
    }

    /// Removes what is older than `ttl` (`None`: nothing is), and what is over a limit that was lowered.
    /// Returns how many pieces of content expired.
    ///
    /// What clients read at the moment stays until the next call. Nothing goes before the store knows
    /// all of its files.
    pub async fn expire(&self, ttl: Option<Duration>, from: TtlFrom) -> Result<u64, Error> {
        self.blocking(move |inner| {
            *inner.maintenance.ttl.lock() = ttl.map(|ttl| (ttl, from));
            if inner.space.is_uncounted() {
                return Ok(0);
            }
            inner.trim()?;
            let now = inner.clock.settled().as_millisecond();
            if inner.clock.is_settled() {
                inner.clamp_future_timestamps(now)?;
            }
            let Some(ttl) = ttl else { return Ok(0) };
            inner.resolve_imported(ttl)?;
            let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            let order = match from {
                TtlFrom::LastUse => Order::Use,
                TtlFrom::FirstFetch => Order::Fetch,
            };
            inner.expire(order, now.saturating_sub(ttl))
        })
        .await
    }

    /// Returns `true` once the store knows all of its files, which takes a moment after it adopted a directory.
    pub fn is_settled(&self) -> bool {
        !self.inner.space.is_uncounted()
    }
}

/// Starts a rebuild of the index in the background, if it does not know all files.
pub(super) fn rebuild_if_needed(inner: &Arc<Inner>) {
    let needed = !inner.is_readonly() && !inner.index.is_complete();
    if !needed || inner.maintenance.rebuilding.swap(true, Ordering::AcqRel) {
        return;
    }
    inner.begin_count(true);
    let store = Arc::downgrade(inner);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = rebuild::run(&store) {
            tracing::warn!(%error, "the cache's index can't be rebuilt now; it is tried again");
        }
        if let Some(inner) = store.upgrade() {
            inner.maintenance.rebuilding.store(false, Ordering::Release);
        }
    });
}

impl Inner {
    /// Initializes the quota from the index; `paused` if the index is incomplete.
    pub(super) fn begin_count(&self, paused: bool) {
        let (bytes, blobs) = self.index.totals().unwrap_or_default();
        self.space.begin(bytes, blobs, paused);
    }

    fn flush(&self, outdated: impl Fn(&Written, State, Timestamp) -> bool) -> Result<(), Error> {
        if !self.is_readonly() {
            self.root.scratch()?;
        }
        self.write_recorded_uses()?;
        let ttl = *self.maintenance.ttl.lock();
        let Some((ttl, from)) = ttl.filter(|_| !self.is_readonly() && !self.space.is_uncounted()) else {
            return Ok(());
        };
        // Resolves the times that were imported since the last round of expiry: Distribution's own times must not be
        // lost in its state.
        self.resolve_imported(ttl)?;
        let (content, uses) = self.index.changes();
        let uses = if from == TtlFrom::LastUse { uses } else { 0 };
        let (now, at) = (
            State {
                content,
                uses,
                ttl,
                from,
            },
            self.clock.now(),
        );
        let mut written = self.maintenance.written.lock();
        if written
            .as_ref()
            .is_some_and(|last| last.what == now || !outdated(last, now, at))
        {
            return Ok(());
        }
        let begun = Instant::now();
        self.write_scheduler_state(ttl, from)?;
        let took = begun.elapsed();
        *written = Some(Written {
            what: now,
            when: at,
            took,
        });
        Ok(())
    }

    /// Moves times in the future to now: content with such a time would stay for as long as the clock was wrong.
    fn clamp_future_timestamps(&self, now: i64) -> Result<(), Error> {
        for order in [Order::Use, Order::Fetch] {
            loop {
                let batch = self.index.beyond(order, now.saturating_add(MAX_SKEW_MS), BATCH)?;
                if batch.is_empty() {
                    break;
                }
                let clamp = |digest| Op::NotAfter(digest, now);
                self.index.write(batch.into_iter().map(clamp).collect())?;
            }
        }
        Ok(())
    }

    /// Computes the time of fetch of content whose expiry Distribution recorded: `ttl` before it.
    fn resolve_imported(&self, ttl: Duration) -> Result<(), Error> {
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        loop {
            let batch = self.index.imported(BATCH)?;
            if batch.is_empty() {
                return Ok(());
            }
            let resolve = |(digest, expires): (_, i64)| Op::Resolve(digest, expires.saturating_sub(ttl));
            self.index.write(batch.into_iter().map(resolve).collect())?;
        }
    }

    /// Writes the expiry state of Distribution to a scratch file and renames it.
    fn write_scheduler_state(&self, ttl: Duration, from: TtlFrom) -> Result<(), Error> {
        let path = self.layout.scheduler_state();
        let (file, scratch) = self.root.scratch()?.create()?;
        scheduler_state::write::<Error>(file, &scratch.0, |writer| {
            self.index.each_link(|digest, link, entry| {
                let (repository, kind) = match link {
                    Link::Layer(repository, _) => (repository, ContentKind::Blob),
                    Link::Revision(repository, _) => (repository, ContentKind::Manifest),
                    Link::Tag(..) => return Ok(()),
                };
                if repository.host != *self.layout.default_host() {
                    return Ok(());
                }
                writer
                    .entry(&repository.name, digest, expiry(entry, ttl, from), kind)
                    .map_err(|error| on("write", &scratch.0)(error).into())
            })
        })?;
        self.root.scratch()?.ours.place(&scratch.0, &path)?;
        let seen = scheduler_state::fingerprint(&path);
        self.index.write(vec![Op::StateSeen(seen)])?;
        Ok(())
    }
}

fn expiry(entry: IndexEntry, ttl: Duration, from: TtlFrom) -> Timestamp {
    let since = match from {
        TtlFrom::LastUse => entry.used,
        TtlFrom::FirstFetch => entry.fetched,
    };
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(since.saturating_add(ttl)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::digest::{Algorithm, Digest};
    use crate::metrics::Metrics;
    use crate::name::Repository;
    use crate::store::StoreOptions;

    const MILLION: u64 = 1_000_000;
    const ROUNDS: u64 = 60;

    fn digest(number: u64) -> Digest {
        Digest::compute(Algorithm::Sha256, &number.to_le_bytes())
    }

    async fn open(root: &std::path::Path) -> Store {
        let options = StoreOptions {
            default_host: "docker.io".parse().unwrap(),
            max_size: Some(crate::config::MaxSize::Bytes(u64::MAX)),
            pinned: Globs::default(),
            readonly: false,
            clock: Clock::system(),
            metrics: Metrics::new(),
        };
        Store::open(root, options).await.unwrap()
    }

    /// An index of a million layers, without their files: only a request reads a file.
    fn fill(store: &Store, repository: &Repository) {
        let now = store.inner.clock.now().as_millisecond();
        for first in (0..MILLION).step_by(10_000) {
            let entry = |number| {
                let (digest, size) = (digest(number), 1);
                let link = Link::Layer(repository.clone(), digest.clone());
                let admit = Op::Admit {
                    digest: digest.clone(),
                    size,
                    now,
                };
                [admit, Op::Link(digest, link)]
            };
            let ops = (first..first + 10_000).flat_map(entry).collect();
            store.inner.index.write(ops).unwrap();
        }
        store.inner.index.write(vec![Op::Complete(true)]).unwrap();
    }

    /// `scripts/bench --million` names a directory for it, and starts the program there.
    #[tokio::test]
    #[ignore = "a minute: make bench-million"]
    async fn million_blobs_are_made() {
        let root = std::env::var_os("MILLION").expect("MILLION names the directory");
        let repository = Repository {
            host: "docker.io".parse().unwrap(),
            name: "library/many".parse().unwrap(),
        };
        fill(&open(root.as_ref()).await, &repository);
    }

    /// Milliseconds of CPU that this process has used.
    fn cpu() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        ticks * 1000 / rustix::param::clock_ticks_per_second()
    }

    /// Figures: `cargo test --profile count -p mirror --lib million_blobs -- --ignored --nocapture`.
    #[tokio::test]
    #[ignore = "minutes: writes an index of a million entries"]
    async fn a_million_blobs_open_at_once_and_expire_cheaply() {
        let root = tempfile::tempdir().unwrap();
        let repository = Repository {
            host: "docker.io".parse().unwrap(),
            name: "library/app".parse().unwrap(),
        };
        let store = open(root.path()).await;
        fill(&store, &repository);
        drop(store);
        let begun = Instant::now();
        let store = open(root.path()).await;
        assert_eq!(
            store
                .blob(&repository, &digest(MILLION))
                .await
                .unwrap()
                .map(|blob| blob.size),
            None
        );
        eprintln!("open to first answer: {:?}", begun.elapsed());
        assert_eq!(store.usage().blobs, MILLION);
        assert!(store.is_settled());
        let week = Some(Duration::from_hours(168));
        let before = cpu();
        assert_eq!(store.expire(week, TtlFrom::LastUse).await.unwrap(), 0);
        store.flush_if_due().await;
        eprintln!("first round, with the expiry state: {} ms of CPU", cpu() - before);
        let before = cpu();
        for _ in 0..ROUNDS {
            assert_eq!(store.expire(week, TtlFrom::LastUse).await.unwrap(), 0);
            store.flush_if_due().await;
        }
        eprintln!(
            "a round, of which there is one a minute: {} ms of CPU",
            (cpu() - before) / ROUNDS
        );
    }
}
