//! One process per root.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::store::durable::{IoError, on};

/// Why the root could not be locked.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another process holds it.
    Held,
    /// The lock file can't be made or locked.
    Io(IoError),
}

/// Locks a file until the returned handle, or the process, is gone.
pub(super) fn lock(path: &Path) -> Result<File, LockError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| LockError::Io(on("open", path)(error)))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(LockError::Held),
        Err(error) => Err(LockError::Io(on("lock", path)(error.into()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_refused_until_the_first_lets_go() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(LockError::Held)));
        drop(first);
        assert!(lock(&path).is_ok());
    }

    #[test]
    fn a_lock_that_cannot_be_made_names_its_path() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("missing/lock");
        assert!(matches!(lock(&path), Err(LockError::Io(error)) if error.path == path));
    }
}
