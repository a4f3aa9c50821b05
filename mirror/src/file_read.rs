//! Reads whole files that a user names: regular files only, up to a limit, and without waiting for a writer.
//!
//! Links are followed, as the volumes of Kubernetes consist of links. Reading blocks: callers run it off the threads that
//! serve clients.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The most bytes of the configuration, or of a file that it names. Kubernetes limits a ConfigMap or a Secret to 1 MiB.
pub const MAX_FILE: u64 = 4 << 20;
/// The reads of a file that changes meanwhile.
const TRIES: usize = 3;
/// The coarsest timestamp granularity of file systems: two edits within it may leave equal times.
const TICK: Duration = Duration::from_secs(2);

/// The reason why a file is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unsuitable {
    #[error("it is {0}, not a regular file")]
    Kind(&'static str),
    #[error("it is larger than {}, the limit for such a file", size(*.0))]
    TooLarge(u64),
    #[error("it changed while it was read; a new version has to be put in its place by a rename")]
    Changing,
}

/// The identity of a version of a file: device, inode, size, and the times of the last change of its content and its
/// metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    file: [u64; 3],
    times: [i64; 4],
}

impl FileStamp {
    /// Returns the stamp of the file at a path, after links; `None` if there is none.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::from)
    }

    /// Returns `false` while one more edit could leave the same stamp, so that only the content shows a change.
    pub(crate) fn is_settled(&self) -> bool {
        let [mtime, _, ctime, _] = self.times.map(|time| u64::try_from(time).unwrap_or_default());
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(mtime.max(ctime).saturating_add(1));
        SystemTime::now()
            .duration_since(changed)
            .is_ok_and(|age| age > TICK)
    }
}

impl From<&Metadata> for FileStamp {
    fn from(m: &Metadata) -> Self {
        Self {
            file: [m.dev(), m.ino(), m.size()],
            times: [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()],
        }
    }
}

/// Returns `true` for a failure that says nothing about the file, such as too many open files or a disk that fails: the
/// content that was read before is still the best that there is.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    const TRANSIENT: [Errno; 14] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::IO,
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::AGAIN,
        Errno::INTR,
        Errno::BUSY,
        Errno::STALE,
        Errno::NOTCONN,
        Errno::TIMEDOUT,
        Errno::REMOTEIO,
        Errno::NXIO,
        Errno::NODEV,
    ];
    let errno = Errno::from_io_error(error);
    error.kind() == ErrorKind::ResourceBusy || errno.is_some_and(|errno| TRANSIENT.contains(&errno))
}

/// Returns the content of a regular file of at most `limit` bytes. Blocks.
///
/// A pipe is read too, if the path names a descriptor of this process, such as `/dev/stdin`.
///
/// # Errors
/// A path that cannot be opened, anything but a regular file, a larger file, or one that changes while it is read. The
/// error does not name the path.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    if is_own_pipe(path) {
        return read_bounded(&mut File::open(path)?, limit);
    }
    read_version(path, limit, || ())
}

/// Returns one version of a file; `meanwhile` runs after each read.
fn read_version(path: &Path, limit: u64, mut meanwhile: impl FnMut()) -> io::Result<Vec<u8>> {
    for _ in 0..TRIES {
        let mut file = open(path)?;
        let before = file.metadata()?;
        if before.len() > limit {
            return Err(Unsuitable::TooLarge(limit).into());
        }
        let bytes = read_bounded(&mut file, limit)?;
        meanwhile();
        if FileStamp::from(&before) == FileStamp::from(&file.metadata()?) {
            return Ok(bytes);
        }
    }
    Err(Unsuitable::Changing.into())
}

/// Returns the content of a file as text; see [`read`].
///
/// # Errors
/// As [`read`], and for a file that is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    text(read(path, limit)?)
}

/// Returns the text that a reader holds, of at most `limit` bytes. Blocks.
///
/// # Errors
/// The reader fails, has more bytes, or bytes that are not UTF-8.
pub fn read_text_from(reader: &mut impl Read, limit: u64) -> io::Result<String> {
    text(read_bounded(reader, limit)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error.utf8_error()))
}

fn read_bounded(reader: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Unsuitable::TooLarge(limit).into());
    }
    Ok(bytes)
}

/// Returns a number of bytes in the largest unit that it is a multiple of.
fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

/// Opens a regular file. The kind is checked before, because opening a device can have effects, and after, because
/// another file may be in its place by then.
fn open(path: &Path) -> io::Result<File> {
    check_kind(fs::metadata(path)?.file_type())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    check_kind(file.metadata()?.file_type())?;
    Ok(file)
}

fn check_kind(found: FileType) -> io::Result<()> {
    let kind = match found {
        found if found.is_file() => return Ok(()),
        found if found.is_dir() => "a directory",
        found if found.is_fifo() => "a FIFO",
        found if found.is_socket() => "a socket",
        _ => "a device",
    };
    Err(Unsuitable::Kind(kind).into())
}

/// Returns `true` for a pipe that this process has open, as shells make them for `<(command)`.
fn is_own_pipe(path: &Path) -> bool {
    let is_descriptor = path.starts_with("/dev/fd") || path == Path::new("/dev/stdin");
    is_descriptor && fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

impl From<Unsuitable> for io::Error {
    fn from(reason: Unsuitable) -> Self {
        let kind = match reason {
            Unsuitable::Kind(_) => ErrorKind::InvalidInput,
            Unsuitable::TooLarge(_) => ErrorKind::FileTooLarge,
            Unsuitable::Changing => ErrorKind::ResourceBusy,
        };
        Self::new(kind, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn refusal(path: &Path) -> String {
        read(path, MAX_FILE).unwrap_err().to_string()
    }

    /// Only regular files are read; nothing waits for the writer of a FIFO.
    #[test]
    fn only_regular_files_are_read() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), Mode::RWXU).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink(at("fifo"), at("link")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        fs::write(at("file"), "x").unwrap();
        symlink(at("file"), at("good")).unwrap();
        assert_eq!(refusal(&at("fifo")), "it is a FIFO, not a regular file");
        assert_eq!(refusal(&at("link")), "it is a FIFO, not a regular file");
        assert_eq!(refusal(&at("socket")), "it is a socket, not a regular file");
        assert_eq!(refusal(root.path()), "it is a directory, not a regular file");
        assert_eq!(
            refusal(Path::new("/dev/zero")),
            "it is a device, not a regular file"
        );
        assert!(refusal(&at("loop")).contains("symbolic links"));
        assert_eq!(read(&at("good"), MAX_FILE).unwrap(), b"x");
    }

    /// A file above the limit is refused with the limit, also one without a size such as those of `/proc`.
    #[test]
    fn file_above_limit_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "abc").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"abc");
        assert_eq!(read(&path, 2).unwrap_err().kind(), ErrorKind::FileTooLarge);
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(
            refusal(&path),
            "it is larger than 4 MiB, the limit for such a file"
        );
        let small = read(&path, 4096).unwrap_err().to_string();
        assert_eq!(small, "it is larger than 4 KiB, the limit for such a file");
        let status = Path::new("/proc/self/status");
        assert!(read(status, MAX_FILE).unwrap().len() > 100);
        assert_eq!(read(status, 100).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    /// A file that changes while it is read is read again, and refused if it changes each time.
    #[test]
    fn changing_file_is_read_again_or_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "a").unwrap();
        let mut edits = 0;
        let mut edit_up_to = |most: usize| {
            read_version(&path, MAX_FILE, || {
                if edits < most {
                    edits += 1;
                    fs::write(&path, "b".repeat(edits + 1)).unwrap();
                }
            })
        };
        assert_eq!(edit_up_to(1).unwrap(), b"bb");
        assert_eq!(edit_up_to(100).unwrap_err().kind(), ErrorKind::ResourceBusy);
    }

    /// A failure of the process or the disk is transient, and one of the file is not.
    #[test]
    fn failures_of_files_are_not_transient() {
        for (errno, expected) in [
            (Errno::MFILE, true),
            (Errno::IO, true),
            (Errno::STALE, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
            (Errno::ISDIR, false),
            (Errno::LOOP, false),
        ] {
            assert_eq!(is_transient(&errno.into()), expected, "{errno}");
        }
        assert!(is_transient(&Unsuitable::Changing.into()));
        assert!(!is_transient(&Unsuitable::TooLarge(1).into()));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let read = |bytes: &[u8]| read_text_from(&mut &*bytes, 10).map_err(|error| error.kind());
        assert_eq!(read(b"abc"), Ok("abc".to_owned()));
        assert_eq!(read(b"\xff"), Err(ErrorKind::InvalidData));
        assert_eq!(read(b"01234567890"), Err(ErrorKind::FileTooLarge));
    }
}
