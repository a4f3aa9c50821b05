//! Blobs: from the cache, from a fill under way, or from upstream past the cache.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use tracing::error;

use super::failure::{Failure, Kind};
use super::through::{self, Asked, Through};
use super::{Pull, Served, unreadable};
use crate::client_address::ClientAddress;
use crate::digest::Digest;
use crate::fill::{self, Fill, Phase};
use crate::inflight::FillRejected;
use crate::metrics::Outcome;
use crate::name::Repository;
use crate::range::Wanted;
use crate::store::{Blob, Found};
use crate::upstream;

/// A range that starts further ahead of the fill than this is fetched on its own.
const AHEAD: u64 = 8 * 1024 * 1024;

/// Where a blob's bytes come from.
pub(crate) enum Source {
    /// The cache.
    Stored(Blob),
    /// A fill, as far as it is; what is not there yet is waited for.
    Filling(Arc<Fill>),
    /// An upstream answer of this request's own.
    Through(Through),
}

impl Pull {
    /// Returns the blob, for a request from this peer that wants these parts of it.
    pub(crate) async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: &Wanted,
        peer: &str,
    ) -> Result<Served<Source>, Failure> {
        let hit = |blob| Served {
            value: Source::Stored(blob),
            outcome: Outcome::Hit,
        };
        // What follows a miss is boxed, as each hit would make room for it.
        match unreadable(self.store.find(repository, digest).await.map(Some)) {
            Some(Found::Linked(blob)) if !self.is_refused(repository) => Ok(hit(blob)),
            Some(Found::Linked(blob)) => Box::pin(self.permitted_again(repository, digest, blob, peer))
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
    ) -> Result<Served<Source>, Failure> {
        let asked = self.about(repository, digest, peer)?;
        self.known_absent(&asked)?;
        let (fill, joined) = self.fill(&asked).await?;
        let value = self.read_from(fill, wanted, &asked).await;
        self.heed((&asked.upstream, asked.generation), repository, None, &value);
        if let (Err(failure), false) = (&value, joined) {
            self.note(&asked, failure);
        }
        let outcome = if joined { Outcome::Coalesced } else { Outcome::Miss };
        Ok(Served {
            value: value?,
            outcome,
        })
    }

    /// Returns the blob's size, without downloading it; `None` if upstream has the blob and does not say its size.
    pub(crate) async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
        peer: &str,
    ) -> Result<Served<Option<u64>>, Failure> {
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            if self.is_refused(repository) {
                Box::pin(self.permitted_again(repository, digest, blob.clone(), peer)).await?;
            }
            return Ok(Served {
                value: Some(blob.size),
                outcome: Outcome::Hit,
            });
        }
        Box::pin(self.size_of_missed(repository, digest, peer)).await
    }

    async fn size_of_missed(
        &self,
        repository: &Repository,
        digest: &Digest,
        peer: &str,
    ) -> Result<Served<Option<u64>>, Failure> {
        let fill = self.inflight.get(repository, digest);
        let fill = fill.filter(|fill| fill.is_for(repository) && !fill.has_failed());
        if let Some(value @ Some(_)) = fill.map(|fill| fill.progress().size) {
            return Ok(Served {
                value,
                outcome: Outcome::Coalesced,
            });
        }
        let hit = |value| Served {
            value: Some(value),
            outcome: Outcome::Hit,
        };
        let asked = self.about(repository, digest, peer)?;
        self.known_absent(&asked)?;
        if let Some(size) = self.sizes.of(repository, digest)
            && !self.is_refused(repository)
        {
            return Ok(hit(size));
        }
        // A fill may have ended since the cache was read.
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            return Ok(hit(blob.size));
        }
        let _turn = self.turn(repository, asked.client).await?;
        let said = asked.upstream.blob_size(&repository.name, digest).await;
        let said = said.map_err(|error| self.failed(&asked, &error));
        self.heed((&asked.upstream, asked.generation), repository, None, &said);
        let value = match said? {
            Some(size) => Some(size),
            // Upstream permitted it: what it sent for another repository has the size.
            None => match self.store.find(repository, digest).await {
                Ok(Found::Linked(blob) | Found::Unlinked(blob)) => Some(blob.size),
                Ok(Found::Missing) | Err(_) => None,
            },
        };
        let outcome = Outcome::Miss;
        Ok(Served { value, outcome })
    }

    /// Content that can't be read any more goes; the next request fetches it again.
    pub(crate) async fn damaged(&self, digest: &Digest, error: &io::Error) {
        error!(%digest, %error, "cached content can't be read; it is dropped");
        self.store.drop_blob(digest).await;
    }

    async fn read_from(
        &self,
        fill: Arc<Fill>,
        wanted: &Wanted,
        asked: &Asked<'_>,
    ) -> Result<Source, Failure> {
        let mut progress = fill.begun().await;
        if matches!(progress.phase, Phase::Filling)
            && progress.size.is_some_and(|size| wanted.is_beyond(size))
        {
            // Until the digest matched, the size is only what upstream says. A client that goes on where it was
            // cut would take a wrong end for the blob's.
            progress = fill.ended().await;
        }
        let part = progress.size.and_then(|size| wanted.single(size));
        match (&progress.phase, part) {
            (Phase::Failed(failure), _) => Err(failure.clone()),
            (Phase::NoRoom, part) => {
                let turn = self.passing.turn(&asked.repository.host, asked.client).await?;
                let through = self.past_the_cache(asked, &fill, part).await?;
                Ok(Source::Through(through.holding(turn)))
            }
            (Phase::Filling, Some(part)) if part.start > progress.written.saturating_add(AHEAD) => {
                let size = progress.size.unwrap_or(part.end);
                let turn = self.passing.turn(&asked.repository.host, asked.client).await?;
                let through = through::ahead(asked, &fill, size, part).await;
                let held = through.map(|through| Source::Through(through.holding(turn)));
                Ok(held.unwrap_or(Source::Filling(fill)))
            }
            _ => Ok(Source::Filling(fill)),
        }
    }

    /// Nothing can be kept: the client streams an upstream answer of its own, held back alike.
    async fn past_the_cache(
        &self,
        asked: &Asked<'_>,
        fill: &Fill,
        part: Option<Range<u64>>,
    ) -> Result<Through, Failure> {
        match (part, fill.progress().size) {
            (Some(part), Some(size)) if part.end < size => {
                let size = self.sizes.of(asked.repository, asked.digest).unwrap_or(size);
                through::closed(asked, size, part).await
            }
            (part, _) => {
                through::to_the_end(asked, fill.take_answer(), Arc::clone(&self.inflight), part).await
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
    ) -> Result<Blob, Failure> {
        let fill = self.inflight.get(repository, digest);
        if fill.is_some_and(|fill| fill.is_verified_for(repository)) {
            return Ok(blob);
        }
        // A fill may have ended since the cache was read.
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            return Ok(blob);
        }
        let blob = self.permitted_again(repository, digest, blob, peer).await?;
        fill::link(&self.store, repository, digest).await;
        Ok(blob)
    }

    /// Returns content once upstream has permitted it.
    async fn permitted_again(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: Blob,
        peer: &str,
    ) -> Result<Blob, Failure> {
        let asked = self.about(repository, digest, peer)?;
        self.known_absent(&asked)?;
        self.permitted(&asked).await?;
        Ok(blob)
    }

    /// Joins the fill of this blob (true) or starts it; one that runs for others is joined after upstream's yes
    /// only, and its failure is not ours.
    async fn fill(&self, asked: &Asked<'_>) -> Result<(Arc<Fill>, bool), Failure> {
        let (fill, joined) = self.join_or_start(asked).await?;
        if fill.is_for(asked.repository) {
            return Ok((fill, joined));
        }
        self.permitted(asked).await?;
        if !fill.also_for(asked.repository) {
            fill::link(&self.store, asked.repository, asked.digest).await;
        }
        match fill.begun().await.phase {
            Phase::Failed(_) => self.join_or_start(asked).await,
            _ => Ok((fill, joined)),
        }
    }

    async fn join_or_start(&self, asked: &Asked<'_>) -> Result<(Arc<Fill>, bool), Failure> {
        let Asked {
            upstream,
            repository,
            digest,
            client,
            ..
        } = asked;
        let started = self.inflight.join_or_start(upstream, repository, digest, *client);
        match started.await {
            Ok(started) => Ok(started),
            Err(FillRejected::Cooldown(retry_after)) => {
                let cause = "upstream sent wrong bytes for this digest; it is asked again later".into();
                Err(Failure::Unavailable { cause, retry_after })
            }
            Err(FillRejected::TooManyInFlight(no_place)) => Err(no_place.into()),
        }
    }

    /// Returns what a peer asks for, and the upstream to ask.
    fn about<'a>(
        &self,
        repository: &'a Repository,
        digest: &'a Digest,
        peer: &str,
    ) -> Result<Asked<'a>, Failure> {
        let upstream = self.origin(repository)?;
        let client = ClientAddress::of_peer(peer);
        Ok(Asked::new(upstream, repository, digest, client))
    }

    async fn permitted(&self, asked: &Asked<'_>) -> Result<(), Failure> {
        let _turn = self.turn(asked.repository, asked.client).await?;
        let Asked {
            upstream,
            repository,
            digest,
            generation,
            ..
        } = asked;
        let head = upstream.blob_head(&repository.name, digest).await;
        let head = head.map_err(|error| self.failed(asked, &error));
        self.heed((upstream, *generation), repository, None, &head);
        head.map(drop)
    }

    fn failed(&self, asked: &Asked<'_>, error: &upstream::Error) -> Failure {
        let failure = Failure::of(error, Kind::Blob);
        self.note(asked, &failure);
        failure
    }

    fn note(&self, asked: &Asked<'_>, failure: &Failure) {
        let Asked {
            repository,
            digest,
            generation,
            ..
        } = asked;
        self.absent
            .note(repository, Kind::Blob, digest.as_str(), *generation, failure);
    }

    fn known_absent(&self, asked: &Asked<'_>) -> Result<(), Failure> {
        let Asked {
            repository,
            digest,
            generation,
            ..
        } = asked;
        self.absent
            .get(repository, Kind::Blob, digest.as_str(), *generation)
            .map_or(Ok(()), Err)
    }
}
