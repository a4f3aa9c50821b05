//! Blobs: from the cache, from a fill under way, or from upstream past the cache.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use tracing::error;

use super::passthrough::{self, BlobRequest, PassThrough};
use super::refusals::{RefusalScope, UNCACHED};
use super::{Pull, Served, Source, unreadable};
use crate::client_address::ClientAddress;
use crate::digest::Digest;
use crate::fill::inflight::FillRejected;
use crate::fill::{self, Fill, Phase};
use crate::metrics::Outcome;
use crate::name::Repository;
use crate::pull_error::{PullError, RequestedContent};
use crate::range::Wanted;
use crate::store::{Blob, Found};
use crate::upstream;

/// The distance ahead of the fill, in bytes, beyond which a range gets its own request.
const AHEAD: u64 = 8 * 1024 * 1024;

impl Pull {
    /// Returns the blob, for a request from this peer that wants these parts of it.
    pub(crate) async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: &Wanted,
        peer: &str,
    ) -> Result<Served<Source>, PullError> {
        let hit = |blob| Served::hit(Source::Stored(blob));
        // The futures after a miss are boxed, as each hit would make room for them.
        match unreadable(self.store.find(repository, digest).await.map(Some)) {
            Some(Found::Linked(blob)) if !self.is_refused(repository) => Ok(hit(blob)),
            Some(Found::Linked(blob)) => Box::pin(self.confirmed(repository, digest, blob, peer))
                .await
                .map(hit),
            Some(Found::Unlinked(blob)) => Box::pin(self.kept_for_another(repository, digest, blob, peer))
                .await
                .map(hit),
            Some(Found::Missing) | None => Box::pin(self.missed(repository, digest, wanted, peer)).await,
        }
    }

    async fn missed(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: &Wanted,
        peer: &str,
    ) -> Result<Served<Source>, PullError> {
        let request = self.prepare(repository, digest, peer)?;
        self.known_absent(&request)?;
        let (fill, joined) = self.fill(&request).await?;
        let value = self.read_from(fill, wanted, &request).await;
        // The answer to the request that began a fill is that to its client.
        if !joined || value.is_err() {
            self.record_verdict((&request.origins, request.start), repository, UNCACHED, &value);
        }
        if let (Err(failure), false) = (&value, joined) {
            self.remember_absence(&request, failure);
        }
        let outcome = if joined { Outcome::Coalesced } else { Outcome::Miss };
        let value = value?;
        let origin = value.origin();
        Ok(Served::new(value, outcome).with_origin(origin))
    }

    /// Returns a blob that is in the cache, or on its way from the upstream, for another replica: no request follows.
    pub(crate) async fn held_blob(&self, repository: &Repository, digest: &Digest) -> Option<Source> {
        if self.is_refused(repository) {
            return None;
        }
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            return Some(Source::Stored(blob));
        }
        let fill = self.inflight.get(repository, digest)?;
        let is_usable = fill.is_direct() && fill.has_bytes() && fill.is_for(repository);
        is_usable.then(|| {
            fill.feed_replica();
            Source::Filling(fill)
        })
    }

    /// Returns whether a fill is about to link a blob to a repository.
    pub(crate) fn is_filling(&self, repository: &Repository, digest: &Digest) -> bool {
        let fill = self.inflight.get(repository, digest);
        fill.is_some_and(|fill| fill.is_for(repository) && !fill.has_failed())
    }

    /// Drops damaged content; the next request fetches it again.
    pub(crate) async fn damaged(&self, digest: &Digest, error: &io::Error) {
        error!(%digest, %error, "cached content can't be read; it is dropped");
        self.store.drop_blob(digest).await;
    }

    async fn read_from(
        &self,
        fill: Arc<Fill>,
        wanted: &Wanted,
        request: &BlobRequest<'_>,
    ) -> Result<Source, PullError> {
        let mut progress = fill.begun().await;
        if matches!(progress.phase, Phase::Filling)
            && progress.size.is_some_and(|size| wanted.is_beyond(size))
        {
            // Until the digest matched, the size is only what upstream says. A client that continues where it was
            // cut would take a wrong end for the blob's.
            progress = fill.ended().await;
        }
        let part = progress.size.and_then(|size| wanted.single(size));
        match (&progress.phase, part) {
            (Phase::Failed(failure), _) => Err(failure.clone()),
            (Phase::NoRoom, part) => {
                // The answer has a permit for fills, which other clients need while this one waits.
                if self.passing.is_busy(&request.repository.host, request.client) {
                    drop(fill.take_answer());
                }
                let turn = self
                    .passing
                    .turn(&request.repository.host, request.client)
                    .await?;
                let through = self.past_the_cache(request, &fill, part).await?;
                Ok(Source::PassThrough(through.holding(turn)))
            }
            // A replica waits: its fill asks for the rest after a break, which this one receives anyway.
            (Phase::Filling, Some(part))
                if part.start > progress.written.saturating_add(AHEAD) && !request.client.is_replica() =>
            {
                let size = progress.size.unwrap_or(part.end);
                let turn = self
                    .passing
                    .turn(&request.repository.host, request.client)
                    .await?;
                let through = passthrough::ahead(request, &fill, size, part).await;
                let held = through.map(|through| Source::PassThrough(through.holding(turn)));
                Ok(held.unwrap_or(Source::Filling(fill)))
            }
            _ => Ok(Source::Filling(fill)),
        }
    }

    /// Returns a part of a blob from the upstream, for a client that has the bytes before it from a fill that ran out of
    /// room.
    pub(crate) async fn rest_past_the_cache(
        &self,
        repository: &Repository,
        digest: &Digest,
        peer: &str,
        fill: &Fill,
        part: Range<u64>,
    ) -> Result<PassThrough, PullError> {
        let request = self.prepare(repository, digest, peer)?;
        let turn = self.passing.turn(&repository.host, request.client).await?;
        let size = fill.progress().size;
        let through = self.past_the_cache(&request, fill, Some(part)).await?;
        if size.is_some() && through.size != size {
            return Err(PullError::unavailable(
                "upstream announces another size of the blob than before",
            ));
        }
        Ok(through.holding(turn))
    }

    /// Streams a response of the upstream to the client only, with the same verification.
    async fn past_the_cache(
        &self,
        request: &BlobRequest<'_>,
        fill: &Fill,
        part: Option<Range<u64>>,
    ) -> Result<PassThrough, PullError> {
        match (part, fill.progress().size) {
            (Some(part), Some(size)) if part.end < size => {
                let size = self.sizes.get(request.repository, request.digest).unwrap_or(size);
                passthrough::closed(request, size, part).await
            }
            (part, _) => {
                passthrough::to_the_end(request, fill.take_answer(), Arc::clone(&self.inflight), part).await
            }
        }
    }

    /// Returns content that has no link to this repository. Where no fill is about to write one, the upstream sent the
    /// content for another repository: it has to permit it for this one, but there is no second download.
    async fn kept_for_another(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: Blob,
        peer: &str,
    ) -> Result<Blob, PullError> {
        let fill = self.inflight.get(repository, digest);
        if fill.is_some_and(|fill| fill.is_verified_for(repository)) {
            return Ok(blob);
        }
        // A fill may have ended since the cache was read.
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            return Ok(blob);
        }
        let request = self.prepare(repository, digest, peer)?;
        self.known_absent(&request)?;
        self.permitted(&request, RefusalScope::OtherContent).await?;
        fill::link(&self.store, repository, digest).await;
        Ok(blob)
    }

    /// Returns content of a repository, some of which the upstream refused, as [`Self::confirm`] does.
    pub(super) async fn confirmed(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: Blob,
        peer: &str,
    ) -> Result<Blob, PullError> {
        let request = self.prepare(repository, digest, peer)?;
        self.known_absent(&request)?;
        let copy = blob.clone();
        let asked = Box::pin(async {
            let permitted = self.permitted(&request, RefusalScope::CachedContent).await;
            permitted.map(|()| copy)
        });
        self.confirm(repository, asked, blob).await
    }

    /// Joins the fill of this blob (true) or starts it. A fill for other repositories requires an authorization by the
    /// upstream, and its failure is not shared.
    async fn fill(&self, request: &BlobRequest<'_>) -> Result<(Arc<Fill>, bool), PullError> {
        let (fill, joined) = self.join_or_start(request).await?;
        if fill.is_for(request.repository) {
            if joined && self.is_refused(request.repository) {
                // The upstream permitted the fill before it refused.
                let asked = self.permitted(request, RefusalScope::OtherContent);
                Box::pin(self.confirm(request.repository, asked, ())).await?;
            }
            return Ok((fill, joined));
        }
        self.permitted(request, RefusalScope::OtherContent).await?;
        if !fill.also_for(request.repository) {
            fill::link(&self.store, request.repository, request.digest).await;
        }
        match fill.begun().await.phase {
            Phase::Failed(_) => self.join_or_start(request).await,
            _ => Ok((fill, joined)),
        }
    }

    async fn join_or_start(&self, request: &BlobRequest<'_>) -> Result<(Arc<Fill>, bool), PullError> {
        let BlobRequest {
            origins,
            repository,
            digest,
            client,
            ..
        } = request;
        let blob = (*digest, self.sizes.get(repository, digest));
        let started = self.inflight.join_or_start(origins, repository, blob, *client);
        match started.await {
            Ok(started) => Ok(started),
            Err(FillRejected::Cooldown(retry_after)) => {
                let cause = "upstream sent wrong bytes for this digest; it is asked again later".into();
                Err(PullError::Unavailable { cause, retry_after })
            }
            Err(FillRejected::TooManyInFlight(no_place)) => Err(no_place.into()),
        }
    }

    /// Returns the request of a client, with the origins to ask.
    pub(super) fn prepare<'a>(
        &self,
        repository: &'a Repository,
        digest: &'a Digest,
        peer: &str,
    ) -> Result<BlobRequest<'a>, PullError> {
        let client = ClientAddress::from_peer(peer);
        let origins = self.origins(repository, client)?;
        let start = self.request_snapshot(&origins);
        Ok(BlobRequest::new(origins, repository, digest, client, start))
    }

    /// Asks upstream for permission, unless it refused this blob in the last seconds.
    async fn permitted(&self, request: &BlobRequest<'_>, scope: RefusalScope) -> Result<(), PullError> {
        let _turn = self.turn(request.repository, request.client).await?;
        let BlobRequest {
            origins,
            repository,
            digest,
            start,
            ..
        } = request;
        let key = ((*repository).clone(), (*digest).clone(), start.generation);
        if let Some(refusal) = self.refusals.of_blob(&key, &self.clock) {
            return Err(refusal);
        }
        let head = origins.blob_head(&repository.name, digest).await;
        let head = head.map_err(|error| self.failed(request, &error));
        self.record_verdict((origins, *start), repository, (None, scope), &head);
        head.map(drop).inspect_err(|failure| {
            if failure.is_refusal() {
                self.refusals.insert_blob(key, &self.clock, failure);
            }
        })
    }

    pub(super) fn failed(&self, request: &BlobRequest<'_>, error: &upstream::Error) -> PullError {
        let failure = PullError::from_upstream(error, RequestedContent::Blob);
        self.remember_absence(request, &failure);
        failure
    }

    fn remember_absence(&self, request: &BlobRequest<'_>, failure: &PullError) {
        let BlobRequest {
            repository,
            digest,
            start,
            ..
        } = request;
        self.negative_cache.insert(
            repository,
            RequestedContent::Blob,
            digest.as_str(),
            start.generation,
            failure,
        );
    }

    pub(super) fn known_absent(&self, request: &BlobRequest<'_>) -> Result<(), PullError> {
        let BlobRequest {
            repository,
            digest,
            start,
            ..
        } = request;
        self.negative_cache
            .get(
                repository,
                RequestedContent::Blob,
                digest.as_str(),
                start.generation,
            )
            .map_or(Ok(()), Err)
    }
}
