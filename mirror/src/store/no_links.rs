//! Opens files and directories without following a symbolic link at any part of a path.
//!
//! The storage root itself may be a link: the store resolves it once. A link below the root leads out of the cache, to
//! files that are no content and must not be written.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `false` once the kernel refused `openat2` (before Linux 5.6, and in gVisor).
static HAS_OPENAT2: AtomicBool = AtomicBool::new(true);

/// A directory, and the name of an entry in it.
pub(super) struct PathEntry<'p> {
    pub(super) directory: File,
    pub(super) name: &'p Path,
}

/// Opens a path, with mode 0666 where it is created. Waits for nothing: a FIFO without a writer opens at once.
///
/// # Errors
/// For a link in the path `NotADirectory` where a directory is opened, else `IsADirectory`: something else is in the place
/// of the file.
pub(super) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let mut flags = flags | OFlags::CLOEXEC;
    // With `PATH` nothing is opened that could be waited for, and the kernel refuses the flags.
    if !flags.contains(OFlags::PATH) {
        flags |= OFlags::NOCTTY | OFlags::NONBLOCK;
    }
    let opened = if HAS_OPENAT2.load(Ordering::Relaxed) {
        openat2(path, flags)
    } else {
        walk(path, flags)
    };
    match opened {
        Ok(file) => Ok(file.into()),
        Err(Errno::LOOP) if flags.contains(OFlags::DIRECTORY) => Err(Errno::NOTDIR.into()),
        Err(Errno::LOOP) => Err(Errno::ISDIR.into()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory.
pub(super) fn open_directory(path: &Path) -> io::Result<File> {
    // That of a relative path of one name.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    open(path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the directory that a path lies in.
pub(super) fn entry(path: &Path) -> io::Result<PathEntry<'_>> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(PathEntry {
            directory: open_directory(parent)?,
            name: Path::new(name),
        }),
        _ => Err(ErrorKind::InvalidInput.into()),
    }
}

/// Returns the metadata of a regular file.
///
/// # Errors
/// `IsADirectory` for anything else.
pub(super) fn file_metadata(path: &Path) -> io::Result<Metadata> {
    let found = open(path, OFlags::PATH | OFlags::NOFOLLOW)?.metadata()?;
    if found.is_file() {
        Ok(found)
    } else {
        Err(ErrorKind::IsADirectory.into())
    }
}

/// Returns `true` if a path is that of an open file.
pub(super) fn is_same_file(path: &Path, file: &File) -> bool {
    is_same_number(file_metadata(path), file.metadata())
}

/// Returns `true` if two handles are of the same file or directory.
pub(super) fn is_same(one: &File, other: &File) -> bool {
    is_same_number(one.metadata(), other.metadata())
}

fn is_same_number(one: io::Result<Metadata>, other: io::Result<Metadata>) -> bool {
    let number = |found: Metadata| (found.dev(), found.ino());
    matches!((one.map(number), other.map(number)), (Ok(one), Ok(other)) if one == other)
}

impl PathEntry<'_> {
    /// Makes a directory.
    pub(super) fn make_directory(&self) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(
            &self.directory,
            self.name,
            Mode::from_raw_mode(0o777),
        )?)
    }

    /// Removes a file, or a link itself.
    pub(super) fn remove(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.directory,
            self.name,
            AtFlags::empty(),
        )?)
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.directory,
            self.name,
            AtFlags::REMOVEDIR,
        )?)
    }

    /// Moves this entry to another place; a file or link there is replaced.
    pub(super) fn rename(&self, to: &PathEntry<'_>) -> io::Result<()> {
        let (from_name, to_name) = (self.name, to.name);
        Ok(rustix::fs::renameat(
            &self.directory,
            from_name,
            &to.directory,
            to_name,
        )?)
    }
}

fn openat2(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(CWD, path, flags, mode(flags), resolve) {
        Err(Errno::NOSYS) => {
            HAS_OPENAT2.store(false, Ordering::Relaxed);
            walk(path, flags)
        }
        // A seccomp profile without the call, or the file itself, may be the cause: the walk finds out.
        Err(Errno::PERM) => walk(path, flags),
        opened => opened,
    }
}

/// Opens part by part.
fn walk(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let start = if path.is_absolute() { "/" } else { "." };
    let mut here = rustix::fs::open(start, step, Mode::empty())?;
    let mut parts = path
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rustix::fs::openat(&here, part.as_os_str(), flags | OFlags::NOFOLLOW, mode(flags));
        }
        here = rustix::fs::openat(&here, part.as_os_str(), step, Mode::empty())?;
    }
    rustix::fs::openat(&here, ".", flags, mode(flags))
}

/// Returns the mode of a new file; the kernel refuses one where none is made.
fn mode(flags: OFlags) -> Mode {
    if flags.contains(OFlags::CREATE) {
        Mode::from_raw_mode(0o666)
    } else {
        Mode::empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use test_case::test_case;

    type Open = fn(&Path, OFlags) -> Result<OwnedFd, Errno>;

    #[test_case(openat2; "by openat2")]
    #[test_case(walk; "part by part")]
    fn links_are_followed_at_no_part_of_a_path(open: Open) {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        symlink(root.join("a/b/file"), root.join("a/link")).unwrap();
        symlink(root.join("a"), root.join("to")).unwrap();
        let is_open = |path: &str| open(&root.join(path), OFlags::RDONLY).is_ok();
        assert!(is_open("a/b/file") && is_open("a/b"));
        for path in ["a/link", "to/b/file", "to", "a/missing"] {
            assert!(!is_open(path), "{path}");
        }
        let made = open(
            &root.join("a/new"),
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
        );
        assert!(made.is_ok() && root.join("a/new").is_file());
    }

    #[test]
    fn only_regular_files_have_metadata() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("file"), "abc").unwrap();
        symlink(path("file"), path("link")).unwrap();
        symlink("/dev/zero", path("zero")).unwrap();
        assert_eq!(file_metadata(&path("file")).unwrap().len(), 3);
        for name in ["link", "zero", "missing", "."] {
            assert!(file_metadata(&path(name)).is_err(), "{name}");
        }
    }
}
