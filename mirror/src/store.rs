//! The cache on disk: content by digest, links by repository, tags.
//!
//! The layout is that of CNCF Distribution, so either program can use the directory of the other; files of this server
//! only are in `_mirror` next to it. Content becomes visible complete or not at all.

mod blobs;
mod catalog;
mod default_host;
mod durable;
mod evict;
mod first_use;
mod hot_cache;
mod image_query;
mod image_summary;
mod images;
mod index;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod kept;
mod link;
mod lock;
mod maintenance;
mod manifests;
mod no_links;
mod path;
mod pins;
mod purge;
mod rebuild;
mod root;
mod samples;
mod scheduler_state;
mod scrub;
mod space;
mod staging;
mod start_room;
mod tags;
mod uploads;

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use jiff::Timestamp;

use crate::clock::Clock;
use crate::config::{Globs, MaxSize};
use crate::digest::Digest;
use crate::metrics::Metrics;
use crate::name::Host;
pub use blobs::Found;
pub use catalog::RepositoryList;
pub use durable::IoError;
use hot_cache::HotCache;
pub use image_query::{ImageEntry, ImageOrder, ImagePage, ImageRequest, MAX_IMAGES};
use image_summary::ImageSummaryCache;
pub use images::CachedImage;
use index::Index;
pub use index::IndexFailure;
use lock::LockError;
use maintenance::Maintenance;
pub use manifests::Manifest;
use parking_lot::{Mutex, MutexGuard};
pub(crate) use path::Layout;
pub use purge::{PurgeTarget, Purged};
use root::StorageRoot;
use space::DiskQuota;
pub(crate) use staging::Announcement;
pub use staging::{Mismatch, Staged};
pub use uploads::Sweep;
pub(crate) use {index::Link, kept::BucketUpload, kept::ContentLink, kept::UploadState, kept::Uses};

/// The options for opening a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The upstream whose repositories have no prefix on disk.
    pub default_host: Host,
    /// The limit for content; `None`: all but 5% of the file system.
    pub max_size: Option<MaxSize>,
    /// The patterns of content that stays, as in [`Store::set_pinned`].
    pub pinned: Globs,
    /// Nothing is added or removed.
    pub readonly: bool,
    /// Tells when content was fetched, used, validated.
    pub clock: Clock,
    /// The counters of evicted, expired and damaged content.
    pub metrics: Metrics,
}

/// The cache. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

/// A blob that stays readable, even when it is evicted meanwhile.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Open for reading; use positional reads, as others share it.
    pub file: Arc<File>,
    /// Its length in bytes.
    pub size: u64,
    /// All of it, where it is small: hashed when it was read.
    pub bytes: Option<Bytes>,
}

/// The digest of a tag at its last validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedTag {
    /// The manifest.
    pub digest: Digest,
    /// The time at which the upstream last confirmed it.
    pub validated: Timestamp,
    /// `false` if that time is unknown (a directory of another registry, a lost index): `validated` is then the time at
    /// which the store was opened; the tag may be served stale, and is never fresh.
    pub proven: bool,
}

/// The space that the cache takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content stored, and of uploads that another registry left behind.
    pub bytes: u64,
    /// The limit of `bytes`.
    pub limit: Option<u64>,
    /// Pieces of content, manifests among them.
    pub blobs: u64,
    /// Nothing can be stored, whatever was given up for it.
    pub full: bool,
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the storage root {} is in use by another process: stop that one or use another root", .0.display())]
    Locked(PathBuf),
    /// The root can't be written.
    #[error("the storage root {} is not usable: {source}; check that it exists and belongs to this user", root.display())]
    Unwritable {
        /// The root.
        root: PathBuf,
        /// The operation that failed.
        source: IoError,
    },
    /// The store's own task failed.
    #[error("opening the storage root failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl OpenError {
    fn unwritable(root: &Path, source: IoError) -> Self {
        let root = root.to_owned();
        Self::Unwritable { root, source }
    }

    fn refused(root: &Path, refused: LockError) -> Self {
        match refused {
            LockError::Held => Self::Locked(root.to_owned()),
            LockError::Io(source) => Self::unwritable(root, source),
        }
    }
}

/// An error of the storage. Damaged content is no error: the store drops it, and a pull fetches it again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The content was found on the disk, and was not hashed yet.
    #[error("content {0} is still being verified")]
    Unverified(Digest),
    /// The index failed, and is mending.
    #[error(transparent)]
    Index(#[from] IndexFailure),
    /// The store's own task failed.
    #[error("a storage task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Why something can't be stored.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Neither the limit nor the disk has room, even after evicting: pass it through uncached.
    #[error("no room in the cache: raise maxsize or enlarge the disk")]
    NoRoom,
    /// The cache is read-only.
    #[error("the cache is read-only (proxy.cache.readonly)")]
    ReadOnly,
    /// More bytes than were announced.
    #[error("more than the announced {size} bytes")]
    TooLong {
        /// The announced size in bytes.
        size: u64,
    },
    /// The bytes are wrong.
    #[error(transparent)]
    Mismatch(Mismatch),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] Error),
}

impl From<IoError> for StageError {
    fn from(error: IoError) -> Self {
        if error.is_full() {
            Self::NoRoom
        } else {
            Self::Io(error.into())
        }
    }
}

impl From<IndexFailure> for StageError {
    fn from(failure: IndexFailure) -> Self {
        if failure.is_full() {
            Self::NoRoom
        } else {
            Self::Io(failure.into())
        }
    }
}

/// Content is added and removed under one of these, so that its file and links change as one.
const STRIPES: usize = 64;

#[derive(Debug)]
struct Inner {
    layout: Layout,
    clock: Clock,
    metrics: Metrics,
    readonly: AtomicBool,
    opened: Timestamp,
    hot_cache: HotCache,
    /// The summaries of images, by their manifests.
    image_summaries: ImageSummaryCache,
    space: Arc<DiskQuota>,
    index: Index,
    maintenance: Maintenance,
    listeners: kept::StoreListener,
    evicting: Mutex<()>,
    stripes: [Mutex<()>; STRIPES],
    /// Dropped last: the next process may open the index once the locks are released.
    root: StorageRoot,
}

impl Store {
    /// Opens the storage below `root`, alone.
    ///
    /// # Errors
    /// [`OpenError::Locked`] where another process has it.
    pub async fn open(root: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let root = root.to_owned();
        tokio::task::spawn_blocking(move || {
            let opened = match Inner::open(&root, options.clone()) {
                Err(OpenError::Unwritable { source, .. }) if source.is_full() && !options.readonly => {
                    Inner::make_room(&root, &options)?;
                    Inner::open(&root, options)
                }
                opened => opened,
            };
            let inner = Arc::new(opened?);
            maintenance::rebuild_if_needed(&inner);
            Ok(Self { inner })
        })
        .await?
    }

    /// Returns the space that the cache takes, and its limit.
    pub fn usage(&self) -> Usage {
        let (bytes, blobs, limit) = self.inner.space.usage();
        Usage {
            bytes,
            limit,
            blobs,
            full: self.inner.space.is_full(),
        }
    }

    /// Returns the id of this cache: `proposed`, unless it has one already. A cache that is read-only keeps none.
    pub(crate) async fn instance_id(&self, proposed: String) -> String {
        let used = proposed.clone();
        let kept = self
            .blocking(move |inner| inner.keep_instance_id(&proposed))
            .await;
        kept.unwrap_or_else(|error: Error| {
            tracing::warn!(%error, "the id of the cache was not kept");
            used
        })
    }

    /// Sets another limit; a lower one takes effect with what is stored next.
    pub fn set_limits(&self, max_size: Option<MaxSize>) {
        self.inner.space.set_max_size(max_size);
    }

    /// Makes the cache read-only, or writable again; downloads that are being stored end first.
    pub fn set_readonly(&self, readonly: bool) {
        self.inner.readonly.store(readonly, Ordering::Relaxed);
    }

    async fn blocking<T, E>(&self, work: impl FnOnce(&Inner) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(Error::from)?
    }
}

impl Inner {
    fn keep_instance_id(&self, proposed: &str) -> Result<String, Error> {
        let path = self.layout.instance_id();
        let kept = durable::read(&path, 64)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let is_id =
            |text: &String| text.len() == proposed.len() && text.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(kept) = kept.filter(is_id) {
            return Ok(kept);
        }
        if !self.is_readonly() {
            self.root.scratch()?.write(&path, proposed.as_bytes())?;
        }
        Ok(proposed.to_owned())
    }

    /// Makes room on a full file system for the files that the store needs to open, unless another process has the root.
    fn make_room(root: &Path, options: &StoreOptions) -> Result<(), OpenError> {
        let unwritable = |source| OpenError::unwritable(root, source);
        let layout = root::usable_layout(root, &options.default_host).map_err(unwritable)?;
        let _locked =
            StorageRoot::lock_when_full(&layout).map_err(|refused| OpenError::refused(root, refused))?;
        start_room::free_room(&layout, &options.pinned).map_err(unwritable)
    }

    fn open(root: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let unwritable = |source| OpenError::unwritable(root, source);
        let layout = root::usable_layout(root, &options.default_host).map_err(unwritable)?;
        let held = StorageRoot::open(&layout).map_err(|refused| OpenError::refused(root, refused))?;
        let index = Index::open(&layout.index()).map_err(unwritable)?;
        // An index that can't be read is incomplete, which is seen below.
        let _ = rebuild::distrust_after_others(&index, &layout);
        let inner = Self {
            index,
            space: DiskQuota::new(layout.root(), options.max_size),
            hot_cache: HotCache::new(),
            image_summaries: ImageSummaryCache::default(),
            maintenance: Maintenance::new(options.pinned),
            opened: options.clock.now(),
            clock: options.clock,
            metrics: options.metrics,
            readonly: AtomicBool::new(options.readonly),
            listeners: kept::StoreListener::default(),
            evicting: Mutex::default(),
            stripes: std::array::from_fn(|_| Mutex::default()),
            root: held,
            layout,
        };
        inner.begin_count(!inner.index.is_complete());
        Ok(inner)
    }

    fn is_readonly(&self) -> bool {
        self.readonly.load(Ordering::Relaxed)
    }

    /// Locks the stripe of a digest, for changes of its content or its links.
    fn stripe(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.stripes[stripe_of(digest)].lock()
    }
}

/// Returns the number of a digest among [`STRIPES`].
fn stripe_of(digest: &Digest) -> usize {
    let mut hasher = DefaultHasher::new();
    digest.hash(&mut hasher);
    #[expect(clippy::cast_possible_truncation, reason = "any bits do")]
    let number = hasher.finish() as usize % STRIPES;
    number
}
