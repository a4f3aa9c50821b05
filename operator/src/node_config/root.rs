//! Files below a directory, written by a process that may have more permissions than the directory's users: no link
//! below the directory is followed, and no file is replaced in part.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use super::entry::InvalidEntry;

/// The name of a file that is being written. Runtimes read no such name.
const STAGED: &str = ".registry-mirror.tmp";
/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 4 << 20;
const MAX_NAME: usize = 255;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// NONBLOCK: a pipe in place of a file must not block.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A directory that stands for the root directory of a node.
#[derive(Debug)]
pub struct NodeRoot(OwnedFd);

impl NodeRoot {
    /// Opens a directory. Links in `path` itself are followed.
    ///
    /// # Errors
    /// The directory does not exist or can't be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        Ok(Self(fs::open(path, flags, Mode::empty())?))
    }

    /// Returns the content of a file, or `None` if it does not exist.
    ///
    /// # Errors
    /// The path has a link or another part that is not allowed, or does not name a regular file of at most 4 MiB.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let Some((directory, name)) = absent_as_none(self.parent(path, false))? else {
            return Ok(None);
        };
        read_at(&directory, name)
            .map_err(|error| InvalidEntry::describe(&directory, name, path, FileType::RegularFile, error))
    }

    /// Writes a file and the directories that it needs. A reader finds the previous file or the new one.
    ///
    /// # Errors
    /// Those of [`NodeRoot::read`], and `AlreadyExists` if there is a file and `replace` is false.
    pub fn write(&self, path: &str, content: &[u8], replace: bool) -> io::Result<()> {
        let (directory, name) = self.parent(path, true)?;
        stage(&directory, content)?;
        let placed = if replace {
            fs::renameat(&directory, STAGED, &directory, name)
        } else {
            let linked = fs::linkat(&directory, STAGED, &directory, name, AtFlags::empty());
            linked.and(fs::unlinkat(&directory, STAGED, AtFlags::empty()))
        };
        if placed.is_err() {
            // The error of the write counts, not that of the clean-up.
            let _ = fs::unlinkat(&directory, STAGED, AtFlags::empty());
        }
        placed?;
        Ok(fs::fsync(&directory)?)
    }

    /// Gives a file a second name in its directory, unless it has that name.
    ///
    /// # Errors
    /// Those of [`NodeRoot::read`], and `AlreadyExists` if another file has the name.
    pub fn link(&self, path: &str, name: &str) -> io::Result<()> {
        let (directory, from) = self.parent(path, false)?;
        check_name(name)?;
        match fs::linkat(&directory, from, &directory, name, AtFlags::empty()) {
            Err(Errno::EXIST) if read_at(&directory, from)? == read_at(&directory, name)? => Ok(()),
            linked => Ok(linked?),
        }
    }

    /// Renames a file or a directory in its directory, in place of another file or an empty directory.
    ///
    /// # Errors
    /// Those of [`NodeRoot::read`]. A link is renamed itself.
    pub fn rename(&self, path: &str, name: &str) -> io::Result<()> {
        let (directory, from) = self.parent(path, false)?;
        check_name(name)?;
        fs::renameat(&directory, from, &directory, name)?;
        Ok(fs::fsync(&directory)?)
    }

    /// Removes a file, if it exists.
    ///
    /// # Errors
    /// Those of [`NodeRoot::read`]. A link is removed itself.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let Some((directory, name)) = absent_as_none(self.parent(path, false))? else {
            return Ok(());
        };
        absent_as_none(fs::unlinkat(&directory, name, AtFlags::empty()))?;
        Ok(())
    }

    /// Creates a directory and its parents, and returns whether the directory did not exist.
    ///
    /// # Errors
    /// Those of [`NodeRoot::read`].
    pub fn create_directory(&self, path: &str) -> io::Result<bool> {
        let (parent, name) = self.parent(path, true)?;
        match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                open_directory(&parent, path, false)?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// The directory is not empty, or can't be removed.
    pub fn remove_directory(&self, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path, false)?;
        Ok(fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes the file that a killed process left unfinished in a directory.
    ///
    /// # Errors
    /// Those of [`NodeRoot::read`].
    pub fn remove_staged(&self, directory: &str) -> io::Result<()> {
        self.remove(&format!("{directory}/{STAGED}"))
    }

    /// Returns the names in a directory, or `None` if the directory does not exist. Names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// Those of [`NodeRoot::read`].
    pub fn names(&self, path: &str) -> io::Result<Option<Vec<String>>> {
        let Some((parent, _)) = absent_as_none(self.parent(path, false))? else {
            return Ok(None);
        };
        let Some(directory) = absent_as_none(open_directory(&parent, path, false))? else {
            return Ok(None);
        };
        names(&directory).map(Some)
    }

    /// Returns the names in the directory itself.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn top_names(&self) -> io::Result<Vec<String>> {
        names(&self.0)
    }

    /// Opens the directory of a file, and returns it with the name of the file.
    fn parent<'a>(&self, path: &'a str, create: bool) -> io::Result<(OwnedFd, &'a str)> {
        if !path.split('/').all(is_name) {
            let message = format!("{path:?} is not a path below the directory");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut directory = self.0.try_clone()?;
        for (end, _) in path.match_indices('/') {
            directory = open_directory(&directory, &path[..end], create)?;
        }
        Ok((directory, last_name(path)))
    }
}

fn names(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_str().map(str::to_owned);
        names.extend(name.ok().filter(|name| is_name(name)));
    }
    names.sort();
    Ok(names)
}

/// Returns the name of a path's last entry.
fn last_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Returns whether a text is the name of one file in a directory.
fn is_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.len() <= MAX_NAME && !text.contains(['/', '\0'])
}

fn check_name(name: &str) -> io::Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let message = format!("{name:?} is not the name of a file");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// Opens the directory at the end of a path in its parent.
fn open_directory(parent: &OwnedFd, path: &str, create: bool) -> io::Result<OwnedFd> {
    let name = last_name(path);
    let open = || {
        let opened = fs::openat(parent, name, DIRECTORY, Mode::empty());
        opened.map_err(|error| InvalidEntry::describe(parent, name, path, FileType::Directory, error.into()))
    };
    match open() {
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            match fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(error) => Err(error.into()),
            }
        }
        opened => opened,
    }
}

fn read_at(directory: &OwnedFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = absent_as_none(fs::openat(directory, name, FILE, Mode::empty()))? else {
        return Ok(None);
    };
    let stat = fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "is not a regular file",
        ));
    }
    let mut content = Vec::new();
    File::from(file).take(MAX_SIZE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_SIZE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "is larger than 4 MiB",
        ));
    }
    Ok(Some(content))
}

/// Writes the content to the disk under a name that no runtime reads.
fn stage(directory: &OwnedFd, content: &[u8]) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o644);
    let opened = match fs::openat(directory, STAGED, NEW_FILE, mode) {
        // A process that was killed left it.
        Err(Errno::EXIST) => {
            fs::unlinkat(directory, STAGED, AtFlags::empty())?;
            fs::openat(directory, STAGED, NEW_FILE, mode)
        }
        opened => opened,
    };
    let file = opened?;
    // Runtimes may run as other users; the umask of an administrator may be strict.
    fs::fchmod(&file, mode)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    file.sync_all()
}

fn absent_as_none<T, E: Into<io::Error>>(result: Result<T, E>) -> io::Result<Option<T>> {
    match result.map_err(Into::into) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;
    use test_case::test_case;

    use super::*;

    fn root() -> (TempDir, NodeRoot) {
        let directory = tempfile::tempdir().unwrap();
        let root = NodeRoot::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn written_file_reads_back_and_is_readable() {
        let (directory, root) = root();
        root.write("etc/a/hosts.toml", b"one", false).unwrap();
        assert_eq!(root.read("etc/a/hosts.toml").unwrap().unwrap(), b"one");
        let file = directory.path().join("etc/a/hosts.toml");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        root.write("etc/a/hosts.toml", b"two", true).unwrap();
        assert_eq!(std::fs::read(file).unwrap(), b"two");
        let left = std::fs::read_dir(directory.path().join("etc/a")).unwrap();
        assert_eq!(left.count(), 1);
    }

    #[test]
    fn existing_file_is_not_replaced_unasked() {
        let (_directory, root) = root();
        root.write("a", b"one", false).unwrap();
        let error = root.write("a", b"two", false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(root.read("a").unwrap().unwrap(), b"one");
    }

    #[test]
    fn staged_file_of_a_killed_process_is_replaced() {
        let (directory, root) = root();
        std::fs::write(directory.path().join(STAGED), "half").unwrap();
        root.write("a", b"whole", false).unwrap();
        assert_eq!(root.read("a").unwrap().unwrap(), b"whole");
        assert!(!directory.path().join(STAGED).exists());
    }

    #[test_case(""; "empty")]
    #[test_case("/etc/passwd"; "absolute")]
    #[test_case("../a"; "parent")]
    #[test_case("a/../../b"; "parent inside")]
    #[test_case("a/./b"; "dot")]
    #[test_case("a//b"; "empty part")]
    #[test_case("a/"; "no name")]
    #[test_case("a\0b"; "zero byte")]
    #[test_case(&"a".repeat(256); "long name")]
    fn path_outside_is_refused(path: &str) {
        let (directory, root) = root();
        for error in [
            root.read(path).unwrap_err(),
            root.write(path, b"", true).unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    /// A link to a directory and one to a file, at each place where the path has a part.
    #[test]
    fn links_are_never_followed() {
        let (directory, root) = root();
        let elsewhere = tempfile::tempdir().unwrap();
        let secret = elsewhere.path().join("hosts.toml");
        std::fs::write(&secret, "secret").unwrap();
        symlink(elsewhere.path(), directory.path().join("linked")).unwrap();
        std::fs::create_dir(directory.path().join("real")).unwrap();
        symlink(&secret, directory.path().join("real/hosts.toml")).unwrap();
        for path in ["linked/hosts.toml", "linked/new", "linked/a/b", "real/hosts.toml"] {
            if path != "linked/new" && path != "linked/a/b" {
                assert!(root.read(path).is_err(), "{path}");
            }
            assert!(root.write(path, b"mine", false).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
        // A replaced link is replaced itself, not its target.
        root.write("real/hosts.toml", b"mine", true).unwrap();
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
    }

    #[test]
    fn staged_name_as_a_link_is_not_followed() {
        let (directory, root) = root();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path().join("made"), directory.path().join(STAGED)).unwrap();
        root.write("a", b"mine", false).unwrap();
        assert!(!elsewhere.path().join("made").exists());
        assert!(directory.path().join("a").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn pipe_and_directory_are_no_files() {
        let (directory, root) = root();
        let pipe = directory.path().join("pipe");
        fs::mknodat(fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        for path in ["pipe", "directory"] {
            assert!(root.read(path).is_err(), "{path}");
        }
        assert!(root.write("directory", b"", true).is_err());
        assert_eq!(
            root.read("pipe/a").unwrap_err().kind(),
            io::ErrorKind::NotADirectory
        );
    }
}
