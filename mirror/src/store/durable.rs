//! Writes that a power cut can't take back or leave in halves.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::store::no_links;

/// A file operation that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct IoError {
    /// The operation, as a verb.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The error of the operating system.
    pub source: io::Error,
}

impl IoError {
    /// True where room on the file system, or in the quota, ran out.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded
        )
    }
}

/// Adds the path to a failure.
pub(super) fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IoError {
    move |source| IoError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// `IsADirectory` for anything else in its place (a FIFO, a device, a socket, a link).
pub(super) fn open(path: &Path) -> io::Result<File> {
    let no_file = || io::Error::from(ErrorKind::IsADirectory);
    match no_links::open(path, OFlags::RDONLY) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(no_file()),
        // A socket.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => Err(no_file()),
        Err(error) => Err(error),
    }
}

/// Reads a file of at most `most` bytes, opened as [`open`] does.
///
/// # Errors
/// `InvalidData` for a longer one.
pub(super) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let too_long = || io::Error::new(ErrorKind::InvalidData, "the file is too long");
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Err(too_long());
    }
    // Exactly, as caches keep the bytes: growing would make room for twice as many.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_long());
    }
    Ok(bytes)
}

/// Lists a directory; a link in its path is `NotADirectory`.
pub(super) fn list(directory: &Path) -> io::Result<fs::ReadDir> {
    no_links::open_directory(directory)?;
    fs::read_dir(directory)
}

/// Makes what was renamed into, made in or removed from a directory durable.
pub(super) fn sync_dir(directory: &Path) -> Result<(), IoError> {
    no_links::open_directory(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(on("sync", directory))
}

/// The number of attempts for steps that a concurrent prune of empty directories may undo.
const TRIES: usize = 4;

/// The directories that belong to this server: an obstacle strictly below them is damage, and is replaced. Elsewhere
/// (at the storage root, above it, next to it) it may be user data; the operation fails instead of replacing it.
#[derive(Debug)]
pub(super) struct Ours(pub(super) Vec<PathBuf>);

impl Ours {
    fn covers(&self, path: &Path) -> bool {
        let below = |base: &PathBuf| path.starts_with(base) && path != base;
        self.0.iter().any(below)
    }

    /// Makes a directory with all above it; each new entry is durable when this returns.
    pub(super) fn create_dir_all(&self, directory: &Path) -> Result<(), IoError> {
        let mut tries = 0..TRIES;
        loop {
            let Err(error) = no_links::entry(directory).and_then(|entry| entry.make_directory()) else {
                return directory.parent().map_or(Ok(()), sync_dir);
            };
            match (error.kind(), directory.parent()) {
                (ErrorKind::AlreadyExists, _) if no_links::open_directory(directory).is_ok() => return Ok(()),
                _ if tries.next().is_none() => return Err(on("make", directory)(error)),
                // Damage: a file where a directory has to be.
                (ErrorKind::AlreadyExists, _) if self.covers(directory) => {
                    remove(directory)?;
                }
                (ErrorKind::NotFound | ErrorKind::NotADirectory, Some(parent)) => {
                    self.create_dir_all(parent)?;
                }
                _ => return Err(on("make", directory)(error)),
            }
        }
    }

    /// Moves a file that is synced already to its place, making the directories and replacing what is there.
    pub(super) fn place(&self, from: &Path, to: &Path) -> Result<(), IoError> {
        let directory = to.parent().unwrap_or(to);
        self.create_dir_all(directory)?;
        let mut tries = 0..TRIES;
        loop {
            let moved = no_links::entry(to).and_then(|to| {
                no_links::entry(from)?.rename(&to)?;
                Ok(to.directory)
            });
            let error = match moved {
                Ok(directory) => return directory.sync_all().map_err(on("sync", to)),
                Err(error) => error,
            };
            match error.kind() {
                _ if tries.next().is_none() => return Err(on("rename to", to)(error)),
                // Damage: a directory where the file has to be.
                ErrorKind::IsADirectory if self.covers(to) => {
                    remove(to)?;
                }
                ErrorKind::NotFound if from.exists() => self.create_dir_all(directory)?,
                _ => return Err(on("rename to", to)(error)),
            }
        }
    }
}

/// Removes a file, or whatever damage left in its place. Returns `true` if something was there.
pub(super) fn remove(path: &Path) -> Result<bool, IoError> {
    match no_links::entry(path).and_then(|entry| entry.remove()) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(_) if no_links::open_directory(path).is_ok() => fs::remove_dir_all(path)
            .map(|()| true)
            .map_err(on("remove", path)),
        Err(error) => Err(on("remove", path)(error)),
    }
}

/// Removes a directory and those above it that are empty, up to and without `stop`.
pub(super) fn prune(directory: &Path, stop: &Path) {
    let mut here = directory;
    let remove = |path| no_links::entry(path).and_then(|entry| entry.remove_directory());
    while here != stop && here.starts_with(stop) && remove(here).is_ok() {
        match here.parent() {
            Some(parent) => here = parent,
            None => return,
        }
    }
}

/// Unfinished files: all in one directory, which is swept at start.
#[derive(Debug)]
pub(super) struct Scratch {
    directory: PathBuf,
    pub(super) ours: Ours,
    next: AtomicU64,
}

impl Scratch {
    /// Creates an empty scratch directory. The caller holds the lock of the root, so leftovers have no owner.
    pub(super) fn sweep(directory: PathBuf, ours: Ours) -> Result<Self, IoError> {
        remove(&directory)?;
        ours.create_dir_all(&directory)?;
        Ok(Self {
            directory,
            ours,
            next: AtomicU64::new(0),
        })
    }

    /// A new file, open for reading and writing.
    pub(super) fn create(&self) -> Result<(File, Unfinished), IoError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(number.to_string());
        let create = || no_links::open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        let created = match create() {
            // The root was cleared meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.ours.create_dir_all(&self.directory)?;
                create()
            }
            created => created,
        };
        Ok((created.map_err(on("create", &path))?, Unfinished(path)))
    }

    /// Writes a small file whole: staged, synced, renamed.
    pub(super) fn write(&self, to: &Path, bytes: &[u8]) -> Result<(), IoError> {
        let (mut file, unfinished) = self.create()?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(on("write", &unfinished.0))?;
        self.ours.place(&unfinished.0, to)
    }
}

/// A scratch file, removed on drop unless it was renamed by then.
#[derive(Debug)]
pub(super) struct Unfinished(pub(super) PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already once it was renamed; what can't be removed is swept at the next start.
        let _ = remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(root: &Path) -> Scratch {
        Scratch::sweep(root.join("scratch"), Ours(vec![root.to_owned()])).unwrap()
    }

    /// A write creates its directories and leaves nothing in the scratch directory.
    #[test]
    fn write_creates_directories_and_no_leftovers() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("a/b/c");
        scratch(root.path()).write(&to, b"x").unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"x");
        assert_eq!(fs::read_dir(root.path().join("scratch")).unwrap().count(), 0);
    }

    /// A write replaces a directory, or a file, that is in its way.
    #[test]
    fn write_replaces_file_or_directory_in_place() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("a/b");
        fs::create_dir_all(to.join("deep")).unwrap();
        scratch(root.path()).write(&to, b"x").unwrap();
        scratch(root.path()).write(&to.join("c"), b"y").unwrap();
        assert_eq!(fs::read(to.join("c")).unwrap(), b"y");
    }

    #[test]
    fn obstacle_outside_own_directories_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let ours = Ours(vec![root.path().join("ours")]);
        let from = root.path().join("from");
        fs::write(&from, "new").unwrap();
        for (file, directory) in [
            ("file", "file"),
            ("file", "file/a/b"),
            ("ours", "ours"),
            ("ours", "ours/a"),
        ] {
            let file = root.path().join(file);
            fs::write(&file, "kept").unwrap();
            ours.create_dir_all(&root.path().join(directory)).unwrap_err();
            ours.place(&from, &root.path().join(directory).join("x"))
                .unwrap_err();
            assert_eq!(fs::read(&file).unwrap(), b"kept", "{directory}");
        }
        fs::create_dir_all(root.path().join("directory/deep")).unwrap();
        ours.place(&from, &root.path().join("directory")).unwrap_err();
        assert!(root.path().join("directory/deep").exists());
    }

    #[test]
    fn a_sweep_removes_leftovers() {
        let root = tempfile::tempdir().unwrap();
        scratch(root.path()).create().unwrap();
        scratch(root.path());
        assert_eq!(fs::read_dir(root.path().join("scratch")).unwrap().count(), 0);
    }

    #[test]
    fn prune_stops_at_non_empty_and_given_directory() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        fs::write(root.path().join("a/keep"), "").unwrap();
        prune(&root.path().join("a/b/c"), root.path());
        assert!(!root.path().join("a/b").exists());
        fs::remove_file(root.path().join("a/keep")).unwrap();
        prune(&root.path().join("a"), root.path());
        assert!(root.path().exists() && !root.path().join("a").exists());
    }

    /// Removing returns true if a file or directory was there.
    #[test]
    fn remove_reports_presence() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("d/e")).unwrap();
        assert!(remove(&root.path().join("d")).unwrap());
        assert!(!remove(&root.path().join("d")).unwrap());
    }
}
