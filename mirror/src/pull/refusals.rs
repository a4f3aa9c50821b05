//! The refusals of upstreams: what they refused is not served from the cache without their yes.

use std::sync::atomic::{AtomicBool, Ordering};

use moka::sync::Cache;

use super::per_upstream::PerUpstream;
use crate::name::{Host, Repository, Tag};

/// The most refusals of an upstream that are remembered, of tags and of repositories each.
const CAPACITY: u64 = 10_000;

/// The content that upstreams refused and did not permit since. A restart forgets it, and revalidates tags as before.
pub(super) struct Refusals {
    /// False until the first refusal, so that a hit costs no look-up.
    any: AtomicBool,
    repositories: PerUpstream<Repository, ()>,
    tags: PerUpstream<(Repository, Tag), ()>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            any: AtomicBool::new(false),
            repositories: PerUpstream::new(|| Cache::new(CAPACITY)),
            tags: PerUpstream::new(|| Cache::new(CAPACITY)),
        }
    }
}

impl Refusals {
    /// Returns whether upstream refused something of this repository last.
    pub(super) fn has_repository(&self, repository: &Repository) -> bool {
        self.any.load(Ordering::Relaxed) && self.repositories.cache(&repository.host).contains_key(repository)
    }

    /// Returns whether upstream refused this tag last.
    pub(super) fn has_tag(&self, repository: &Repository, tag: &Tag) -> bool {
        self.any.load(Ordering::Relaxed)
            && self
                .tags
                .cache(&repository.host)
                .contains_key(&(repository.clone(), tag.clone()))
    }

    /// Remembers a refusal of a repository, and of a tag if there is one.
    pub(super) fn insert(&self, repository: &Repository, tag: Option<&Tag>) {
        self.any.store(true, Ordering::Relaxed);
        let host = &repository.host;
        self.repositories.cache(host).insert(repository.clone(), ());
        if let Some(tag) = tag {
            let tags = self.tags.cache(host);
            tags.insert((repository.clone(), tag.clone()), ());
        }
    }

    /// Forgets the refusal of a repository that upstream permits, and that of a tag if there is one.
    pub(super) fn remove(&self, repository: &Repository, tag: Option<&Tag>) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let host = &repository.host;
        self.repositories.cache(host).invalidate(repository);
        if let Some(tag) = tag {
            let tags = self.tags.cache(host);
            tags.invalidate(&(repository.clone(), tag.clone()));
        }
    }

    /// Forgets the refusals of other upstreams than these.
    pub(super) fn retain(&self, is_kept: impl Fn(&Host) -> bool) {
        self.repositories.retain(&is_kept);
        self.tags.retain(&is_kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_lifts_what_it_is_for() {
        let refusals = Refusals::default();
        let repository = |name: &str| Repository {
            host: "a.test".parse().unwrap(),
            name: name.parse().unwrap(),
        };
        let (one, other, tag): (_, _, Tag) = (repository("one"), repository("other"), "1".parse().unwrap());
        assert!(!refusals.has_repository(&one) && !refusals.has_tag(&one, &tag));
        refusals.insert(&one, Some(&tag));
        assert!(refusals.has_repository(&one) && refusals.has_tag(&one, &tag));
        assert!(!refusals.has_repository(&other) && !refusals.has_tag(&other, &tag));
        refusals.remove(&one, None);
        assert!(!refusals.has_repository(&one) && refusals.has_tag(&one, &tag));
        refusals.remove(&one, Some(&tag));
        assert!(!refusals.has_tag(&one, &tag));
    }
}
