//! Referrers of a manifest (distribution-spec, "Listing Referrers"), fresh for as long as a tag.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use moka::sync::Cache;

use super::per_upstream::PerUpstream;
use super::refusals::UNCACHED;
use super::single_flight::Waiting;
use super::{Pull, Served, unreadable};
use crate::client_address::ClientAddress;
use crate::digest::Digest;
use crate::metrics::Outcome;
use crate::name::{Host, Repository, Tag};
use crate::pull_error::{PullError, RequestedContent};
use crate::raw_index::with_artifact_type;
use crate::upstream::{Error, MAX_SMALL};

/// The lists of an upstream are kept in memory up to this number of bytes.
const CAPACITY: u64 = 8 << 20;

/// The response of the upstream; `None` if it has no referrers API.
pub(super) type ReferrersAnswer = Result<Option<Bytes>, Error>;

/// A cache of unfiltered lists.
pub(super) struct Known(PerUpstream<(Repository, Digest), (Bytes, Timestamp)>);

impl Default for Known {
    fn default() -> Self {
        Self(PerUpstream::new(|| {
            Cache::builder()
                .max_capacity(CAPACITY)
                .weigher(|_, (list, _): &(Bytes, Timestamp)| {
                    u32::try_from(list.len() + 256).unwrap_or(u32::MAX)
                })
                .build()
        }))
    }
}

impl Known {
    /// Keeps a list, and drops older ones beyond the capacity.
    fn insert(&self, key: (Repository, Digest), list: Bytes, now: Timestamp) {
        let cache = self.0.cache(&key.0.host);
        let is_large = list.len() > MAX_SMALL;
        cache.insert(key, (list, now));
        if is_large {
            // The cache evicts after 64 entries, or 300 ms: as many large lists would exceed its capacity.
            cache.run_pending_tasks();
        }
    }

    /// Forgets the lists of other upstreams than these.
    pub(super) fn retain(&self, is_kept: impl Fn(&Host) -> bool) {
        self.0.retain(is_kept);
    }
}

impl Pull {
    /// Returns the index of what refers to `digest`, unfiltered.
    pub(crate) async fn referrers(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        peer: &str,
    ) -> Result<Served<Bytes>, PullError> {
        let cache = self.live().cache.clone();
        let key = (repository.clone(), digest.clone());
        let known = self.referrers.0.cache(&key.0.host).get(&key).map(|(list, then)| {
            (
                list,
                self.clock.since(then),
                self.clock.is_over(then, cache.tag_ttl),
            )
        });
        let is_refused = self.is_refused(repository);
        if let Some((value, _, over)) = &known
            && (!(*over || is_refused) || cache.offline)
        {
            return Ok(Served::hit(value.clone()));
        }
        if cache.offline {
            return self.fallback_tag(repository, digest).await;
        }
        let longest = cache
            .ttl
            .map_or(cache.stale_if_error, |ttl| ttl.min(cache.stale_if_error));
        let client = ClientAddress::from_peer(peer);
        let Some((stale, ..)) = known.filter(|(_, age, _)| *age < longest && !self.is_revoked(repository))
        else {
            let (asked, joined) = self.ask_referrers(&key, client).await?;
            let value = listed(asked.await.unwrap_or_else(given_up))?;
            let outcome = if joined { Outcome::Coalesced } else { Outcome::Miss };
            return Ok(Served::new(value, outcome));
        };
        let asked = async {
            match self.ask_referrers(&key, client).await {
                Ok((asked, _)) => asked.await,
                Err(_) => None,
            }
        };
        match tokio::time::timeout(self.revalidation_wait(repository), asked).await {
            Ok(Some(Ok(Some(value)))) => Ok(Served::miss(value)),
            Ok(Some(Err(error))) => {
                let is_not_found = matches!(error, Error::NotFound { .. });
                let failure = PullError::from_upstream(&error, RequestedContent::Manifest);
                if is_not_found || self.ends_stale(repository, &failure) {
                    return Err(failure);
                }
                Ok(Served::stale(stale))
            }
            // The API existed before, so an answer without it is not the registry's.
            _ => Ok(Served::stale(stale)),
        }
    }

    /// Asks upstream, once for all clients that want the same; true if that was under way already.
    async fn ask_referrers(
        self: &Arc<Self>,
        key: &(Repository, Digest),
        client: ClientAddress,
    ) -> Result<(Waiting<ReferrersAnswer>, bool), PullError> {
        let is_direct = self.origins(&key.0, client)?.is_direct(&key.0.name);
        let flight = (key.0.clone(), key.1.clone(), is_direct);
        if let Some(asked) = self.referrers_fetches.get(&flight) {
            return Ok((asked, true));
        }
        let turn = self.turn(&key.0, client).await?;
        Ok(self.referrers_fetches.join(&flight, || {
            let (pull, key) = (Arc::clone(self), key.clone());
            async move {
                let _turn = turn;
                let origins = pull
                    .origins(&key.0, client)
                    .map_err(|failure| Error::Unavailable {
                        what: failure.to_string(),
                    })?;
                let start = pull.request_snapshot(&origins);
                let list = origins.referrers(&key.0.name, &key.1).await;
                let said = list
                    .as_ref()
                    .map_err(|error| PullError::from_upstream(error, RequestedContent::Manifest));
                pull.record_verdict((&origins, start), &key.0, UNCACHED, &said);
                let list = list?;
                if let Some(list) = &list {
                    pull.referrers.insert(key, list.clone(), pull.clock.now());
                }
                Ok(list)
            }
        }))
    }

    /// Returns the index of the fallback tag (distribution-spec, "Referrers Tag Schema") while offline.
    async fn fallback_tag(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Served<Bytes>, PullError> {
        let none = || no_referrers("this mirror is offline and has no list of referrers".into());
        let tag: Tag = referrers_tag(digest).parse().map_err(|_| none())?;
        let known = unreadable(self.store.tag(repository, &tag).await).ok_or_else(none)?;
        let manifest = unreadable(self.store.manifest(repository, &known.digest).await).ok_or_else(none)?;
        Ok(Served::hit(manifest.bytes().clone()))
    }
}

/// Returns the fallback tag of a digest. The schema truncates the hash to 64 characters, so the tag of a sha512 digest
/// names half of it.
fn referrers_tag(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{}-{}", digest.algorithm().as_str(), hex.get(..64).unwrap_or(hex))
}

/// Returns the list, or 404 where upstream has no referrers API, so that clients take the fallback tag.
fn listed(asked: ReferrersAnswer) -> Result<Bytes, PullError> {
    match asked {
        Ok(Some(list)) => Ok(list),
        Ok(None) => Err(no_referrers(
            "upstream has no referrers API: use the referrers tag schema of the distribution-spec".into(),
        )),
        Err(error) => Err(PullError::from_upstream(&error, RequestedContent::Manifest)),
    }
}

/// Returns the answer of a task that ended without one.
fn given_up() -> ReferrersAnswer {
    Err(Error::Unavailable {
        what: "the fetch was given up".into(),
    })
}

fn no_referrers(message: String) -> PullError {
    PullError::NotFound {
        code: "MANIFEST_UNKNOWN",
        cause: message.into(),
    }
}

/// Returns the index with the manifests of one artifact type only; `None` where it is no index.
pub(crate) async fn of_type(index: &Bytes, artifact_type: &str) -> Option<Bytes> {
    if index.len() <= MAX_SMALL {
        return with_artifact_type(index, artifact_type);
    }
    let (index, artifact_type) = (index.clone(), artifact_type.to_owned());
    let filter = move || with_artifact_type(&index, &artifact_type);
    tokio::task::spawn_blocking(filter).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    /// The fallback tag of referrers has 64 characters of the digest.
    #[test]
    fn fallback_tag_has_64_digest_characters() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::compute(algorithm, b"subject");
            let tag = referrers_tag(&digest);
            assert_eq!(tag, format!("{}-{}", algorithm.as_str(), &digest.hex()[..64]));
        }
    }

    /// Large lists that come at once are within the capacity of the cache at any time.
    #[test]
    fn large_lists_stay_within_capacity() {
        let (known, host) = (Known::default(), "quay.io".parse::<Host>().unwrap());
        let list = Bytes::from(vec![0; 1 << 20]);
        for number in 0..40_u8 {
            let repository = Repository {
                host: host.clone(),
                name: "a/b".parse().unwrap(),
            };
            let digest = Digest::compute(Algorithm::Sha256, &[number]);
            known.insert((repository, digest), list.clone(), Timestamp::UNIX_EPOCH);
            let kept = known.0.cache(&host).iter().count() as u64;
            assert!(kept * list.len() as u64 <= CAPACITY, "{kept} lists");
        }
    }
}
