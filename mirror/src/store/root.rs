//! The storage root of one process: its locks, its owner file, and the scratch directory that all writes begin in.
//!
//! A user may empty the root, remove `_mirror` or mount another directory in its place while the server runs. Locks and
//! owner file are then written again before anything else is: content without an owner file would belong to the default
//! upstream of the next start, which may be another registry.

use std::fs::File;

use parking_lot::Mutex;

use crate::store::default_host::migrate_default_host;
use crate::store::durable::{IoError, Scratch, on, remove};
use crate::store::lock::{LockError, lock, lock_directory};
use crate::store::no_links;
use crate::store::path::Layout;

/// A storage root that this process has locked.
#[derive(Debug)]
pub(super) struct StorageRoot {
    layout: Layout,
    scratch: Scratch,
    locks: Mutex<RootLocks>,
}

/// The open files whose locks keep other processes out.
#[derive(Debug)]
struct RootLocks {
    /// `None` on a file system that locks no directories.
    directory: Option<File>,
    file: File,
}

impl StorageRoot {
    /// Locks the root, removes what an earlier process left unfinished, and makes the unprefixed repositories those of
    /// the default upstream.
    pub(super) fn open(layout: &Layout) -> Result<Self, LockError> {
        let ours = layout.ours();
        ours.create_dir_all(&layout.own()).map_err(LockError::Io)?;
        let directory = lock_directory(layout.root(), None)?;
        let file = lock(&layout.lock())?;
        let scratch = Scratch::sweep(layout.scratch(), ours).map_err(LockError::Io)?;
        migrate_default_host(layout, &scratch).map_err(LockError::Io)?;
        Ok(Self {
            layout: layout.clone(),
            scratch,
            locks: Mutex::new(RootLocks { directory, file }),
        })
    }

    /// Returns the scratch directory, after the locks and the owner file are in place.
    ///
    /// # Errors
    /// Another process has the root by now, or the files cannot be written: nothing may be written to the root then.
    pub(super) fn scratch(&self) -> Result<&Scratch, IoError> {
        let mut locks = self.locks.lock();
        let has_owner = no_links::file_metadata(&self.layout.owner()).is_ok();
        if !has_owner || !no_links::is_same_file(&self.layout.lock(), &locks.file) {
            self.renew(&mut locks)?;
        }
        Ok(&self.scratch)
    }

    fn renew(&self, locks: &mut RootLocks) -> Result<(), IoError> {
        let path = self.layout.lock();
        self.scratch.ours.create_dir_all(&self.layout.own())?;
        let refused = |refused| match refused {
            LockError::Io(error) => error,
            LockError::Held => on("lock", &path)(std::io::Error::other(
                "another process uses the storage root: stop one of them",
            )),
        };
        locks.directory = lock_directory(self.layout.root(), locks.directory.take()).map_err(refused)?;
        let file = if no_links::is_same_file(&path, &locks.file) {
            None
        } else {
            let is_of_another_root = path.exists();
            let file = lock(&path).map_err(refused)?;
            if is_of_another_root {
                // Its index lacks what this process adds; the next start builds a new one from the files.
                remove(&self.layout.index())?;
            }
            Some(file)
        };
        migrate_default_host(&self.layout, &self.scratch)?;
        // Kept only now, as the whole is tried again after a failure.
        if let Some(file) = file {
            let root = self.layout.root().display();
            tracing::warn!(%root, "the storage root was emptied or replaced while in use: its lock and owner file are written again");
            locks.file = file;
        }
        Ok(())
    }
}
