//! What upstream said it does not have, remembered for seconds: clients ask for the same missing thing in bursts.

use std::time::Duration;

use moka::sync::Cache;

use super::failure::{Failure, Kind};
use super::per_upstream::PerUpstream;
use crate::name::Repository;

/// How long "not there" is believed.
const REMEMBERED: Duration = Duration::from_secs(5);
/// The most answers of an upstream that are remembered.
const CAPACITY: u64 = 10_000;

/// Repository, kind, reference, and the version of the credential that asked.
type Key = (Repository, Kind, String, u64);

/// The negative cache.
pub(super) struct Absent(PerUpstream<Key, Failure>);

impl Default for Absent {
    fn default() -> Self {
        Self(PerUpstream::new(|| {
            Cache::builder()
                .max_capacity(CAPACITY)
                .time_to_live(REMEMBERED)
                .build()
        }))
    }
}

impl Absent {
    /// The answer remembered for this.
    pub(super) fn get(
        &self,
        repository: &Repository,
        kind: Kind,
        reference: &str,
        version: u64,
    ) -> Option<Failure> {
        self.0
            .of(&repository.host)
            .get(&(repository.clone(), kind, reference.to_owned(), version))
    }

    /// Remembers an answer, if it is a final one.
    pub(super) fn note(
        &self,
        repository: &Repository,
        kind: Kind,
        reference: &str,
        version: u64,
        failure: &Failure,
    ) {
        if failure.is_final() {
            self.0.of(&repository.host).insert(
                (repository.clone(), kind, reference.to_owned(), version),
                failure.clone(),
            );
        }
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.0.retain(|_| false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_final_answers_are_remembered_and_only_for_the_credential_that_got_them() {
        let (absent, repository) = (
            Absent::default(),
            Repository {
                host: "a.test".parse().unwrap(),
                name: "b".parse().unwrap(),
            },
        );
        let gone = Failure::NotFound {
            code: "BLOB_UNKNOWN",
            cause: "gone".into(),
        };
        absent.note(&repository, Kind::Blob, "x", 1, &gone);
        absent.note(&repository, Kind::Blob, "y", 1, &Failure::unavailable("later"));
        assert_eq!(absent.get(&repository, Kind::Blob, "x", 1), Some(gone));
        assert_eq!(absent.get(&repository, Kind::Blob, "x", 2), None);
        assert_eq!(absent.get(&repository, Kind::Manifest, "x", 1), None);
        assert_eq!(absent.get(&repository, Kind::Blob, "y", 1), None);
        absent.clear();
        assert_eq!(absent.get(&repository, Kind::Blob, "x", 1), None);
    }
}
