//! Manifests: hashed whenever they come from disk, then held in memory.

use std::borrow::Cow;
use std::fs;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::Digest;
use crate::name::Repository;
use crate::store::blobs::is_damage;
use crate::store::durable::on;
use crate::store::index::{Link, Op};
use crate::store::{Error, Inner, Manifest, StageError, Staged, Store, link};

impl Store {
    /// The manifest, if this repository has a link to it. Counts as a use.
    ///
    /// One whose bytes no longer match its digest is dropped and is a miss.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, Error> {
        let now = self.inner.clock.now();
        if let Some(manifest) = self.inner.hits.manifest(repository, digest, now) {
            return Ok(Some(manifest));
        }
        let (repository, digest) = (repository.clone(), digest.clone());
        self.blocking(move |inner| inner.load_manifest(&repository, &digest))
            .await
    }

    /// Stores a manifest and links it into its repository.
    ///
    /// # Errors
    /// [`StageError::Mismatch`] where the bytes are not what the digest names.
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
        let Some(bytes) = self.read_whole(&target)? else {
            tracing::warn!(digest = %target, "manifest dropped: it is missing, or its bytes have another digest");
            self.remove_unless(&target, || matches!(self.read_whole(&target), Ok(Some(_))))?;
            return Ok(None);
        };
        if target != *digest && Digest::of(digest.algorithm(), &bytes) != *digest {
            tracing::warn!(%digest, %target, "manifest not served: its link leads to another one");
            return Ok(None);
        }
        let media_type = match self.index.media_type(&target)? {
            Some(known) => known,
            None => media_type(&bytes).to_owned(),
        };
        let manifest = Manifest {
            digest: digest.clone(),
            media_type,
            bytes: Bytes::from(bytes),
        };
        self.hits.hold_manifest(repository, &manifest, self.clock.now());
        Ok(Some(manifest))
    }

    /// Content that has the digest which it is named by.
    fn read_whole(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let path = self.layout.blob_data(digest);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes).filter(|bytes| Digest::of(digest.algorithm(), bytes) == *digest)),
            Err(error) if is_damage(&error) => Ok(None),
            Err(error) => Err(on("read", &path)(error).into()),
        }
    }

    fn save_manifest(
        &self,
        store: Store,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<(), StageError> {
        let digest = &manifest.digest;
        let mut staged = Staged::begin(store, digest, Some(manifest.bytes.len() as u64), 0)?;
        staged.append(&manifest.bytes)?;
        staged.verify().map_err(StageError::Mismatch)?;
        let link = Link::Revision(repository.clone(), digest.clone());
        let media_type = Op::MediaType(digest.clone(), manifest.media_type.clone());
        self.admit(staged, &[link], vec![media_type])?;
        self.hits.hold_manifest(repository, manifest, self.clock.now());
        Ok(())
    }
}

/// What a manifest's own bytes say of its type, where upstream's `Content-Type` is lost or says nothing
/// (image-spec, "Media Types"; Docker image manifest schema 2).
pub(crate) fn media_type(bytes: &[u8]) -> &'static str {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Shape<'a> {
        #[serde(borrow)]
        media_type: Option<Cow<'a, str>>,
        manifests: Option<IgnoredAny>,
        #[serde(borrow)]
        config: Option<Box<Shape<'a>>>,
    }
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
    const KNOWN: [&str; 5] = [
        INDEX,
        IMAGE,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        DOCKER,
        "application/vnd.oci.artifact.manifest.v1+json",
    ];
    let shape: Shape<'_> = serde_json::from_slice(bytes).unwrap_or_default();
    let said = |media_type: &Option<Cow<'_, str>>, part: &str| {
        media_type.as_deref().is_some_and(|m| m.contains(part))
    };
    if let Some(known) = KNOWN
        .into_iter()
        .find(|known| shape.media_type.as_deref() == Some(known))
    {
        return known;
    }
    match (shape.manifests, shape.config) {
        (Some(_), _) => INDEX,
        (None, Some(config)) if said(&config.media_type, ".docker.") => DOCKER,
        (None, _) => IMAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::media_type;
    use test_case::test_case;

    #[test_case(r#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#, "application/vnd.docker.distribution.manifest.v2+json"; "as it says")]
    #[test_case(r#"{"manifests":[]}"#, "application/vnd.oci.image.index.v1+json"; "an index by its shape")]
    #[test_case(r#"{"layers":[]}"#, "application/vnd.oci.image.manifest.v1+json"; "an image by its shape")]
    #[test_case(r#"{"mediaType":"text/html","manifests":[]}"#, "application/vnd.oci.image.index.v1+json"; "not what no manifest is")]
    #[test_case(r#"{"config":{"mediaType":"application/vnd.docker.container.image.v1+json"}}"#, "application/vnd.docker.distribution.manifest.v2+json"; "a docker image by its shape")]
    #[test_case("[", "application/vnd.oci.image.manifest.v1+json"; "no JSON")]
    fn a_lost_media_type_is_found_again(bytes: &str, expected: &str) {
        assert_eq!(media_type(bytes.as_bytes()), expected);
    }
}
