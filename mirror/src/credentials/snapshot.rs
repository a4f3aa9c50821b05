//! Snapshots of the credentials directory.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::docker_config::Entries;
use crate::file_read::{self, MAX_FILE};

/// The most bytes of the file with the version, which is a number.
const MAX_VERSION: u64 = 1024;

/// A snapshot of the directory. The default is that of no directory, with version 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `config.json`.
    pub candidates: Result<Entries, Problem>,
    /// `last-good.json`; an unreadable file counts as a missing one.
    pub last_good: Entries,
    /// `version`, or the number of changes that this process saw; 0 without a directory.
    pub version: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            candidates: Ok(Entries::default()),
            last_good: Entries::default(),
            version: 0,
        }
    }
}

/// The reason why there are no candidates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no `config.json`.
    #[error("there is no config.json in the credentials directory")]
    Missing,
    /// `config.json` cannot be read.
    #[error("config.json cannot be read: {0}")]
    Unreadable(String),
    /// `config.json` is malformed.
    #[error("config.json is {0}")]
    Malformed(String),
}

impl Snapshot {
    /// Reads the directory. `generation` replaces a missing `version`.
    pub(super) fn read(directory: &Path, generation: u64) -> Self {
        // kubelet swaps the link `..data`: its target is read as a whole, and read once more if a swap removed it
        // meanwhile.
        let current = || directory.join("..data").canonicalize().ok();
        let before = current();
        let read = Self::read_files(before.as_deref().unwrap_or(directory), generation);
        match current() {
            after @ Some(_) if after != before => {
                Self::read_files(after.as_deref().unwrap_or(directory), generation)
            }
            _ => read,
        }
    }

    /// Returns the snapshot of a directory that cannot be read.
    pub(super) fn unreadable() -> Self {
        Self {
            candidates: Err(Problem::Unreadable("the server is stopping".to_owned())),
            last_good: Entries::default(),
            version: 0,
        }
    }

    fn read_files(directory: &Path, generation: u64) -> Self {
        let read = |name| file_read::read(&directory.join(name), MAX_FILE);
        let version = file_read::read_text(&directory.join("version"), MAX_VERSION).ok();
        Self {
            candidates: candidates(read("config.json")),
            last_good: candidates(read("last-good.json")).unwrap_or_default(),
            version: version
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(generation),
        }
    }
}

fn candidates(bytes: io::Result<Vec<u8>>) -> Result<Entries, Problem> {
    match bytes {
        Ok(bytes) => Entries::parse(&bytes).map_err(Problem::Malformed),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Problem::Missing),
        Err(error) => Err(Problem::Unreadable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ENTRY: &str = r#"{"auths":{"quay.io":{"auth":"dTpw"}}}"#;

    /// All three files of the directory are read.
    #[test]
    fn credentials_files_are_all_read() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), ENTRY).unwrap();
        fs::write(directory.path().join("last-good.json"), ENTRY).unwrap();
        fs::write(directory.path().join("version"), "7\n").unwrap();
        let snapshot = Snapshot::read(directory.path(), 1);
        assert_eq!(snapshot.version, 7);
        assert_eq!(snapshot.candidates.unwrap(), snapshot.last_good);
    }

    /// A directory that does not exist is reported as missing, with the version that the caller counts.
    #[test]
    fn absent_directory_is_missing() {
        let snapshot = Snapshot::read(Path::new("/nowhere"), 3);
        assert_eq!(snapshot.candidates, Err(Problem::Missing));
        assert_eq!((snapshot.last_good, snapshot.version), (Entries::default(), 3));
    }

    /// A candidate file that does not parse leaves the last good entries in place.
    #[test]
    fn broken_candidate_keeps_last_good() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), "{").unwrap();
        fs::write(directory.path().join("last-good.json"), ENTRY).unwrap();
        let snapshot = Snapshot::read(directory.path(), 1);
        assert!(matches!(snapshot.candidates, Err(Problem::Malformed(_))));
        assert_ne!(snapshot.last_good, Entries::default());
    }
}
