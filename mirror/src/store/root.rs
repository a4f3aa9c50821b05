//! The storage root of one process: its locks, its owner file, and the scratch directory that all writes begin in.
//!
//! A user may empty the root, remove `_mirror` or mount another directory in its place while the server runs. Locks and
//! owner file are then written again before anything else is: content without an owner file would belong to the default
//! upstream of the next start, which may be another registry.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::name::Host;
use crate::store::default_host::migrate_default_host;
use crate::store::durable::{IoError, Scratch, on, remove, sync_dir};
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
        let directory = lock_directory(layout.root(), None)?;
        let ours = layout.ours();
        ours.create_dir_all(&layout.own()).map_err(LockError::Io)?;
        let file = lock(&layout.lock())?;
        let scratch = Scratch::sweep(layout.scratch(), ours).map_err(LockError::Io)?;
        migrate_default_host(layout, &scratch).map_err(LockError::Io)?;
        Ok(Self {
            layout: layout.clone(),
            scratch,
            locks: Mutex::new(RootLocks { directory, file }),
        })
    }

    /// Locks the root of a file system that has no room for the lock file.
    ///
    /// # Errors
    /// Another process has the root, or its locks do not show that none has it.
    pub(super) fn lock_when_full(layout: &Layout) -> Result<Vec<File>, LockError> {
        let directory = lock_directory(layout.root(), None)?;
        match (directory, lock(&layout.lock())) {
            (directory, Ok(file)) => Ok(directory.into_iter().chain([file]).collect()),
            (Some(directory), Err(LockError::Io(_))) => Ok(vec![directory]),
            (_, Err(refused)) => Err(refused),
        }
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

/// Returns the layout of a root in which each directory of the server can be.
pub(super) fn usable_layout(root: &Path, default_host: &Host) -> Result<Layout, IoError> {
    let layout = Layout::new(&real_root(root)?, default_host.clone());
    layout.refuse_obstacles()?;
    Ok(layout)
}

/// Returns the root without links, which only its own path may have; it is made where it is missing.
fn real_root(root: &Path) -> Result<PathBuf, IoError> {
    match fs::canonicalize(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(root).map_err(on("make", root))?;
            let real = fs::canonicalize(root).map_err(on("find", root))?;
            sync_dir(real.parent().unwrap_or(&real))?;
            Ok(real)
        }
        found => found.map_err(on("find", root)),
    }
}
