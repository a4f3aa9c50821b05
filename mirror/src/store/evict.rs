//! Eviction: by least recent use for space, by age, by damage.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::digest::Digest;
use crate::metrics::EvictionReason;
use crate::name::Host;
use crate::store::durable::{prune, remove};
use crate::store::index::{IndexEntry, Link, Op, Order};
use crate::store::space::{Reservation, Shortfall};
use crate::store::{Error, Inner, IoError, StageError, Store, link, stripe_of};
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
    /// Admits a file of `announced` bytes from an upstream, unless it could not fit though all went that may go. A file
    /// that is not `bounded` evicts a share of the cache at most.
    pub(super) fn admit_file(
        &self,
        origin: &Host,
        announced: u64,
        bounded: bool,
    ) -> Result<Reservation, StageError> {
        let admitted = self.space.admit(origin, announced, bounded);
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
        let (mut freed, mut found, mut batch) = (0, 0, Vec::new());
        self.visit_evictable(|digest| {
            found += self.index.get(digest)?.map_or(0, |entry| entry.size);
            batch.push(digest.clone());
            if freed + found < wanted && batch.len() < BATCH {
                return Ok(true);
            }
            freed += self.remove_all(&std::mem::take(&mut batch), EvictionReason::Room)?;
            found = 0;
            Ok(freed < wanted)
        })?;
        freed += self.remove_all(&batch, EvictionReason::Room)?;
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
        self.root.scratch()?;
        self.write_recorded_uses()?;
        let (mut gone, mut last) = (0, None);
        loop {
            let oldest = self.index.oldest(order, last.as_ref(), BATCH)?;
            let mut expired = Vec::new();
            for (_, digest) in oldest.iter().take_while(|(time, _)| *time < before) {
                if !self.hot_cache.is_read(digest) && !self.is_pinned(digest)? {
                    expired.push(digest.clone());
                }
            }
            self.remove_all(&expired, EvictionReason::Expired)?;
            gone += expired.len() as u64;
            match oldest.into_iter().next_back() {
                Some(newest) if newest.0 < before => last = Some(newest),
                _ => return Ok(gone),
            }
        }
    }

    /// Removes content and all links to it, in one transaction of the index. Returns the bytes that it took.
    fn remove_all(&self, digests: &[Digest], reason: EvictionReason) -> Result<u64, Error> {
        let stripes: BTreeSet<_> = digests.iter().map(stripe_of).collect();
        // In order, and no other thread waits for a second one.
        let _stripes: Vec<_> = stripes
            .into_iter()
            .map(|stripe| self.stripes[stripe].lock())
            .collect();
        let (mut removed, mut ops, mut failed) = (Vec::new(), Vec::new(), None);
        for digest in digests {
            match self.remove_files(digest, &mut ops) {
                Ok(entry) => removed.extend(entry),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        // Also what was removed before a failure.
        self.index.write(ops)?;
        for entry in &removed {
            self.space.sub(entry.size);
            self.count_evicted(reason, Some(*entry));
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(removed.iter().map(|entry| entry.size).sum()),
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
        let mut ops = Vec::new();
        let entry = self.remove_files(digest, &mut ops)?;
        self.index.write(ops)?;
        if let Some(entry) = entry {
            self.space.sub(entry.size);
        }
        Ok(entry)
    }

    /// Removes the file of content and its links; the caller holds its stripe, and writes `ops` to the index. Returns the
    /// entry of the index.
    fn remove_files(&self, digest: &Digest, ops: &mut Vec<Op>) -> Result<Option<IndexEntry>, Error> {
        self.hot_cache.forget(digest);
        let entry = self.index.get(digest)?;
        let links = self.index.links(digest)?;
        let data = self.layout.blob_data(digest);
        remove(&data)?;
        if let Some(directory) = data.parent() {
            prune(directory, &self.layout.blobs());
        }
        let untagged: Vec<_> = links
            .iter()
            .map(|link| self.remove_link(digest, link))
            .collect::<Result<_, _>>()?;
        ops.push(Op::Remove(digest.clone()));
        ops.extend(untagged.into_iter().flatten());
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
        self.notify_uses(&marks);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::name::Repository;
    use crate::store::image_query::tests::open;

    /// Content that is evicted at once is one transaction of the index, and so is content that expires at once.
    #[tokio::test]
    async fn batch_of_removals_is_one_transaction() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).await;
        let app = Repository {
            host: "quay.io".parse().unwrap(),
            name: "app".parse().unwrap(),
        };
        for number in 0..40_u8 {
            let digest = Digest::compute(Algorithm::Sha256, &[number; 1000]);
            let mut staged = store.stage(&app.host, &digest, Some(1000)).await.unwrap();
            staged.append(&[number; 1000]).unwrap();
            staged.commit(std::slice::from_ref(&app)).await.unwrap();
        }
        let inner = &store.inner;
        inner.write_recorded_uses().unwrap();
        let before = inner.index.changes().0;
        assert!(inner.evict(19_500).unwrap() >= 19_500);
        assert_eq!(inner.index.changes().0 - before, 1);
        assert_eq!((store.usage().blobs, store.usage().bytes), (20, 20_000));
        assert_eq!(inner.expire(Order::Use, i64::MAX).unwrap(), 20);
        assert_eq!(inner.index.changes().0 - before, 2);
        assert_eq!((store.usage().blobs, store.usage().bytes), (0, 0));
    }
}
