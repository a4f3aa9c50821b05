//! The origins of content that this server lacks, in the order in which it asks them.
//!
//! The policy (`pull`) and the fills ask these and never a registry itself, so that a further origin is one step here and
//! nothing in them. A hit asks no origin.

mod blob;

use std::sync::Arc;

use bytes::Bytes;

pub(crate) use blob::BlobOrigins;

use crate::digest::Digest;
use crate::name::{Reference, RepositoryName};
use crate::upstream::{Accept, BlobAnswer, Error, ListAnswer, ManifestAnswer, ManifestHead, Upstream};

/// The origins of the content of one upstream.
#[derive(Clone)]
pub(crate) struct Origins {
    upstream: Arc<Upstream>,
}

impl Origins {
    /// Returns the origins of the content of an upstream.
    pub(crate) fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream }
    }

    /// Returns the origins of one blob, as a fill asks them.
    pub(crate) fn of_blob(&self, name: &RepositoryName, digest: &Digest) -> BlobOrigins {
        BlobOrigins::new(self.clone(), name.clone(), digest.clone())
    }

    /// See [`Upstream::credential_generation`].
    pub(crate) fn credential_generation(&self) -> u64 {
        self.upstream.credential_generation()
    }

    /// See [`Upstream::is_probing`].
    pub(crate) fn is_probing(&self) -> bool {
        self.upstream.is_probing()
    }

    /// Asks for a part of a blob, for one client and past the cache.
    pub(crate) async fn blob_past_the_cache(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<BlobAnswer, Error> {
        self.upstream.blob_past_the_cache(name, digest, from, until).await
    }

    /// See [`Upstream::past_the_cache`].
    pub(crate) async fn past_the_cache(&self, answer: BlobAnswer) -> Result<BlobAnswer, Error> {
        self.upstream.past_the_cache(answer).await
    }

    /// Asks for permission to serve a blob; see [`Upstream::blob_head`].
    pub(crate) async fn blob_head(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        self.upstream.blob_head(name, digest).await
    }

    /// Asks for the size of a blob; see [`Upstream::blob_size`].
    pub(crate) async fn blob_size(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        self.upstream.blob_size(name, digest).await
    }

    /// Asks for a manifest; see [`Upstream::manifest_as`].
    pub(crate) async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestAnswer, Error> {
        self.upstream.manifest_as(name, reference, accept).await
    }

    /// Asks for the digest of a manifest; see [`Upstream::manifest_head`].
    pub(crate) async fn manifest_head(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestHead, Error> {
        self.upstream.manifest_head(name, reference, accept).await
    }

    /// Asks for a page of tags; see [`Upstream::tags`].
    pub(crate) async fn tags(&self, name: &RepositoryName, query: &str) -> Result<ListAnswer, Error> {
        self.upstream.tags(name, query).await
    }

    /// Asks for the referrers of a manifest; see [`Upstream::referrers`].
    pub(crate) async fn referrers(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Bytes>, Error> {
        self.upstream.referrers(name, digest).await
    }
}
