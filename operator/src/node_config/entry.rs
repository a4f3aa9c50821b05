//! Errors that name the entry of a directory that is in the way.

use std::{io, os::fd::OwnedFd};

use rustix::fs::{self, AtFlags, FileType};

/// An entry of another type than a path needs, or a file that is too large.
#[derive(Debug, thiserror::Error)]
#[error("/{path} {fault}")]
pub struct InvalidEntry {
    path: String,
    fault: &'static str,
}

impl InvalidEntry {
    /// Returns whether an error is of this type.
    pub fn is_in(error: &io::Error) -> bool {
        let inner = error.get_ref();
        inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<Self>)
    }

    /// Adds the path of an entry to an error for which its type or its size is the cause. Other errors stay.
    pub(super) fn describe(
        directory: &OwnedFd,
        name: &str,
        path: &str,
        needed: FileType,
        error: io::Error,
    ) -> io::Error {
        let found = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = found.map(|stat| FileType::from_raw_mode(stat.st_mode));
        let fault = match found {
            Ok(_) if error.kind() == io::ErrorKind::FileTooLarge => "is larger than 4 MiB",
            Ok(found) if found == needed => return error,
            Ok(FileType::Symlink) => "is a symbolic link, not followed",
            Ok(FileType::Directory) => "is a directory, not a file",
            Ok(_) if needed == FileType::Directory => "is not a directory",
            Ok(_) => "is not a regular file",
            Err(_) => return error,
        };
        let path = path.to_owned();
        io::Error::new(error.kind(), Self { path, fault })
    }
}
