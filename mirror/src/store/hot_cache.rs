//! The in-memory part of the cache, so that a warm hit reads only content from the disk.
//!
//! Everything here is bounded and may be lost: the files are authoritative. Uses are only recorded here; the index
//! takes them in batches.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use jiff::Timestamp;
use moka::sync::Cache;
use rustix::process::{Resource, getrlimit};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::digest::Digest;
use crate::file_read::FileStamp;
use crate::name::{Repository, Tag};
use crate::store::index::Op;
use crate::store::{Blob, CachedTag, Manifest};
use parking_lot::Mutex;

/// A manifest of more bytes is large: the cache evicts for it at once.
const LARGE: usize = 64 << 10;
/// Manifests are kept up to this many bytes in all.
const MANIFEST_BYTES: u64 = 32 << 20;
/// The most manifests that are read from disk at a time: each is in memory as a whole before its client has room for it.
const MANIFEST_READS: usize = 4;
/// The interval between two checks of the file of a small blob, whose bytes memory holds while the file is open. Those
/// bytes stay right even if the file is damaged, so the check can wait.
const CHECK_MS: i64 = 20;
/// The most pieces of content that are marked because their files changed while they were open.
const MAX_CHANGED: usize = 4 << 10;
/// Tags are kept up to this number.
const TAGS: u64 = 16 << 10;

/// A handle of one piece of content, shared by the caches.
#[derive(Debug)]
pub(super) struct ContentHandle {
    digest: Digest,
    used_ms: AtomicI64,
    /// The pulls since the index took the last uses.
    pulls: AtomicU64,
    recorded: AtomicBool,
    gone: AtomicBool,
}

/// A blob whose file is open until the blob is removed, because an open file keeps its space on the disk.
#[derive(Debug)]
pub(super) struct OpenBlob {
    handle: Arc<ContentHandle>,
    file: ArcSwapOption<File>,
    size: u64,
    /// The version of the file that was verified.
    version: Option<FileStamp>,
    bytes: Option<Bytes>,
    checked_ms: AtomicI64,
}

/// Weak references to the in-memory state of a digest.
#[derive(Debug)]
struct Known {
    handle: Weak<ContentHandle>,
    open: Weak<OpenBlob>,
    file: Weak<File>,
}

/// The caches of the hit path.
#[derive(Debug)]
pub(super) struct HotCache {
    blobs: Cache<(Repository, Digest), Arc<OpenBlob>>,
    /// Manifests with their handles.
    manifests: Cache<(Repository, Digest), Manifest>,
    manifest_reads: Semaphore,
    tags: Cache<(Repository, Tag), CachedTag>,
    known: Mutex<HashMap<Digest, Known>>,
    recorded: Mutex<Vec<Arc<ContentHandle>>>,
    confirmed: Mutex<HashMap<(Repository, Tag), Op>>,
    /// Content whose file changed while it was open.
    changed: Mutex<HashSet<Digest>>,
}

impl HotCache {
    pub(super) fn new() -> Self {
        Self {
            blobs: Cache::new(open_files()),
            manifests: Cache::builder()
                .max_capacity(MANIFEST_BYTES)
                .weigher(|_, held: &Manifest| u32::try_from(held.bytes().len() + 512).unwrap_or(u32::MAX))
                .build(),
            manifest_reads: Semaphore::new(MANIFEST_READS),
            tags: Cache::new(TAGS),
            known: Mutex::default(),
            recorded: Mutex::default(),
            confirmed: Mutex::default(),
            changed: Mutex::default(),
        }
    }

    /// Waits until a manifest may be read from disk.
    pub(super) async fn manifest_read(&self) -> Option<SemaphorePermit<'_>> {
        self.manifest_reads.acquire().await.ok()
    }

    /// Returns a blob that is open for this repository and undamaged according to its metadata.
    pub(super) fn blob(&self, repository: &Repository, digest: &Digest, now: Timestamp) -> Option<Blob> {
        let key = (repository.clone(), digest.clone());
        let open = self.blobs.get(&key)?;
        let Some(blob) = self.checked(&open, now) else {
            self.blobs.invalidate(&key);
            return None;
        };
        self.record_use(&open.handle, now);
        Some(blob)
    }

    /// Returns a blob that is open for any repository.
    pub(super) fn open_blob(&self, digest: &Digest, now: Timestamp) -> Option<(Arc<OpenBlob>, Blob)> {
        let open = self.known.lock().get(digest)?.open.upgrade()?;
        let blob = self.checked(&open, now)?;
        Some((open, blob))
    }

    /// Returns an open blob, unless its file was written to or removed.
    fn checked(&self, open: &OpenBlob, now: Timestamp) -> Option<Blob> {
        let checked = open.checked(now);
        // Once: the file is closed then, and opened again after its content was verified.
        let is_changed = || open.file.swap(None).is_some() && !open.handle.gone.load(Ordering::Acquire);
        if checked.is_none() && is_changed() {
            let mut changed = self.changed.lock();
            // Without a mark, the times of the file decide, which a program may have set back.
            if changed.len() < MAX_CHANGED {
                changed.insert(open.handle.digest.clone());
            }
        }
        checked
    }

    /// Returns `true` for content whose file changed while it was open, and that was not verified since.
    pub(super) fn is_changed(&self, digest: &Digest) -> bool {
        self.changed.lock().contains(digest)
    }

    /// Records that the content of a file was verified.
    pub(super) fn verified(&self, digest: &Digest) {
        self.changed.lock().remove(digest);
    }

    /// Adds an opened blob, and counts its use.
    pub(super) fn opened(&self, digest: &Digest, blob: &Blob, now: Timestamp) -> Arc<OpenBlob> {
        let handle = self.handle(digest);
        self.record_use(&handle, now);
        let open = Arc::new(OpenBlob {
            handle: handle.clone(),
            file: ArcSwapOption::new(Some(blob.file.clone())),
            size: blob.size,
            version: blob.file.metadata().ok().as_ref().map(FileStamp::from),
            bytes: blob.bytes.clone(),
            checked_ms: AtomicI64::new(now.as_millisecond()),
        });
        self.known.lock().insert(
            digest.clone(),
            Known {
                handle: Arc::downgrade(&handle),
                open: Arc::downgrade(&open),
                file: Arc::downgrade(&blob.file),
            },
        );
        open
    }

    /// Records that the link of a repository names this blob, and counts the use.
    pub(super) fn link(
        &self,
        repository: &Repository,
        digest: &Digest,
        open: &Arc<OpenBlob>,
        now: Timestamp,
    ) {
        self.record_use(&open.handle, now);
        self.blobs
            .insert((repository.clone(), digest.clone()), open.clone());
    }

    pub(super) fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        now: Timestamp,
    ) -> Option<Manifest> {
        let held = self.manifests.get(&(repository.clone(), digest.clone()))?;
        let handle = held
            .handle()
            .filter(|handle| !handle.gone.load(Ordering::Acquire))?;
        self.record_use(handle, now);
        Some(held)
    }

    /// Keeps a manifest in memory, counts its use, and returns it with its handle.
    pub(super) fn hold_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        now: Timestamp,
    ) -> Manifest {
        let handle = self.handle(manifest.digest());
        self.record_use(&handle, now);
        let held = manifest.with_handle(handle);
        self.manifests
            .insert((repository.clone(), manifest.digest().clone()), held.clone());
        if manifest.bytes().len() > LARGE {
            // The cache evicts after 64 entries, or 300 ms: as many large manifests would exceed its capacity.
            self.manifests.run_pending_tasks();
        }
        held
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<CachedTag> {
        self.tags.get(&(repository.clone(), tag.clone()))
    }

    pub(super) fn hold_tag(&self, repository: &Repository, tag: &Tag, cached: CachedTag) {
        self.tags.insert((repository.clone(), tag.clone()), cached);
    }

    pub(super) fn drop_tag(&self, repository: &Repository, tag: &Tag) {
        let key = (repository.clone(), tag.clone());
        self.confirmed.lock().remove(&key);
        self.tags.invalidate(&key);
    }

    /// Records that the upstream confirmed a tag, until the index takes it.
    pub(super) fn confirm(&self, confirmed: Op) {
        if let Op::Tag(repository, tag, ..) = &confirmed {
            self.confirmed
                .lock()
                .insert((repository.clone(), tag.clone()), confirmed);
        }
    }

    /// Removes the state that leads a repository to this content. Readers that have it open continue.
    pub(super) fn unlink(&self, repository: &Repository, digest: &Digest) {
        let key = (repository.clone(), digest.clone());
        self.blobs.invalidate(&key);
        self.manifests.invalidate(&key);
    }

    /// Removes this content from memory. Readers that have it open continue.
    pub(super) fn forget(&self, digest: &Digest) {
        self.verified(digest);
        let Some(known) = self.known.lock().remove(digest) else {
            return;
        };
        if let Some(handle) = known.handle.upgrade() {
            handle.gone.store(true, Ordering::Release);
        }
        if let Some(open) = known.open.upgrade() {
            open.file.store(None);
        }
    }

    /// Returns `true` while a client reads this content.
    pub(super) fn is_read(&self, digest: &Digest) -> bool {
        self.known.lock().get(digest).is_some_and(|known| {
            let ours = usize::from(known.open.strong_count() > 0);
            known.file.strong_count() > ours
        })
    }

    /// Takes the uses and confirmations recorded since the last call.
    pub(super) fn take_recorded_uses(&self) -> Vec<Op> {
        self.known
            .lock()
            .retain(|_, known| known.handle.strong_count() + known.file.strong_count() > 0);
        let recorded = std::mem::take(&mut *self.recorded.lock());
        let mut ops = Vec::with_capacity(recorded.len());
        for handle in recorded {
            handle.recorded.store(false, Ordering::Release);
            let (digest, used) = (handle.digest.clone(), handle.used_ms.load(Ordering::Acquire));
            let pulls = handle.pulls.swap(0, Ordering::AcqRel);
            if pulls > 0 {
                ops.push(Op::Pulled(digest.clone(), pulls));
            }
            ops.push(Op::Use(digest, used));
        }
        let confirmed = std::mem::take(&mut *self.confirmed.lock());
        ops.extend(confirmed.into_values());
        ops
    }

    /// Returns the last use (ms since 1970) and the pulls of the content that was used since the index took the last uses.
    pub(super) fn recorded_uses(&self) -> HashMap<Digest, (i64, u64)> {
        let recorded = self.recorded.lock();
        let use_of = |handle: &Arc<ContentHandle>| {
            let used = handle.used_ms.load(Ordering::Acquire);
            (
                handle.digest.clone(),
                (used, handle.pulls.load(Ordering::Acquire)),
            )
        };
        recorded.iter().map(use_of).collect()
    }

    /// Counts a pull of a manifest that was used just now. The index takes it with that use.
    pub(super) fn count_pull(&self, manifest: &Manifest) {
        let fetched = || {
            let known = self.known.lock();
            known.get(manifest.digest())?.handle.upgrade()
        };
        // A manifest that was just fetched has no handle.
        if let Some(handle) = manifest.handle().cloned().or_else(fetched) {
            handle.pulls.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn handle(&self, digest: &Digest) -> Arc<ContentHandle> {
        let mut known = self.known.lock();
        if let Some(handle) = known.get(digest).and_then(|known| known.handle.upgrade()) {
            return handle;
        }
        let handle = Arc::new(ContentHandle {
            digest: digest.clone(),
            used_ms: AtomicI64::new(0),
            pulls: AtomicU64::new(0),
            recorded: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        let entry = known.entry(digest.clone()).or_insert_with(|| Known {
            handle: Weak::new(),
            open: Weak::new(),
            file: Weak::new(),
        });
        entry.handle = Arc::downgrade(&handle);
        handle
    }

    /// Records a use: one lock per content and flush; every further use costs two atomic writes.
    fn record_use(&self, handle: &Arc<ContentHandle>, now: Timestamp) {
        handle.used_ms.store(now.as_millisecond(), Ordering::Release);
        if !handle.recorded.swap(true, Ordering::AcqRel) {
            self.recorded.lock().push(handle.clone());
        }
    }
}

impl OpenBlob {
    /// Returns the blob after one `fstat`, unless the file was written to or removed.
    fn checked(&self, now: Timestamp) -> Option<Blob> {
        let file = self.file.load_full()?;
        if !self.is_recently_checked(now) {
            let found = file.metadata().ok()?;
            if found.nlink() == 0 || Some(FileStamp::from(&found)) != self.version {
                return None;
            }
            self.checked_ms.store(now.as_millisecond(), Ordering::Relaxed);
        }
        (!self.handle.gone.load(Ordering::Acquire)).then(|| Blob {
            file,
            size: self.size,
            bytes: self.bytes.clone(),
        })
    }

    /// Returns `true` if the file was checked within [`CHECK_MS`], which suffices for bytes in memory.
    fn is_recently_checked(&self, now: Timestamp) -> bool {
        let ago = now.as_millisecond() - self.checked_ms.load(Ordering::Relaxed);
        self.bytes.is_some() && (0..CHECK_MS).contains(&ago)
    }
}

/// Returns a quarter of the descriptor limit of the process, because connections need the rest.
fn open_files() -> u64 {
    getrlimit(Resource::Nofile)
        .current
        .map_or(1024, |limit| (limit / 4).clamp(16, 1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Hashed};

    /// Large manifests that come at once are within the capacity of the cache at any time.
    #[test]
    fn large_manifests_stay_within_capacity() {
        let cache = HotCache::new();
        let repository = Repository {
            host: "quay.io".parse().unwrap(),
            name: "a/b".parse().unwrap(),
        };
        for number in 0..40 {
            let bytes = vec![number; 4 << 20];
            let manifest = Manifest::new(Hashed::compute(Algorithm::Sha256, bytes.into()), "");
            cache.hold_manifest(&repository, &manifest, Timestamp::UNIX_EPOCH);
            let kept = cache.manifests.iter().count() as u64;
            assert!(kept * (4 << 20) <= MANIFEST_BYTES, "{kept} manifests");
        }
    }
}
