//! Manifests: by digest from the cache for good, by tag for as long as the tag is fresh.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tracing::{debug, warn};

use super::media_type::{self, MediaTypeVerdict};
use super::refusals::RefusalScope;
use super::{Pull, Served, unreadable};
use crate::client_address::ClientAddress;
use crate::digest::Digest;
use crate::fill::Turn;
use crate::metrics::{Outcome, Source};
use crate::name::{Reference, Repository, Tag};
use crate::origins::Origins;
use crate::pull_error::{PullError, RequestedContent};
use crate::store::{CachedTag, Manifest, StageError};
use crate::upstream::{Accept, ManifestAnswer};

/// The part of a request that selects a manifest.
#[derive(Clone, Copy)]
pub(crate) struct ClientRequest<'a> {
    /// The headers of its request.
    pub(crate) headers: &'a HeaderMap,
    /// The address of its connection.
    pub(crate) peer: &'a str,
}

type Answer = Result<Served<Manifest>, PullError>;
type Fetched = Result<(Manifest, Outcome), PullError>;

impl Pull {
    /// Returns the manifest that a reference names.
    pub(crate) async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        client: ClientRequest<'_>,
    ) -> Answer {
        match reference {
            Reference::Digest(digest) => self.manifest_by_digest(repository, digest, client).await,
            Reference::Tag(tag) => self.manifest_by_tag(repository, tag, client).await,
        }
    }

    /// Returns the copy if there is one: a digest's content can't change, so upstream is asked about it again only after it
    /// refused something of the repository.
    async fn manifest_by_digest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        client: ClientRequest<'_>,
    ) -> Answer {
        // The futures other than a hit's are boxed: each hit would make room for them.
        match unreadable(self.store.manifest(repository, digest).await) {
            Some(copy) if !self.is_refused(repository) => Ok(Served::hit(copy)),
            Some(copy) => Box::pin(self.confirmed_manifest(repository, digest, client, copy)).await,
            None => Box::pin(self.missed_manifest(repository, digest, client)).await,
        }
    }

    async fn missed_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        client: ClientRequest<'_>,
    ) -> Answer {
        let reference = Reference::Digest(digest.clone());
        if let Some((_, manifest)) = self.load_stored(repository, &reference, client).await {
            return Ok(Served::miss(manifest).with_origin(Source::Bucket));
        }
        self.fetch_manifest(repository, &reference, client, None).await
    }

    /// Returns a copy of a repository, some of which the upstream refused, as [`Self::confirm`] does.
    async fn confirmed_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        client: ClientRequest<'_>,
        copy: Manifest,
    ) -> Answer {
        let reference = Reference::Digest(digest.clone());
        let copied = Some((digest.clone(), copy.clone()));
        let asked = self.fetch_manifest(repository, &reference, client, copied);
        self.confirm(repository, asked, Served::hit(copy)).await
    }

    async fn manifest_by_tag(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        client: ClientRequest<'_>,
    ) -> Answer {
        let mut copy = self.copy_of(repository, tag).await;
        if copy.is_none() {
            copy = Box::pin(self.load_stored_tag(repository, tag, client)).await;
        }
        let Some((known, copy)) = copy else {
            let reference = Reference::Tag(tag.clone());
            return Box::pin(self.fetch_manifest(repository, &reference, client, None)).await;
        };
        if self.is_fresh(repository, &known) {
            return Ok(Served::hit(copy));
        }
        Box::pin(self.revalidate(repository, tag, client, (known, copy))).await
    }

    /// Returns whether a tag is served without asking the upstream.
    fn is_fresh(&self, repository: &Repository, tag: &CachedTag) -> bool {
        let live = self.live.load();
        let cache = &live.cache;
        let is_young = || !self.clock.is_over(tag.validated, cache.tag_ttl);
        cache.offline || (tag.proven && !self.is_refused(repository) && is_young())
    }

    /// Asks the upstream about a tag whose copy is no longer fresh. If the upstream does not answer in time, the copy is
    /// served.
    async fn revalidate(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        client: ClientRequest<'_>,
        (known, copy): (CachedTag, Manifest),
    ) -> Answer {
        let reference = Reference::Tag(tag.clone());
        let age = self.clock.since(known.validated);
        let copied = Some((known.digest, copy.clone()));
        let asked = self.fetch_manifest(repository, &reference, client, copied);
        let live = self.live();
        let cache = &live.cache;
        let longest = cache
            .ttl
            .map_or(cache.stale_if_error, |ttl| ttl.min(cache.stale_if_error));
        let is_refused = || self.refusals.has_tag(repository, tag) && self.honors_refusals();
        if age >= longest || is_refused() {
            return asked.await;
        }
        let failure = match tokio::time::timeout(self.revalidation_wait(repository), asked).await {
            Ok(Ok(served)) => return Ok(served),
            Ok(Err(failure)) if failure.is_final() || is_refused() => return Err(failure),
            Ok(Err(failure)) => failure,
            Err(_) => PullError::unavailable("no answer in time"),
        };
        debug!(%repository, %tag, ?failure, "serving a stale tag");
        Ok(Served::stale(copy))
    }

    /// Returns a manifest that is in the cache, for another replica: no request follows. A tag may have moved since.
    pub(crate) async fn held_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Option<Manifest> {
        let digest = as_digest(reference).filter(|_| !self.is_refused(repository))?;
        unreadable(self.store.manifest(repository, digest).await)
    }

    /// Counts a pull of an image by a client.
    pub(crate) fn count_pull(&self, manifest: &Manifest) {
        self.store.count_pull(manifest);
    }

    /// Returns the time since the upstream last confirmed a tag; `None` for one that is not cached.
    pub(crate) async fn tag_age(&self, repository: &Repository, tag: &Tag) -> Option<Duration> {
        let known = unreadable(self.store.tag(repository, tag).await)?;
        Some(self.clock.since(known.validated))
    }

    /// Returns the digest of a cached tag with its manifest, if both are cached.
    async fn copy_of(&self, repository: &Repository, tag: &Tag) -> Option<(CachedTag, Manifest)> {
        let known = unreadable(self.store.tag(repository, tag).await)?;
        let manifest = unreadable(self.store.manifest(repository, &known.digest).await)?;
        Some((known, manifest))
    }

    /// Asks upstream, once for all clients that want the same and name the same types: what a strict registry says to
    /// one that names fewer does not count for the others.
    async fn fetch_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        client: ClientRequest<'_>,
        known: Option<(Digest, Manifest)>,
    ) -> Answer {
        let address = ClientAddress::from_peer(client.peer);
        let origins = self.origins(repository, address)?;
        let accept = Accept::of_client(client.headers);
        let start = self.request_snapshot(&origins);
        let (text, version) = (format!("{reference} {}", accept.key()), start.generation);
        if let Some(failure) = self
            .negative_cache
            .get(repository, RequestedContent::Manifest, &text, version)
        {
            return Err(failure);
        }
        let is_direct = origins.is_direct(&repository.name);
        let key = (repository.clone(), reference.clone(), accept, is_direct);
        let fetch = |turn: Turn| {
            let (pull, (repository, reference, accept, _)) = (Arc::clone(self), key.clone());
            async move {
                let _turn = turn;
                let subject = (as_tag(&reference), RefusalScope::from_cached(known.is_some()));
                let fetched = pull.ask(&origins, &repository, &reference, accept, known).await;
                pull.record_verdict((&origins, start), &repository, subject, &fetched);
                if let Err(failure) = &fetched {
                    pull.negative_cache.insert(
                        &repository,
                        RequestedContent::Manifest,
                        &text,
                        version,
                        failure,
                    );
                }
                fetched
            }
        };
        let (waiting, joined) = if let Some(waiting) = self.manifests.get(&key) {
            (waiting, true)
        } else {
            let turn = self.turn(repository, address).await?;
            self.manifests.join(&key, || fetch(turn))
        };
        let fetched = waiting
            .await
            .unwrap_or_else(|| Err(PullError::unavailable("the fetch was given up")));
        let (value, outcome) = fetched?;
        let outcome = if joined && outcome == Outcome::Miss {
            Outcome::Coalesced
        } else {
            outcome
        };
        Ok(Served::new(value, outcome))
    }

    async fn ask(
        &self,
        origins: &Origins,
        repository: &Repository,
        reference: &Reference,
        accept: Accept,
        known: Option<(Digest, Manifest)>,
    ) -> Fetched {
        let Some((digest, copy)) = known else {
            return self
                .look_again_or_get(origins, repository, reference, &accept)
                .await;
        };
        let accept = accept.with(copy.media_type());
        let head = origins
            .manifest_head(&repository.name, reference, &accept)
            .await
            .map_err(|error| PullError::from_upstream(&error, RequestedContent::Manifest))?;
        match head.digest {
            Some(same) if same == digest => {
                self.keep_tag(repository, reference, &digest, head.age).await;
                Ok((copy, Outcome::Hit))
            }
            Some(moved) => {
                let fetched = self
                    .get(origins, repository, &Reference::Digest(moved.clone()), &accept)
                    .await
                    // The tag is there: that what it names is not says nothing about the tag.
                    .map_err(|failure| {
                        if failure.is_final() {
                            PullError::unavailable(format!("upstream says {moved}, and does not have it"))
                        } else {
                            failure
                        }
                    })?;
                self.keep_tag(repository, reference, &moved, head.age).await;
                Ok(fetched)
            }
            // Some registries answer HEAD without a digest, or not at all.
            None => self.get(origins, repository, reference, &accept).await,
        }
    }

    /// Reads the cache again before it asks upstream: another fetch may have ended since the first read.
    async fn look_again_or_get(
        &self,
        origins: &Origins,
        repository: &Repository,
        reference: &Reference,
        accept: &Accept,
    ) -> Fetched {
        if let Some(digest) = as_digest(reference)
            && !self.is_refused(repository)
            && let Some(manifest) = unreadable(self.store.manifest(repository, digest).await)
        {
            return Ok((manifest, Outcome::Hit));
        }
        self.get(origins, repository, reference, accept).await
    }

    /// Fetches, checks and keeps a manifest.
    async fn get(
        &self,
        origins: &Origins,
        repository: &Repository,
        reference: &Reference,
        accept: &Accept,
    ) -> Fetched {
        let failed = |error| PullError::from_upstream(&error, RequestedContent::Manifest);
        let answer = origins
            .manifest(&repository.name, reference, accept)
            .await
            .map_err(failed)?;
        let judged = media_type::judge(&answer.document, answer.media_type.as_deref());
        let media_type = match judged.map_err(failed)? {
            MediaTypeVerdict::Manifest(media_type) => media_type,
            MediaTypeVerdict::Schema1 => return Err(PullError::schema1()),
        };
        let ManifestAnswer {
            content,
            document,
            age,
            place: _place,
            ..
        } = answer;
        self.sizes.record(repository, &document);
        // A tree of 10,000 descriptors is larger than its text.
        drop(document);
        let manifest = Manifest::new(content, &media_type);
        match self.store.put_manifest(repository, &manifest).await {
            Ok(()) => {
                self.keep_tag(repository, reference, manifest.digest(), age).await;
            }
            Err(StageError::ReadOnly) => {}
            Err(error) => warn!(%repository, %error, "a manifest is served without being kept"),
        }
        Ok((manifest, Outcome::Miss))
    }

    /// Keeps a tag that the upstream confirmed `age` ago.
    async fn keep_tag(&self, repository: &Repository, reference: &Reference, digest: &Digest, age: Duration) {
        let Reference::Tag(tag) = reference else { return };
        match self.store.put_tag_of_age(repository, tag, digest, age).await {
            Ok(()) | Err(StageError::ReadOnly) => {}
            Err(error) => warn!(%repository, %tag, %error, "a tag is served without being kept"),
        }
    }
}

fn as_tag(reference: &Reference) -> Option<&Tag> {
    match reference {
        Reference::Tag(tag) => Some(tag),
        Reference::Digest(_) => None,
    }
}

fn as_digest(reference: &Reference) -> Option<&Digest> {
    match reference {
        Reference::Digest(digest) => Some(digest),
        Reference::Tag(_) => None,
    }
}
