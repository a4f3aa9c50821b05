//! What memory holds of the cache, so that a warm hit reads nothing but the content itself.
//!
//! Everything here is bounded and can be lost: the files are the truth. Uses are only marked here; the
//! index takes them in batches.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use jiff::Timestamp;
use moka::sync::Cache;
use rustix::process::{Resource, getrlimit};

use crate::digest::Digest;
use crate::name::{Repository, Tag};
use crate::store::index::Op;
use crate::store::{Blob, CachedTag, Manifest};

/// Manifests are kept up to this many bytes in all.
const MANIFEST_BYTES: u64 = 32 << 20;
/// Small blobs are held in memory for as long as their files are open, and looked at on the disk no more often than
/// this: what memory holds is right whatever becomes of the file, so damage there can wait a moment to be found.
const LOOK_MS: i64 = 20;
/// Tags are kept up to this number.
const TAGS: u64 = 16 << 10;

/// Locks a mutex whose state is valid at every instant, so that a panic elsewhere can't spoil it.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One piece of content as the caches refer to it.
#[derive(Debug)]
pub(super) struct Presence {
    digest: Digest,
    used_ms: AtomicI64,
    marked: AtomicBool,
    gone: AtomicBool,
}

/// A blob whose file is open, until the blob goes: an open file keeps its room on the disk.
#[derive(Debug)]
pub(super) struct OpenBlob {
    presence: Arc<Presence>,
    file: ArcSwapOption<File>,
    size: u64,
    bytes: Option<Bytes>,
    looked_ms: AtomicI64,
}

#[derive(Debug)]
struct HeldManifest {
    presence: Arc<Presence>,
    manifest: Manifest,
}

/// What is alive of a digest, without keeping it alive.
#[derive(Debug)]
struct Known {
    presence: Weak<Presence>,
    open: Weak<OpenBlob>,
    file: Weak<File>,
}

/// The caches of the hit path.
#[derive(Debug)]
pub(super) struct Hits {
    blobs: Cache<(Repository, Digest), Arc<OpenBlob>>,
    manifests: Cache<(Repository, Digest), Arc<HeldManifest>>,
    tags: Cache<(Repository, Tag), CachedTag>,
    known: Mutex<HashMap<Digest, Known>>,
    marked: Mutex<Vec<Arc<Presence>>>,
    confirmed: Mutex<HashMap<(Repository, Tag), Op>>,
}

impl Hits {
    pub(super) fn new() -> Self {
        Self {
            blobs: Cache::new(open_files()),
            manifests: Cache::builder()
                .max_capacity(MANIFEST_BYTES)
                .weigher(|_, held: &Arc<HeldManifest>| {
                    u32::try_from(held.manifest.bytes().len() + 512).unwrap_or(u32::MAX)
                })
                .build(),
            tags: Cache::new(TAGS),
            known: Mutex::default(),
            marked: Mutex::default(),
            confirmed: Mutex::default(),
        }
    }

    /// A blob that is open for this repository and undamaged as far as its metadata tells.
    pub(super) fn blob(&self, repository: &Repository, digest: &Digest, now: Timestamp) -> Option<Blob> {
        let key = (repository.clone(), digest.clone());
        let open = self.blobs.get(&key)?;
        let Some(blob) = open.sound(now) else {
            self.blobs.invalidate(&key);
            return None;
        };
        self.mark(&open.presence, now);
        Some(blob)
    }

    /// A blob that is open for any repository.
    pub(super) fn open_blob(&self, digest: &Digest, now: Timestamp) -> Option<(Arc<OpenBlob>, Blob)> {
        let open = lock(&self.known).get(digest)?.open.upgrade()?;
        let blob = open.sound(now)?;
        Some((open, blob))
    }

    /// Takes a blob's opened file in, and counts its use.
    pub(super) fn opened(&self, digest: &Digest, blob: &Blob, now: Timestamp) -> Arc<OpenBlob> {
        let presence = self.presence(digest);
        self.mark(&presence, now);
        let open = Arc::new(OpenBlob {
            presence: presence.clone(),
            file: ArcSwapOption::new(Some(blob.file.clone())),
            size: blob.size,
            bytes: blob.bytes.clone(),
            looked_ms: AtomicI64::new(now.as_millisecond()),
        });
        lock(&self.known).insert(
            digest.clone(),
            Known {
                presence: Arc::downgrade(&presence),
                open: Arc::downgrade(&open),
                file: Arc::downgrade(&blob.file),
            },
        );
        open
    }

    /// Remembers that a repository's link leads to this blob, and counts the use.
    pub(super) fn link(
        &self,
        repository: &Repository,
        digest: &Digest,
        open: &Arc<OpenBlob>,
        now: Timestamp,
    ) {
        self.mark(&open.presence, now);
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
        if held.presence.gone.load(Ordering::Acquire) {
            return None;
        }
        self.mark(&held.presence, now);
        Some(held.manifest.clone())
    }

    pub(super) fn hold_manifest(&self, repository: &Repository, manifest: &Manifest, now: Timestamp) {
        let presence = self.presence(manifest.digest());
        self.mark(&presence, now);
        let held = Arc::new(HeldManifest {
            presence,
            manifest: manifest.clone(),
        });
        self.manifests
            .insert((repository.clone(), manifest.digest().clone()), held);
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<CachedTag> {
        self.tags.get(&(repository.clone(), tag.clone()))
    }

    pub(super) fn hold_tag(&self, repository: &Repository, tag: &Tag, cached: CachedTag) {
        self.tags.insert((repository.clone(), tag.clone()), cached);
    }

    pub(super) fn drop_tag(&self, repository: &Repository, tag: &Tag) {
        let key = (repository.clone(), tag.clone());
        lock(&self.confirmed).remove(&key);
        self.tags.invalidate(&key);
    }

    /// Remembers that upstream confirmed a tag, until the index takes it.
    pub(super) fn confirm(&self, confirmed: Op) {
        if let Op::Tag(repository, tag, ..) = &confirmed {
            lock(&self.confirmed).insert((repository.clone(), tag.clone()), confirmed);
        }
    }

    /// Nothing in memory leads to this content any more. Who has it open may go on reading.
    pub(super) fn forget(&self, digest: &Digest) {
        let Some(known) = lock(&self.known).remove(digest) else {
            return;
        };
        if let Some(presence) = known.presence.upgrade() {
            presence.gone.store(true, Ordering::Release);
        }
        if let Some(open) = known.open.upgrade() {
            open.file.store(None);
        }
    }

    /// True while somebody reads this content.
    pub(super) fn is_read(&self, digest: &Digest) -> bool {
        lock(&self.known).get(digest).is_some_and(|known| {
            let ours = usize::from(known.open.strong_count() > 0);
            known.file.strong_count() > ours
        })
    }

    /// What happened since the last call, and nothing of it twice.
    pub(super) fn take_marks(&self) -> Vec<Op> {
        lock(&self.known).retain(|_, known| known.presence.strong_count() + known.file.strong_count() > 0);
        let used = std::mem::take(&mut *lock(&self.marked))
            .into_iter()
            .map(|presence| {
                presence.marked.store(false, Ordering::Release);
                Op::Use(presence.digest.clone(), presence.used_ms.load(Ordering::Acquire))
            });
        let confirmed = std::mem::take(&mut *lock(&self.confirmed));
        used.chain(confirmed.into_values()).collect()
    }

    fn presence(&self, digest: &Digest) -> Arc<Presence> {
        let mut known = lock(&self.known);
        if let Some(presence) = known.get(digest).and_then(|known| known.presence.upgrade()) {
            return presence;
        }
        let presence = Arc::new(Presence {
            digest: digest.clone(),
            used_ms: AtomicI64::new(0),
            marked: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        let entry = known.entry(digest.clone()).or_insert_with(|| Known {
            presence: Weak::new(),
            open: Weak::new(),
            file: Weak::new(),
        });
        entry.presence = Arc::downgrade(&presence);
        presence
    }

    /// One lock per content and flush; every further use is two atomic writes.
    fn mark(&self, presence: &Arc<Presence>, now: Timestamp) {
        presence.used_ms.store(now.as_millisecond(), Ordering::Release);
        if !presence.marked.swap(true, Ordering::AcqRel) {
            lock(&self.marked).push(presence.clone());
        }
    }
}

impl OpenBlob {
    /// The blob, after one `fstat`: not truncated, not grown, not removed behind our back.
    fn sound(&self, now: Timestamp) -> Option<Blob> {
        let file = self.file.load_full()?;
        if !self.was_looked_at(now) {
            let found = file.metadata().ok()?;
            if found.len() != self.size || found.nlink() == 0 {
                return None;
            }
            self.looked_ms.store(now.as_millisecond(), Ordering::Relaxed);
        }
        (!self.presence.gone.load(Ordering::Acquire)).then(|| Blob {
            file,
            size: self.size,
            bytes: self.bytes.clone(),
        })
    }

    /// Whether the file was there a moment ago, which is good enough for what is in memory.
    fn was_looked_at(&self, now: Timestamp) -> bool {
        let ago = now.as_millisecond() - self.looked_ms.load(Ordering::Relaxed);
        self.bytes.is_some() && (0..LOOK_MS).contains(&ago)
    }
}

/// A quarter of what the process may open, as connections need the rest.
fn open_files() -> u64 {
    getrlimit(Resource::Nofile)
        .current
        .map_or(1024, |limit| (limit / 4).clamp(16, 1024))
}
