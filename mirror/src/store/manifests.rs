//! Manifests: hashed whenever they come from disk, then held in memory.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use crate::digest::{Digest, Hashed};
use crate::manifest::Document;
use crate::name::Repository;
use crate::store::blobs::is_damage;
use crate::store::durable::{self, on};
use crate::store::hot_cache::ContentHandle;
use crate::store::index::{Link, Op};
use crate::store::{Error, Inner, StageError, Staged, Store, link};

/// The longest manifest, in bytes; a longer one is never stored.
pub(super) const MAX_MANIFEST: u64 = 4 << 20;

/// A manifest, byte for byte. Clones share it.
#[derive(Clone, Debug)]
pub struct Manifest(Arc<ManifestData>);

#[derive(Debug)]
struct ManifestData {
    content: Hashed,
    media_type: HeaderValue,
    /// The handle of the content, if the manifest comes from the memory of the cache.
    handle: Option<Arc<ContentHandle>>,
}

impl Manifest {
    /// Creates a manifest with the `Content-Type` that upstream gave it; `application/json` replaces one that no header can
    /// carry.
    pub fn new(content: Hashed, media_type: &str) -> Self {
        let media_type = HeaderValue::from_str(media_type);
        Self(Arc::new(ManifestData {
            content,
            media_type: media_type.unwrap_or(HeaderValue::from_static("application/json")),
            handle: None,
        }))
    }

    /// Returns the same manifest with the handle of its content.
    pub(super) fn with_handle(&self, handle: Arc<ContentHandle>) -> Self {
        Self(Arc::new(ManifestData {
            content: self.0.content.clone(),
            media_type: self.0.media_type.clone(),
            handle: Some(handle),
        }))
    }

    /// Returns the digest of the bytes.
    pub fn digest(&self) -> &Digest {
        self.0.content.digest()
    }

    /// Returns the bytes as they came.
    pub fn bytes(&self) -> &Bytes {
        self.0.content.bytes()
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(&self) -> &HeaderValue {
        &self.0.media_type
    }

    /// Returns the media type.
    pub fn media_type(&self) -> &str {
        // The value was made of a text.
        self.0.media_type.to_str().unwrap_or_default()
    }

    /// Returns the handle of the content, if the manifest comes from the memory of the cache.
    pub(super) fn handle(&self) -> Option<&Arc<ContentHandle>> {
        self.0.handle.as_ref()
    }
}

impl PartialEq for Manifest {
    fn eq(&self, other: &Self) -> bool {
        self.0.content == other.0.content && self.0.media_type == other.0.media_type
    }
}

impl Eq for Manifest {}

impl Store {
    /// Returns the manifest if this repository has a link to it, and counts the use.
    ///
    /// A manifest that no longer matches its digest is dropped, and is a miss.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, Error> {
        match self.manifest_in_memory(repository, digest) {
            // Boxed, because each hit would make room for it.
            None => Box::pin(self.read_manifest(repository, digest)).await,
            manifest => Ok(manifest),
        }
    }

    fn manifest_in_memory(&self, repository: &Repository, digest: &Digest) -> Option<Manifest> {
        let now = self.inner.clock.now();
        self.inner.hot_cache.manifest(repository, digest, now)
    }

    async fn read_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, Error> {
        let _turn = self.inner.hot_cache.manifest_read().await;
        if let Some(manifest) = self.manifest_in_memory(repository, digest) {
            return Ok(Some(manifest));
        }
        let (repository, digest) = (repository.clone(), digest.clone());
        self.blocking(move |inner| inner.load_manifest(&repository, &digest))
            .await
    }

    /// Counts a pull of a manifest, if it is in the cache.
    pub fn count_pull(&self, manifest: &Manifest) {
        self.inner.hot_cache.count_pull(manifest);
    }

    /// Stores a manifest, which was hashed when it came, and links it into its repository.
    pub async fn put_manifest(&self, repository: &Repository, manifest: &Manifest) -> Result<(), StageError> {
        let (store, repository, manifest) = (self.clone(), repository.clone(), manifest.clone());
        self.blocking(move |inner| inner.save_manifest(store, &repository, &manifest))
            .await
    }
}

impl Inner {
    fn load_manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<Manifest>, Error> {
        let Some(target) = link::read_named(&self.layout.revision_link(repository, digest), digest)? else {
            return Ok(None);
        };
        let Some(content) = self.read_whole(&target)? else {
            tracing::warn!(digest = %target, "manifest dropped: it is missing, or its bytes have another digest");
            self.remove_unless(&target, || matches!(self.read_whole(&target), Ok(Some(_))))?;
            return Ok(None);
        };
        let content = if target == *digest {
            content
        } else if let Ok(content) = Hashed::checked(digest, content.bytes().clone()) {
            content
        } else {
            tracing::warn!(%digest, %target, "manifest not served: its link leads to another one");
            return Ok(None);
        };
        let media_type = match self.index.media_type(&target)? {
            Some(known) => known,
            None => Document::read(content.bytes())
                .unwrap_or_default()
                .kind()
                .to_owned(),
        };
        let manifest = Manifest::new(content, &media_type);
        let held = self
            .hot_cache
            .hold_manifest(repository, &manifest, self.clock.now());
        Ok(Some(held))
    }

    /// Reads content that matches its digest.
    fn read_whole(&self, digest: &Digest) -> Result<Option<Hashed>, Error> {
        let path = self.layout.blob_data(digest);
        match durable::read(&path, MAX_MANIFEST) {
            Ok(bytes) => Ok(Hashed::checked(digest, bytes.into()).ok()),
            Err(error) if is_damage(&error) || error.kind() == ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(on("read", &path)(error).into()),
        }
    }

    fn save_manifest(
        &self,
        store: Store,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<(), StageError> {
        let staged = Staged::whole(store, &repository.host, &manifest.0.content)?;
        let digest = manifest.digest();
        let link = Link::Revision(repository.clone(), digest.clone());
        let media_type = Op::MediaType(digest.clone(), manifest.media_type().to_owned());
        self.admit(staged, &[link], vec![media_type])?;
        self.hot_cache
            .hold_manifest(repository, manifest, self.clock.now());
        Ok(())
    }
}
