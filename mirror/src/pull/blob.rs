//! Blobs: from the cache, from a fill under way, or from upstream past the cache.

use std::ops::Range;
use std::sync::Arc;

use super::failure::{Failure, Kind};
use super::through::{self, Asked, Through};
use super::{Pull, Served, unreadable};
use crate::digest::Digest;
use crate::fill::{Fill, Phase, Progress};
use crate::inflight::NotNow;
use crate::metrics::Outcome;
use crate::name::Repository;
use crate::range::Wanted;
use crate::store::Blob;
use crate::upstream::Upstream;

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
    /// The blob, for a request that wants these parts of it.
    pub(crate) async fn blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        wanted: &Wanted,
    ) -> Result<Served<Source>, Failure> {
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            return Ok(Served {
                value: Source::Stored(blob),
                outcome: Outcome::Hit,
            });
        }
        let upstream = self.origin(repository, Kind::Blob)?;
        self.known_absent(repository, digest, &upstream)?;
        if let Some(served) = self.kept_for_another(repository, digest, &upstream).await? {
            return Ok(served);
        }
        let (fill, joined) = self.fill(repository, digest, &upstream).await?;
        let asked = Asked {
            upstream: &upstream,
            repository,
            digest,
        };
        let value = self.read_from(fill, wanted, asked).await;
        if let (Err(failure), false) = (&value, joined) {
            let version = upstream.credential_generation();
            self.absent
                .note(repository, Kind::Blob, digest.as_str(), version, failure);
        }
        let outcome = if joined { Outcome::Coalesced } else { Outcome::Miss };
        Ok(Served {
            value: value?,
            outcome,
        })
    }

    async fn read_from(&self, fill: Arc<Fill>, wanted: &Wanted, asked: Asked<'_>) -> Result<Source, Failure> {
        let progress = fill.begun().await;
        let part = progress.size.and_then(|size| wanted.single(size));
        match (&progress.phase, part) {
            (Phase::Failed(failure), _) => Err(failure.clone()),
            (Phase::NoRoom, part) => Ok(Source::Through(self.past_the_cache(asked, &fill, part).await?)),
            (Phase::Filling, Some(part)) if part.start > progress.written.saturating_add(AHEAD) => {
                let size = progress.size.unwrap_or(part.end);
                match through::ahead(asked, &fill, size, part).await? {
                    Some(through) => Ok(Source::Through(through)),
                    None => Ok(Source::Filling(fill)),
                }
            }
            _ => Ok(Source::Filling(fill)),
        }
    }

    /// Nothing can be kept: the client streams an upstream answer of its own, held back alike.
    async fn past_the_cache(
        &self,
        asked: Asked<'_>,
        fill: &Fill,
        part: Option<Range<u64>>,
    ) -> Result<Through, Failure> {
        match (part, fill.progress().size) {
            (Some(part), Some(size)) if part.end < size => through::closed(asked, size, part).await,
            (part, _) => {
                through::to_the_end(asked, fill.take_answer(), Arc::clone(&self.inflight), part).await
            }
        }
    }

    /// The blob's size, without downloading it.
    pub(crate) async fn blob_size(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Served<u64>, Failure> {
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            return Ok(Served {
                value: blob.size,
                outcome: Outcome::Hit,
            });
        }
        let upstream = self.origin(repository, Kind::Blob)?;
        self.known_absent(repository, digest, &upstream)?;
        if let Some(Progress { size: Some(size), .. }) =
            self.fill_for(repository, digest).map(|fill| fill.progress())
        {
            return Ok(Served {
                value: size,
                outcome: Outcome::Coalesced,
            });
        }
        let told = upstream.blob_head(&repository.name, digest).await;
        let size = told.map_err(|error| self.failed(repository, digest, &upstream, &error))?;
        match size {
            Some(size) => Ok(Served {
                value: size,
                outcome: Outcome::Miss,
            }),
            None => Err(Failure::unavailable(
                "upstream does not tell the blob's size: GET it instead",
            )),
        }
    }

    /// Content that can't be read any more goes; the next request fetches it again.
    pub(crate) async fn damaged(&self, digest: &Digest, error: &std::io::Error) {
        tracing::error!(%digest, %error, "cached content can't be read; it is dropped");
        self.store.drop_blob(digest).await;
    }

    /// Content that was fetched for another repository: upstream's yes is needed, but no second download.
    async fn kept_for_another(
        &self,
        repository: &Repository,
        digest: &Digest,
        upstream: &Upstream,
    ) -> Result<Option<Served<Source>>, Failure> {
        let Some(blob) = unreadable(self.store.content(digest).await) else {
            return Ok(None);
        };
        self.permitted(repository, digest, upstream).await?;
        if let Err(error) = self.store.link_blob(repository, digest).await {
            tracing::warn!(%repository, %digest, %error, "a blob could not be linked");
        }
        Ok(Some(Served {
            value: Source::Stored(blob),
            outcome: Outcome::Hit,
        }))
    }

    /// Joins the fill of this blob or starts it; a fill that runs for others is joined after upstream's yes only.
    async fn fill(
        &self,
        repository: &Repository,
        digest: &Digest,
        upstream: &Arc<Upstream>,
    ) -> Result<(Arc<Fill>, bool), Failure> {
        match self.inflight.join_or_start(upstream, repository, digest) {
            Ok((fill, joined)) => {
                if !fill.is_for(repository) {
                    self.permitted(repository, digest, upstream).await?;
                    fill.also_for(repository);
                }
                Ok((fill, joined))
            }
            Err(NotNow::Refused(retry_after)) => {
                let message = "upstream sent wrong bytes for this digest; it is asked again later".into();
                Err(Failure::Unavailable { message, retry_after })
            }
            Err(NotNow::Full) => Err(Failure::unavailable("too many blobs are being fetched already")),
        }
    }

    fn fill_for(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Fill>> {
        self.inflight.get(digest).filter(|fill| fill.is_for(repository))
    }

    async fn permitted(
        &self,
        repository: &Repository,
        digest: &Digest,
        upstream: &Upstream,
    ) -> Result<(), Failure> {
        match upstream.blob_head(&repository.name, digest).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed(repository, digest, upstream, &error)),
        }
    }

    fn failed(
        &self,
        repository: &Repository,
        digest: &Digest,
        upstream: &Upstream,
        error: &crate::upstream::Error,
    ) -> Failure {
        let failure = Failure::of(error, Kind::Blob);
        let version = upstream.credential_generation();
        self.absent
            .note(repository, Kind::Blob, digest.as_str(), version, &failure);
        failure
    }

    fn known_absent(
        &self,
        repository: &Repository,
        digest: &Digest,
        upstream: &Upstream,
    ) -> Result<(), Failure> {
        match self.absent.get(
            repository,
            Kind::Blob,
            digest.as_str(),
            upstream.credential_generation(),
        ) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}
