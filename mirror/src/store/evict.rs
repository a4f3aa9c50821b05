//! Eviction: by least recent use for space, by age, by damage.

use std::time::Duration;

use crate::digest::Digest;
use crate::metrics::EvictionReason;
use crate::name::Host;
use crate::store::durable::{prune, remove};
use crate::store::index::{IndexEntry, Link, Op, Order};
use crate::store::space::{Reservation, Shortfall};
use crate::store::{Error, Inner, IoError, StageError, Store, link};
use jiff::Timestamp;
use parking_lot::MutexGuard;

/// The number of candidates per query of the index.
const BATCH: usize = 64;
/// The most pieces of content that an announcement has visited.
const MAX_VISITED: u64 = 4_096;

impl Store {
    /// Returns the oldest last use of a piece of content, as the index has it; `None` in an empty cache. Waits for the disk.
    pub(crate) fn oldest_use(&self) -> Option<Timestamp> {
        let oldest = self.inner.index.oldest(Order::Use, None, 1).ok()?;
        let (used, _) = oldest.first()?;
        Timestamp::from_millisecond(*used).ok()
    }
}

impl Inner {
    /// Admits a file of `announced` bytes from an upstream, unless it could not fit though all went that may go.
    pub(super) fn admit_file(&self, origin: &Host, announced: u64) -> Result<Reservation, StageError> {
        let admitted = self.space.admit(origin, announced);
        let (room, short) = admitted.map_err(|_| StageError::NoRoom)?;
        if short > 0 && !self.can_free(short)? {
            return Err(StageError::NoRoom);
        }
        Ok(room)
    }

    /// Takes more room for an unfinished file, and evicts until there is some.
    pub(super) fn grow(&self, room: &mut Reservation, bytes: u64) -> Result<(), StageError> {
        match room.grow(bytes, 0) {
            Ok(()) => return Ok(()),
            Err(Shortfall::Never) => return Err(StageError::NoRoom),
            Err(Shortfall::Evict(_)) => {}
        }
        // Tried again under the lock: the previous holder may have freed space.
        let _one = self.evicting.lock();
        let mut displaced = 0;
        loop {
            match room.grow(bytes, displaced) {
                Ok(()) => return Ok(()),
                Err(Shortfall::Never) => return Err(StageError::NoRoom),
                Err(Shortfall::Evict(short)) => match self.evict(short)? {
                    0 => return Err(StageError::NoRoom),
                    freed => displaced += freed,
                },
            }
        }
    }

    /// Runs an operation that needs space on the disk; evicts and tries once more if the disk is full.
    pub(super) fn with_room(
        &self,
        bytes: u64,
        work: impl Fn() -> Result<(), IoError>,
    ) -> Result<(), StageError> {
        match work() {
            Err(error) if error.is_full() => {
                let _one = self.evicting.lock();
                self.evict(bytes)?;
                Ok(work()?)
            }
            done => Ok(done?),
        }
    }

    /// Brings the cache back under a limit that was lowered.
    pub(super) fn trim(&self) -> Result<(), Error> {
        let _one = self.evicting.lock();
        match self.space.excess() {
            0 => Ok(()),
            excess => self.evict(excess).map(|_| ()),
        }
    }

    /// Evicts the least recently used content that no client reads and that is not pinned. Returns the bytes freed.
    fn evict(&self, wanted: u64) -> Result<u64, Error> {
        if wanted == 0 || self.is_readonly() {
            return Ok(0);
        }
        if let Err(error) = self.write_recorded_uses() {
            // A full disk must not keep from making room on it; some uses are forgotten then.
            tracing::warn!(%error, "uses could not be written before evicting");
        }
        let mut freed = 0;
        self.visit_evictable(|digest| {
            freed += self.remove(digest, EvictionReason::Room)?;
            Ok(freed < wanted)
        })?;
        tracing::debug!(freed, wanted, "evicted");
        Ok(freed)
    }

    /// Returns whether so many bytes of content may go, as far as the first [`MAX_VISITED`] pieces show; nothing goes.
    fn can_free(&self, wanted: u64) -> Result<bool, Error> {
        let (mut found, mut visited) = (0, 0);
        self.visit_evictable(|digest| {
            found += self.index.get(digest)?.map_or(0, |entry| entry.size);
            visited += 1;
            Ok(found < wanted && visited < MAX_VISITED)
        })?;
        Ok(found >= wanted || visited >= MAX_VISITED)
    }

    /// Visits content that is neither read now nor pinned, the least recently used first, until a visit returns false.
    fn visit_evictable(&self, mut visit: impl FnMut(&Digest) -> Result<bool, Error>) -> Result<(), Error> {
        let mut last = None;
        loop {
            let oldest = self.index.oldest(Order::Use, last.as_ref(), BATCH)?;
            for (_, digest) in &oldest {
                if !self.hot_cache.is_read(digest) && !self.is_pinned(digest)? && !visit(digest)? {
                    return Ok(());
                }
            }
            match oldest.into_iter().next_back() {
                Some(newest) => last = Some(newest),
                None => return Ok(()),
            }
        }
    }

    /// Removes content that was last used, or fetched, before `before` (ms since 1970), that no client reads and that
    /// is not pinned. Returns the number of removed pieces of content.
    pub(super) fn expire(&self, order: Order, before: i64) -> Result<u64, Error> {
        if self.is_readonly() {
            return Ok(0);
        }
        self.write_recorded_uses()?;
        let (mut gone, mut last) = (0, None);
        loop {
            let oldest = self.index.oldest(order, last.as_ref(), BATCH)?;
            for (time, digest) in &oldest {
                if *time >= before {
                    return Ok(gone);
                }
                if !self.hot_cache.is_read(digest) && !self.is_pinned(digest)? {
                    self.remove(digest, EvictionReason::Expired)?;
                    gone += 1;
                }
            }
            match oldest.into_iter().next_back() {
                Some(newest) => last = Some(newest),
                None => return Ok(gone),
            }
        }
    }

    /// Removes content and all that leads to it. Returns the bytes that it took.
    pub(super) fn remove(&self, digest: &Digest, reason: EvictionReason) -> Result<u64, Error> {
        let one = self.stripe(digest);
        let removed = self.remove_under(&one, digest)?;
        self.count_evicted(reason, removed);
        Ok(removed.map_or(0, |entry| entry.size))
    }

    /// Counts content that was removed.
    pub(super) fn count_evicted(&self, reason: EvictionReason, removed: Option<IndexEntry>) {
        let Some(entry) = removed else { return };
        let unused = self.clock.now().as_millisecond().saturating_sub(entry.used);
        let unused = Duration::from_millis(u64::try_from(unused).unwrap_or_default());
        self.metrics.evicted(reason, entry.size, unused);
    }

    /// Removes content unless it is sound by now: another request may have replaced it since the damage was found.
    pub(super) fn remove_unless(
        &self,
        digest: &Digest,
        is_sound: impl FnOnce() -> bool,
    ) -> Result<(), Error> {
        let one = self.stripe(digest);
        if !is_sound() {
            let removed = self.remove_under(&one, digest)?;
            self.count_evicted(EvictionReason::Damaged, removed);
        }
        Ok(())
    }

    /// Removes content without counting it in the metrics; the caller holds its stripe. Returns its index entry.
    pub(super) fn remove_under(
        &self,
        _one: &MutexGuard<'_, ()>,
        digest: &Digest,
    ) -> Result<Option<IndexEntry>, Error> {
        self.hot_cache.forget(digest);
        let entry = self.index.get(digest)?;
        let links = self.index.links(digest)?;
        let data = self.layout.blob_data(digest);
        remove(&data)?;
        if let Some(directory) = data.parent() {
            prune(directory, &self.layout.blobs());
        }
        let mut ops = vec![Op::Remove(digest.clone())];
        for link in &links {
            ops.extend(self.remove_link(digest, link)?);
        }
        self.index.write(ops)?;
        if let Some(entry) = entry {
            self.space.sub(entry.size);
        }
        Ok(entry)
    }

    pub(super) fn remove_link(&self, digest: &Digest, link: &Link) -> Result<Option<Op>, IoError> {
        self.note_pin(digest, link);
        match link {
            Link::Layer(repository, name) => {
                self.remove_file(&self.layout.layer_link(repository, name))?;
            }
            Link::Revision(repository, name) => {
                self.remove_file(&self.layout.revision_link(repository, name))?;
            }
            Link::Tag(repository, tag) => {
                self.remove_file(&self.layout.tag_index(repository, tag, digest))?;
                let current = self.layout.tag_current(repository, tag);
                if link::read(&current)?.as_ref() == Some(digest) {
                    self.remove_file(&current)?;
                    self.hot_cache.drop_tag(repository, tag);
                    return Ok(Some(Op::Untag(repository.clone(), tag.clone())));
                }
            }
        }
        Ok(None)
    }

    fn remove_file(&self, path: &std::path::Path) -> Result<(), IoError> {
        remove(path)?;
        if let Some(directory) = path.parent() {
            prune(directory, &self.layout.repositories());
        }
        Ok(())
    }

    /// Hands what was only marked in memory to the index.
    pub(super) fn write_recorded_uses(&self) -> Result<(), Error> {
        let marks = self.hot_cache.take_recorded_uses();
        let used: Vec<_> = marks
            .iter()
            .filter_map(|mark| match mark {
                Op::Use(digest, _) => Some(digest.clone()),
                _ => None,
            })
            .collect();
        let samples = self.take_samples();
        self.index.write(marks.into_iter().chain(samples).collect())?;
        self.queue_for_scrub(used)?;
        Ok(())
    }
}
