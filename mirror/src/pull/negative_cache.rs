//! The negative cache: content that upstreams do not have, for seconds, because clients request missing content in
//! bursts.

use std::time::Duration;

use moka::sync::Cache;

use super::per_upstream::PerUpstream;
use crate::name::Repository;
use crate::pull_error::{PullError, RequestedContent};

/// The lifetime of an entry.
const REMEMBERED: Duration = Duration::from_secs(5);
/// The most answers of an upstream that are remembered.
const CAPACITY: u64 = 10_000;

/// Repository, kind, reference, and the version of the credential that asked.
type Key = (Repository, RequestedContent, String, u64);

/// The negative cache.
pub(super) struct NegativeCache(PerUpstream<Key, PullError>);

impl Default for NegativeCache {
    fn default() -> Self {
        Self(PerUpstream::new(|| {
            Cache::builder()
                .max_capacity(CAPACITY)
                .time_to_live(REMEMBERED)
                .build()
        }))
    }
}

impl NegativeCache {
    /// Returns the cached error.
    pub(super) fn get(
        &self,
        repository: &Repository,
        kind: RequestedContent,
        reference: &str,
        version: u64,
    ) -> Option<PullError> {
        self.0
            .cache(&repository.host)
            .get(&(repository.clone(), kind, reference.to_owned(), version))
    }

    /// Stores an error, if it is final.
    pub(super) fn insert(
        &self,
        repository: &Repository,
        kind: RequestedContent,
        reference: &str,
        version: u64,
        failure: &PullError,
    ) {
        if failure.is_final() {
            self.0.cache(&repository.host).insert(
                (repository.clone(), kind, reference.to_owned(), version),
                failure.clone(),
            );
        }
    }

    /// Removes all entries.
    pub(super) fn clear(&self) {
        self.0.retain(|_| false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_cache_keeps_final_errors_by_credential() {
        let (negative_cache, repository) = (
            NegativeCache::default(),
            Repository {
                host: "a.test".parse().unwrap(),
                name: "b".parse().unwrap(),
            },
        );
        let gone = PullError::NotFound {
            code: "BLOB_UNKNOWN",
            cause: "gone".into(),
        };
        negative_cache.insert(&repository, RequestedContent::Blob, "x", 1, &gone);
        negative_cache.insert(
            &repository,
            RequestedContent::Blob,
            "y",
            1,
            &PullError::unavailable("later"),
        );
        assert_eq!(
            negative_cache.get(&repository, RequestedContent::Blob, "x", 1),
            Some(gone)
        );
        assert_eq!(
            negative_cache.get(&repository, RequestedContent::Blob, "x", 2),
            None
        );
        assert_eq!(
            negative_cache.get(&repository, RequestedContent::Manifest, "x", 1),
            None
        );
        assert_eq!(
            negative_cache.get(&repository, RequestedContent::Blob, "y", 1),
            None
        );
        negative_cache.clear();
        assert_eq!(
            negative_cache.get(&repository, RequestedContent::Blob, "x", 1),
            None
        );
    }
}
