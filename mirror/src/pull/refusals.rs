//! The refusals of upstreams, and the copies that are served in spite of them.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use moka::ops::compute::Op;
use moka::sync::Cache;

use super::Pull;
use super::per_upstream::PerUpstream;
use crate::clock::Clock;
use crate::digest::Digest;
use crate::name::{Host, Repository, Tag};
use crate::origins::Origins;
use crate::pull_error::PullError;

/// The most refusals of an upstream that are remembered, of tags, of repositories and of blobs each.
const CAPACITY: u64 = 10_000;
/// The time for which a refused blob is not asked for again: clients repeat requests in bursts, and a registry may lock an
/// account whose password it rejects often.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// The scope of a refusal: it decides which copies are served while the upstream does not answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusalScope {
    /// The upstream refused content that this server has no copy of, or a list. It says nothing about other content, which
    /// the upstream is asked about and which is served if it does not answer.
    OtherContent,
    /// The upstream refused content that it permitted before: it revoked access to the repository.
    CachedContent,
}

/// The scope of a refusal of a list, or of content without a tag and without a copy.
pub(super) const UNCACHED: (Option<&Tag>, RefusalScope) = (None, RefusalScope::OtherContent);

impl RefusalScope {
    /// Returns the scope of a refusal of content that is cached or not.
    pub(super) fn from_cached(is_cached: bool) -> Self {
        if is_cached {
            Self::CachedContent
        } else {
            Self::OtherContent
        }
    }
}

/// A blob, and the generation of the credential that was refused.
type BlobKey = (Repository, Digest, u64);

/// A refusal with its place among all refusals.
#[derive(Clone, Copy)]
struct NumberedRefusal {
    number: u64,
    scope: RefusalScope,
}

/// The state in which a request to an upstream begins. Its answer says nothing about refusals after that.
#[derive(Clone, Copy)]
pub(crate) struct RequestSnapshot {
    /// The generation of the credential.
    pub(super) generation: u64,
    /// The number of refusals so far.
    refusals: u64,
}

/// The content that upstreams refused and did not permit since. A restart forgets it, and revalidates tags as before.
pub(super) struct Refusals {
    /// The number of refusals; 0 until the first one, so that a hit costs no look-up.
    count: AtomicU64,
    repositories: PerUpstream<Repository, NumberedRefusal>,
    tags: PerUpstream<(Repository, Tag), NumberedRefusal>,
    blobs: PerUpstream<BlobKey, (Timestamp, PullError)>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            repositories: PerUpstream::new(|| Cache::new(CAPACITY)),
            tags: PerUpstream::new(|| Cache::new(CAPACITY)),
            blobs: PerUpstream::new(|| {
                Cache::builder()
                    .max_capacity(CAPACITY)
                    .time_to_live(ASKED_AGAIN * 2)
                    .build()
            }),
        }
    }
}

impl Refusals {
    /// Returns whether upstream refused something of this repository last.
    pub(super) fn has_repository(&self, repository: &Repository) -> bool {
        self.has_any() && self.repositories.cache(&repository.host).contains_key(repository)
    }

    /// Returns whether upstream refused something of this repository last that it permitted before.
    pub(super) fn is_revoked(&self, repository: &Repository) -> bool {
        self.has_any()
            && self
                .repositories
                .cache(&repository.host)
                .get(repository)
                .is_some_and(|last| last.scope == RefusalScope::CachedContent)
    }

    /// Returns whether upstream refused this tag last.
    pub(super) fn has_tag(&self, repository: &Repository, tag: &Tag) -> bool {
        self.has_any()
            && self
                .tags
                .cache(&repository.host)
                .contains_key(&(repository.clone(), tag.clone()))
    }

    /// Remembers a refusal of a repository, and of a tag if there is one.
    pub(super) fn insert(&self, repository: &Repository, tag: Option<&Tag>, scope: RefusalScope) {
        let number = self.count.fetch_add(1, Ordering::AcqRel) + 1;
        let host = &repository.host;
        let insert = |last: Option<NumberedRefusal>| {
            let is_revoked = last.is_some_and(|last| last.scope == RefusalScope::CachedContent);
            let scope = if is_revoked {
                RefusalScope::CachedContent
            } else {
                scope
            };
            Op::Put(NumberedRefusal { number, scope })
        };
        update(&self.repositories.cache(host), repository.clone(), insert);
        if let Some(tag) = tag {
            let tags = self.tags.cache(host);
            tags.insert(
                (repository.clone(), tag.clone()),
                NumberedRefusal { number, scope },
            );
        }
    }

    /// Forgets the refusal of a repository that upstream permits, and that of a tag if there is one, unless they are more
    /// recent than the first `before` refusals.
    pub(super) fn remove(&self, repository: &Repository, tag: Option<&Tag>, before: u64) {
        if !self.has_any() {
            return;
        }
        let host = &repository.host;
        let remove = |last: Option<NumberedRefusal>| match last {
            Some(last) if last.number <= before => Op::Remove,
            _ => Op::Nop,
        };
        update(&self.repositories.cache(host), repository.clone(), remove);
        if let Some(tag) = tag {
            update(&self.tags.cache(host), (repository.clone(), tag.clone()), remove);
        }
    }

    fn has_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Returns the refusal of a blob in the last 5 s.
    pub(super) fn of_blob(&self, key: &BlobKey, clock: &Clock) -> Option<PullError> {
        if !self.has_any() {
            return None;
        }
        let (since, refusal) = self.blobs.cache(&key.0.host).get(key)?;
        (!clock.is_over(since, ASKED_AGAIN)).then_some(refusal)
    }

    /// Remembers the refusal of a blob.
    pub(super) fn insert_blob(&self, key: BlobKey, clock: &Clock, refusal: &PullError) {
        let blobs = self.blobs.cache(&key.0.host);
        blobs.insert(key, (clock.now(), refusal.clone()));
    }

    /// Forgets the refusals of other upstreams than these.
    pub(super) fn retain(&self, is_kept: impl Fn(&Host) -> bool) {
        self.repositories.retain(&is_kept);
        self.tags.retain(&is_kept);
        self.blobs.retain(&is_kept);
    }
}

/// Changes an entry, if there is one, in one step.
fn update<K: Hash + Eq + Clone + Send + Sync + 'static>(
    cache: &Cache<K, NumberedRefusal>,
    key: K,
    change: impl FnOnce(Option<NumberedRefusal>) -> Op<NumberedRefusal>,
) {
    cache
        .entry(key)
        .and_compute_with(|last| change(last.map(moka::Entry::into_value)));
}

impl Pull {
    /// Returns the state in which a request to the upstream begins now.
    pub(super) fn request_snapshot(&self, origins: &Origins) -> RequestSnapshot {
        RequestSnapshot {
            generation: origins.credential_generation(),
            refusals: self.refusals.count.load(Ordering::Acquire),
        }
    }

    /// Returns whether the upstream refused something of this repository last: it is asked before a copy is served then,
    /// unless the settings say otherwise.
    pub(super) fn is_refused(&self, repository: &Repository) -> bool {
        self.refusals.has_repository(repository) && self.honors_refusals()
    }

    /// Returns whether the upstream revoked access to this repository: no copy is served without its permission then, also
    /// while it does not answer.
    pub(super) fn is_revoked(&self, repository: &Repository) -> bool {
        self.refusals.is_revoked(repository) && self.honors_refusals()
    }

    pub(super) fn honors_refusals(&self) -> bool {
        let live = self.live.load();
        !live.cache.stale_if_denied && !live.cache.offline
    }

    /// Asks the upstream to confirm a copy of a repository, some of which it refused. If the upstream does not answer in
    /// time, the copy is served unless access was revoked.
    pub(super) async fn confirm<T>(
        &self,
        repository: &Repository,
        asked: impl Future<Output = Result<T, PullError>>,
        copy: T,
    ) -> Result<T, PullError> {
        if self.is_revoked(repository) {
            return asked.await;
        }
        match tokio::time::timeout(self.revalidation_wait(repository), asked).await {
            Ok(Ok(confirmed)) => Ok(confirmed),
            Ok(Err(failure)) if failure.is_final() || self.is_revoked(repository) => Err(failure),
            Ok(Err(_)) | Err(_) => Ok(copy),
        }
    }

    /// Returns whether a failure of the upstream forbids to serve a stale list.
    pub(super) fn ends_stale(&self, repository: &Repository, failure: &PullError) -> bool {
        self.is_revoked(repository) || (failure.is_refusal() && self.is_refused(repository))
    }

    /// Records the answer of the upstream to a request for content of a repository, for a tag if there is one. The answer
    /// to a credential that was replaced since the start is no refusal, and a permission lifts no refusal since the start.
    pub(super) fn record_verdict<T>(
        &self,
        (origins, start): (&Origins, RequestSnapshot),
        repository: &Repository,
        (tag, scope): (Option<&Tag>, RefusalScope),
        said: &Result<T, PullError>,
    ) {
        match said {
            Ok(_) => self.refusals.remove(repository, tag, start.refusals),
            Err(failure) if failure.is_refusal() && start.generation == origins.credential_generation() => {
                self.refusals.insert(repository, tag, scope);
            }
            Err(_) => {}
        }
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
        refusals.insert(&one, None, RefusalScope::OtherContent);
        assert!(refusals.has_repository(&one) && !refusals.is_revoked(&one));
        refusals.insert(&one, Some(&tag), RefusalScope::CachedContent);
        refusals.insert(&one, None, RefusalScope::OtherContent);
        assert!(refusals.is_revoked(&one) && refusals.has_tag(&one, &tag));
        assert!(!refusals.has_repository(&other) && !refusals.has_tag(&other, &tag));
        refusals.remove(&one, None, 2);
        assert!(refusals.is_revoked(&one), "the last refusal came later");
        refusals.remove(&one, None, 3);
        assert!(!refusals.has_repository(&one) && refusals.has_tag(&one, &tag));
        refusals.remove(&one, Some(&tag), 1);
        assert!(refusals.has_tag(&one, &tag));
        refusals.remove(&one, Some(&tag), 3);
        assert!(!refusals.has_tag(&one, &tag));
    }
}
