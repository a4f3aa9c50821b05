//! The metadata of blobs, for requests that need no bytes.

use super::refusals::UNCACHED;
use super::{Pull, Served, unreadable};
use crate::digest::Digest;
use crate::name::Repository;
use crate::pull_error::PullError;
use crate::store::{Blob, Found};

/// The metadata of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlobSnapshot {
    /// The size in bytes; `None` if upstream has the blob and does not say its size.
    pub(crate) size: Option<u64>,
    /// `true` if the cache has the blob, so that its bytes were verified.
    pub(crate) is_stored: bool,
}

impl BlobSnapshot {
    fn stored(blob: &Blob) -> Self {
        let (size, is_stored) = (Some(blob.size), true);
        Self { size, is_stored }
    }

    fn unverified(size: Option<u64>) -> Self {
        let is_stored = false;
        Self { size, is_stored }
    }
}

impl Pull {
    /// Returns the metadata of a blob, without downloading it.
    pub(crate) async fn blob_metadata(
        &self,
        repository: &Repository,
        digest: &Digest,
        peer: &str,
    ) -> Result<Served<BlobSnapshot>, PullError> {
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            if self.is_refused(repository) {
                Box::pin(self.confirmed(repository, digest, blob.clone(), peer)).await?;
            }
            return Ok(Served::hit(BlobSnapshot::stored(&blob)));
        }
        Box::pin(self.metadata_of_missed(repository, digest, peer)).await
    }

    async fn metadata_of_missed(
        &self,
        repository: &Repository,
        digest: &Digest,
        peer: &str,
    ) -> Result<Served<BlobSnapshot>, PullError> {
        let fill = self.inflight.get(repository, digest);
        let fill =
            fill.filter(|fill| fill.is_for(repository) && !fill.has_failed() && !self.is_refused(repository));
        if let Some(size @ Some(_)) = fill.map(|fill| fill.progress().size) {
            return Ok(Served::coalesced(BlobSnapshot::unverified(size)));
        }
        let request = self.prepare(repository, digest, peer)?;
        self.known_absent(&request)?;
        if let Some(size) = self.sizes.get(repository, digest)
            && !self.is_refused(repository)
        {
            return Ok(Served::hit(BlobSnapshot::unverified(Some(size))));
        }
        // A fill may have ended since the cache was read.
        if let Some(blob) = unreadable(self.store.blob(repository, digest).await) {
            return Ok(Served::hit(BlobSnapshot::stored(&blob)));
        }
        let _turn = self.turn(repository, request.client).await?;
        let said = request.origins.blob_size(&repository.name, digest).await;
        let said = said.map_err(|error| self.failed(&request, &error));
        self.record_verdict((&request.origins, request.start), repository, UNCACHED, &said);
        let value = match said? {
            Some(size) => BlobSnapshot::unverified(Some(size)),
            // Upstream permitted it: what it sent for another repository has the size.
            None => match self.store.find(repository, digest).await {
                Ok(Found::Linked(blob) | Found::Unlinked(blob)) => BlobSnapshot::stored(&blob),
                Ok(Found::Missing) | Err(_) => BlobSnapshot::unverified(None),
            },
        };
        Ok(Served::miss(value))
    }
}
