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
    /// The directory cannot be read for the moment, which says nothing about its files.
    #[error("the credentials directory cannot be read at the moment, and is read again: {0}")]
    Unavailable(String),
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

    /// Returns the snapshot of a directory that cannot be read for the moment.
    pub(super) fn unavailable(reason: String) -> Self {
        Self {
            candidates: Err(Problem::Unavailable(reason)),
            last_good: Entries::default(),
            version: 0,
        }
    }

    fn read_files(directory: &Path, generation: u64) -> Self {
        let read = |name| file_read::read(&directory.join(name), MAX_FILE);
        let version = file_read::read_text(&directory.join("version"), MAX_VERSION);
        Self::from_files([read("config.json"), read("last-good.json")], version, generation)
    }

    /// Returns the snapshot of `config.json`, `last-good.json` and `version`. One file that cannot be read for the moment
    /// makes no snapshot of the others.
    fn from_files(
        [config, last_good]: [io::Result<Vec<u8>>; 2],
        version: io::Result<String>,
        generation: u64,
    ) -> Self {
        let is_transient = |error: &&io::Error| file_read::is_transient(error);
        let failed = [&config, &last_good]
            .into_iter()
            .filter_map(|read| read.as_ref().err());
        let failed = failed.chain(version.as_ref().err()).find(is_transient);
        if let Some(reason) = failed.map(ToString::to_string) {
            return Self::unavailable(reason);
        }
        Self {
            candidates: candidates(config),
            last_good: candidates(last_good).unwrap_or_default(),
            version: version
                .ok()
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

    /// A failure of the process or the disk in any file is no state of the directory.
    #[test]
    fn transient_failure_is_no_snapshot() {
        let failed = || io::Error::from_raw_os_error(24);
        let entry = || Ok(ENTRY.as_bytes().to_vec());
        let version = || Ok("7".to_owned());
        for snapshot in [
            Snapshot::from_files([Err(failed()), entry()], version(), 1),
            Snapshot::from_files([entry(), Err(failed())], version(), 1),
            Snapshot::from_files([entry(), entry()], Err(failed()), 1),
        ] {
            assert!(
                matches!(snapshot.candidates, Err(Problem::Unavailable(_))),
                "{snapshot:?}"
            );
        }
        let absent = || Err(ErrorKind::NotFound.into());
        let snapshot = Snapshot::from_files([absent(), entry()], version(), 1);
        assert_eq!(
            (snapshot.candidates, snapshot.version),
            (Err(Problem::Missing), 7)
        );
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
