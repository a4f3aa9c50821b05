//! The locks that keep a root to one process: of the root itself, and of a file in it.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::store::durable::{IoError, on, remove};
use crate::store::no_links;

/// Why the root could not be locked.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another process holds it.
    Held,
    /// The lock file can't be made or locked.
    Io(IoError),
}

/// Locks a directory until the returned handle, or the process, is gone; a directory that `held` has locked stays locked.
/// Returns `None` on a file system that locks no directories.
pub(super) fn lock_directory(path: &Path, held: Option<File>) -> Result<Option<File>, LockError> {
    let directory = no_links::open_directory(path).map_err(|error| LockError::Io(on("open", path)(error)))?;
    if held
        .as_ref()
        .is_some_and(|held| no_links::is_same(held, &directory))
    {
        return Ok(held);
    }
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Err(LockError::Held),
        Err(_) => Ok(None),
    }
}

/// Locks a file until the returned handle, or the process, is gone.
pub(super) fn lock(path: &Path) -> Result<File, LockError> {
    let file = open(path).map_err(LockError::Io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(LockError::Held),
        Err(error) => Err(LockError::Io(on("lock", path)(error.into()))),
    }
}

/// Opens the lock file; whatever damage left in its place is replaced.
fn open(path: &Path) -> Result<File, IoError> {
    let open = || no_links::open(path, OFlags::WRONLY | OFlags::CREATE);
    match open() {
        Ok(file) if file.metadata().is_ok_and(|found| found.is_file()) => return Ok(file),
        Ok(_) => {}
        // A link, a directory, a FIFO or a socket.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOTDIR | Errno::ISDIR | Errno::NXIO)
            ) => {}
        Err(error) => return Err(on("open", path)(error)),
    }
    remove(path)?;
    open().map_err(on("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second lock is refused until the first is released.
    #[test]
    fn second_lock_is_refused_until_release() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(LockError::Held)));
        drop(first);
        assert!(lock(&path).is_ok());
    }

    /// The error for a lock that cannot be created names its path.
    #[test]
    fn impossible_lock_names_its_path() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("missing/lock");
        assert!(matches!(lock(&path), Err(LockError::Io(error)) if error.path == path));
    }
}
