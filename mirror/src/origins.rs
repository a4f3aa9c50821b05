//! The origins of content that this server lacks, in the order in which it asks them.
//!
//! The policy (`pull`) and the fills ask these and never a registry itself, so that a further origin is one step here and
//! nothing in them. A hit asks no origin.
//!
//! The owner among the replicas comes first, then the bucket, the upstream last. An answer of the owner that says that the content is not
//! there, or that the registry refuses or limits, counts like the upstream's own: so each of them is asked for once for
//! all replicas. Any other failure of the owner leads to the upstream.

mod blob;
mod stored;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub(crate) use blob::{BlobOrigins, FillSource};
use stored::BucketSource;

pub(crate) use crate::bucket::Bucket;
use crate::bucket::WaitLimit;
use crate::digest::{Digest, Hashed};
use crate::name::{Reference, Repository, RepositoryName, Tag};
use crate::peers::{Fleet, Shard};
use crate::upstream::{Accept, BlobAnswer, Error, ListAnswer, ManifestAnswer, ManifestHead, Upstream};

/// The origins of the content of one upstream.
#[derive(Clone)]
pub(crate) struct Origins {
    upstream: Arc<Upstream>,
    /// The other replicas; `None` where there are none, and for a request of one of them.
    fleet: Option<Arc<Fleet>>,
    /// The other replicas, also for a request of one of them: it may not be forwarded to their fills.
    holders: Option<Arc<Fleet>>,
    /// The bucket; `None` also while only the upstream may permit content.
    bucket: Option<Arc<Bucket>>,
    /// The upstream is never asked.
    offline: bool,
}

impl Origins {
    /// Returns the origins of the content of an upstream, for a client or for another replica.
    pub(crate) fn new(upstream: Arc<Upstream>, fleet: Option<Arc<Fleet>>, is_for_replica: bool) -> Self {
        Self {
            upstream,
            holders: fleet.clone(),
            fleet: fleet.filter(|_| !is_for_replica),
            bucket: None,
            offline: false,
        }
    }

    /// Adds a bucket, which is asked before the upstream, and alone if the server is `offline`.
    pub(crate) fn with_bucket(self, bucket: Option<Arc<Bucket>>, offline: bool) -> Self {
        Self {
            bucket,
            offline,
            ..self
        }
    }

    fn upstream(&self) -> Result<&Upstream, Error> {
        if self.offline {
            let what =
                "this mirror is offline (cache.offline), and neither it nor the bucket has a copy of this";
            return Err(Error::Unavailable {
                what: what.to_owned(),
            });
        }
        Ok(&self.upstream)
    }

    fn patience(&self) -> WaitLimit {
        if self.offline || self.upstream.is_probing() {
            WaitLimit::Long
        } else {
            WaitLimit::Short
        }
    }

    fn stored_blob(&self, repository: &Repository, digest: &Digest) -> Option<BucketSource> {
        let bucket = Arc::clone(self.bucket.as_ref()?);
        let (repository, digest) = (repository.clone(), digest.clone());
        Some(BucketSource::new(bucket, self.patience(), repository, digest))
    }

    /// Returns a manifest that the bucket has for a repository, with the time that its time to live counts from.
    pub(crate) async fn stored_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Option<(Hashed, Option<i64>)> {
        let bucket = self.bucket.as_ref()?;
        bucket
            .manifest(&self.repository(name), digest, self.patience())
            .await
    }

    /// Returns the digest of a tag that the bucket has.
    pub(crate) async fn stored_tag(&self, name: &RepositoryName, tag: &Tag) -> Option<Digest> {
        let bucket = self.bucket.as_ref()?;
        bucket.tag(&self.repository(name), tag, self.patience()).await
    }

    /// Returns the tags that the bucket has of a repository. This costs a LIST.
    pub(crate) async fn stored_tags(&self, name: &RepositoryName) -> Vec<String> {
        match &self.bucket {
            Some(bucket) => bucket.tags(&self.repository(name)).await,
            None => Vec::new(),
        }
    }

    /// Returns the digest that the bucket's link of a blob in a repository names.
    async fn stored_layer(&self, name: &RepositoryName, digest: &Digest) -> Option<Digest> {
        let bucket = self.bucket.as_ref()?;
        bucket
            .layer(&self.repository(name), digest, self.patience())
            .await
    }

    /// Returns a part of content that the bucket has, where a repository has a link to it.
    async fn stored_part(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        part: Range<u64>,
    ) -> Option<BlobAnswer> {
        let (bucket, repository) = (self.bucket.as_ref()?, self.repository(name));
        let found = bucket.blob(&repository, digest, part, self.patience()).await;
        Some(found?.1.answer)
    }

    /// Returns the origins of one blob, as a fill asks them.
    pub(crate) fn of_blob(&self, name: &RepositoryName, digest: &Digest) -> BlobOrigins {
        BlobOrigins::new(self.clone(), self.repository(name), digest.clone())
    }

    /// See [`Upstream::credential_generation`].
    pub(crate) fn credential_generation(&self) -> u64 {
        self.upstream.credential_generation()
    }

    /// Returns whether manifests and lists of a repository come from the upstream, without another replica.
    pub(crate) fn is_direct(&self, name: &RepositoryName) -> bool {
        let shard = || Shard::of_repository(&self.repository(name));
        self.fleet
            .as_ref()
            .is_none_or(|fleet| fleet.owners(shard()).is_empty())
    }

    /// Asks the upstream for a part of a blob, for one client and past the cache.
    pub(crate) async fn blob_past_the_cache(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<BlobAnswer, Error> {
        let part = from..until.unwrap_or(u64::MAX);
        if let Some(answer) = self.stored_part(name, digest, part).await {
            return Ok(answer);
        }
        self.upstream()?
            .blob_past_the_cache(name, digest, from, until)
            .await
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
        if let Some(fleet) = &self.fleet
            && let Some(answer) = fleet.blob_head(&self.repository(name), digest).await
        {
            return answer;
        }
        if self.stored_layer(name, digest).await.is_some() {
            return Ok(None);
        }
        self.upstream()?.blob_head(name, digest).await
    }

    /// Asks for the size of a blob; see [`Upstream::blob_size`].
    pub(crate) async fn blob_size(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        if let Some(fleet) = &self.fleet
            && let Some(answer) = fleet.blob_head(&self.repository(name), digest).await
        {
            return answer;
        }
        if self.bucket.is_some() && *digest == Digest::compute(digest.algorithm(), b"") {
            return self.blob_head(name, digest).await.map(|_| Some(0));
        }
        if let Some(answer) = self.stored_part(name, digest, 0..1).await {
            return Ok(answer.total);
        }
        self.upstream()?.blob_size(name, digest).await
    }

    /// Asks for a manifest; see [`Upstream::manifest_as`].
    pub(crate) async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestAnswer, Error> {
        if let Some(fleet) = &self.fleet
            && let Some(answer) = fleet.manifest(&self.repository(name), reference, accept).await
        {
            return answer;
        }
        if let Some(holders) = &self.holders
            && let Some(answer) = holders
                .manifest_of_holder(&self.repository(name), reference, accept)
                .await
        {
            return Ok(answer);
        }
        self.upstream()?.manifest_as(name, reference, accept).await
    }

    /// Asks for the digest of a manifest; see [`Upstream::manifest_head`].
    pub(crate) async fn manifest_head(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestHead, Error> {
        if let Some(fleet) = &self.fleet
            && let Some(answer) = fleet
                .manifest_head(&self.repository(name), reference, accept)
                .await
        {
            return answer;
        }
        self.upstream()?.manifest_head(name, reference, accept).await
    }

    /// Asks for a page of tags; see [`Upstream::tags`].
    pub(crate) async fn tags(&self, name: &RepositoryName, query: &str) -> Result<ListAnswer, Error> {
        if let Some(fleet) = &self.fleet
            && let Some(answer) = fleet.tags(&self.repository(name), query).await
        {
            return answer;
        }
        self.upstream()?.tags(name, query).await
    }

    /// Asks for the referrers of a manifest; see [`Upstream::referrers`].
    pub(crate) async fn referrers(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Bytes>, Error> {
        if let Some(fleet) = &self.fleet
            && let Some(answer) = fleet.referrers(&self.repository(name), digest).await
        {
            return answer.map(Some);
        }
        self.upstream()?.referrers(name, digest).await
    }

    fn repository(&self, name: &RepositoryName) -> Repository {
        Repository {
            host: self.upstream.host().clone(),
            name: name.clone(),
        }
    }
}
