//! A blob on its way in: admitted, written to scratch as room is taken, hashed, compared, made durable, linked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::task::spawn_blocking;

use crate::digest::{Digest, Hashed, Hasher};
use crate::name::{Host, Repository};
use crate::store::durable::{IoError, Unfinished, on};
use crate::store::index::Link;
use crate::store::space::Reservation;
use crate::store::{Blob, Error, Inner, StageError, Store};

/// The room that a blob takes at first, in bytes. It doubles as bytes come.
const FIRST_STEP: u64 = 256 << 10;
/// The largest step, in bytes: what an announcement that is a lie may evict beyond the bytes that came.
const STEP: u64 = 8 << 20;

/// The least number of bytes that are worth a thread that hashes them.
const HASHED_APART: u64 = 128 << 10;

/// The sizes that are known of a blob before its bytes come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Announcement {
    /// The size that the upstream announces.
    pub(crate) size: Option<u64>,
    /// The size that a manifest names.
    pub(crate) named: Option<u64>,
    /// The bytes that had come when the room ran out the last time, else 0.
    pub(crate) least: u64,
}

impl Announcement {
    /// Returns `true` if the size is known, and the upstream announces no more than a manifest names.
    fn is_bounded(self) -> bool {
        match (self.size, self.named) {
            (None, None) => false,
            (Some(size), Some(named)) => size <= named,
            _ => true,
        }
    }
}

/// The bytes are not what their digest names.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected {expected}, got {size} bytes that are {found}")]
pub struct Mismatch {
    /// The digest asked for.
    pub expected: Digest,
    /// The digest of what came.
    pub found: Digest,
    /// The number of bytes received.
    pub size: u64,
}

/// An unfinished blob. Dropped without [`commit`](Self::commit), it leaves nothing behind.
#[derive(Debug)]
pub struct Staged {
    store: Store,
    expected: Digest,
    size: Option<u64>,
    file: Arc<File>,
    scratch: Unfinished,
    hasher: Hasher,
    found: Option<Digest>,
    written: u64,
    room: Reservation,
}

impl Staged {
    /// Begins a blob from an upstream. Room is taken as bytes come, but for a blob of which `least` bytes came before the
    /// room ran out the last time: that one takes as much, and a step, at once.
    pub(super) fn begin(
        store: Store,
        origin: &Host,
        expected: &Digest,
        announcement: Announcement,
    ) -> Result<Self, StageError> {
        let Announcement { size, least, .. } = announcement;
        let inner = &store.inner;
        if inner.is_readonly() {
            return Err(StageError::ReadOnly);
        }
        let announced = size.unwrap_or(least.saturating_add(FIRST_STEP));
        let room = inner.admit_file(origin, announced, announcement.is_bounded())?;
        let (file, scratch) = inner.root.scratch()?.create()?;
        let mut staged = Self {
            expected: expected.clone(),
            size,
            file: Arc::new(file),
            scratch,
            hasher: Hasher::new(expected.algorithm()),
            found: None,
            written: 0,
            room,
            store,
        };
        if least > 0 {
            staged.extend(least.saturating_add(STEP).min(size.unwrap_or(u64::MAX)))?;
        }
        Ok(staged)
    }

    /// Writes content that was hashed before.
    pub(super) fn whole(store: Store, origin: &Host, content: &Hashed) -> Result<Self, StageError> {
        let (digest, bytes) = (content.digest(), content.bytes());
        let length = bytes.len() as u64;
        let announcement = Announcement {
            size: Some(length),
            ..Announcement::default()
        };
        let mut staged = Self::begin(store, origin, digest, announcement)?;
        staged.extend(length)?;
        staged.write(bytes)?;
        staged.written = length;
        staged.found = Some(digest.clone());
        Ok(staged)
    }

    /// Returns the file; its first [`written`](Self::written) bytes may be read while more are appended.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Returns the number of bytes written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends. Blocks on the disk, so call it on a blocking thread.
    ///
    /// # Errors
    /// [`StageError::TooLong`] beyond the size that was announced, [`StageError::NoRoom`] where neither
    /// the limit nor the disk has room even after evicting.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        self.append_unhashed(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn append_unhashed(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        let end = self.written.saturating_add(bytes.len() as u64);
        if let Some(size) = self.size.filter(|size| end > *size) {
            return Err(StageError::TooLong { size });
        }
        if end > self.room.bytes() {
            self.extend(end - self.room.bytes())?;
        }
        self.write(bytes)?;
        self.found = None;
        self.written = end;
        Ok(())
    }

    /// Appends chunks on threads that may block, and hashes them while they are written. `on_written` is called as soon as
    /// they may be read, with the number of all bytes written.
    ///
    /// # Errors
    /// Those of [`append`](Self::append).
    pub async fn append_all(
        mut self,
        chunks: Vec<Bytes>,
        on_written: impl FnOnce(u64) + Send + 'static,
    ) -> Result<Self, StageError> {
        let length: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let hashing = (length >= HASHED_APART).then(|| {
            let next = Hasher::new(self.expected.algorithm());
            let mut hasher = std::mem::replace(&mut self.hasher, next);
            let chunks = chunks.clone();
            spawn_blocking(move || {
                for chunk in &chunks {
                    hasher.update(chunk);
                }
                hasher
            })
        });
        let is_apart = hashing.is_some();
        let write = move || {
            for chunk in &chunks {
                if is_apart {
                    self.append_unhashed(chunk)?;
                } else {
                    self.append(chunk)?;
                }
            }
            on_written(self.written);
            Ok(self)
        };
        let written: Result<Self, StageError> = spawn_blocking(write).await.map_err(Error::from)?;
        let mut staged = written?;
        if let Some(hashing) = hashing {
            staged.hasher = hashing.await.map_err(Error::from)?;
        }
        Ok(staged)
    }

    /// Compares digest and size of all that was appended.
    ///
    /// # Errors
    /// [`Mismatch`], after which [`commit`](Self::commit) fails too.
    pub fn verify(&mut self) -> Result<(), Mismatch> {
        let hasher = &self.hasher;
        let found = self.found.get_or_insert_with(|| hasher.clone().finish()).clone();
        if found == self.expected && self.size.is_none_or(|size| size == self.written) {
            return Ok(());
        }
        Err(Mismatch {
            expected: self.expected.clone(),
            found,
            size: self.written,
        })
    }

    /// Makes the blob durable and links it into repositories: after a crash it is whole or not there.
    pub async fn commit(mut self, repositories: &[Repository]) -> Result<Blob, StageError> {
        let repositories = repositories.to_vec();
        spawn_blocking(move || {
            self.verify().map_err(StageError::Mismatch)?;
            let store = self.store.clone();
            let digest = self.expected.clone();
            let links: Vec<_> = repositories
                .into_iter()
                .map(|repository| Link::Layer(repository, digest.clone()))
                .collect();
            store.inner.admit(self, &links, Vec::new())
        })
        .await
        .map_err(Error::from)?
    }

    /// Syncs the content and hands over its parts.
    pub(super) fn finish(self) -> Result<Finished, IoError> {
        if self.room.bytes() > self.written {
            // Gives back what was allocated behind the end.
            let cut = self.file.set_len(self.written);
            cut.map_err(on("cut", &self.scratch.0))?;
        }
        self.file.sync_all().map_err(on("sync", &self.scratch.0))?;
        Ok(Finished {
            digest: self.expected,
            blob: Blob {
                file: self.file,
                size: self.written,
                bytes: None,
            },
            room: self.room,
            scratch: self.scratch,
        })
    }

    /// Takes the room that is missing, and where there is more of it a step ahead: as much as was taken before.
    fn extend(&mut self, missing: u64) -> Result<(), StageError> {
        let from = self.room.bytes();
        let left = self.size.map_or(u64::MAX, |size| size.saturating_sub(from));
        let step = from.clamp(FIRST_STEP, STEP).min(left);
        let inner = &self.store.inner;
        if missing >= step || inner.grow(&mut self.room, step).is_err() {
            inner.grow(&mut self.room, missing)?;
        }
        self.allocate(from, self.room.bytes() - from)
    }

    /// Allocates space ahead, so that a full disk shows here and not in mid-blob. The length of the file is unchanged.
    fn allocate(&self, from: u64, bytes: u64) -> Result<(), StageError> {
        if bytes == 0 {
            return Ok(());
        }
        self.store.inner.with_room(bytes, || {
            match fallocate(&self.file, FallocateFlags::KEEP_SIZE, from, bytes) {
                // Not every file system can; the reservation stands.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
                Err(error) => Err(on("allocate room for", &self.scratch.0)(error.into())),
            }
        })
    }

    fn write(&self, bytes: &[u8]) -> Result<(), StageError> {
        self.store.inner.with_room(bytes.len() as u64, || {
            self.file
                .write_all_at(bytes, self.written)
                .map_err(on("write", &self.scratch.0))
        })
    }
}

/// A blob whose bytes are right and on the disk, in scratch.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) digest: Digest,
    pub(super) blob: Blob,
    room: Reservation,
    scratch: Unfinished,
}

impl Finished {
    /// Moves it to its place.
    pub(super) fn place(self, inner: &Inner) -> Result<Blob, IoError> {
        let to = inner.layout.blob_data(&self.digest);
        inner.root.scratch()?.ours.place(&self.scratch.0, &to)?;
        self.room.keep(self.blob.size);
        Ok(self.blob)
    }
}
