//! Manifests and tags that the bucket has, loaded into the cache before the upstream is asked.

use std::sync::Arc;

use tracing::debug;

use super::media_type::{self, MediaTypeVerdict};
use super::{ClientRequest, Pull, SingleFlight, unreadable};
use crate::client_address::ClientAddress;
use crate::digest::Digest;
use crate::fill::Turn;
use crate::manifest::Document;
use crate::name::{Reference, Repository, Tag};
use crate::origins::Origins;
use crate::store::{CachedTag, Link, Manifest, StageError};

/// The loads under way.
pub(super) type StoredManifests = SingleFlight<(Repository, Reference), Option<(Digest, Manifest)>>;

impl Pull {
    /// Returns a manifest from the bucket, or the manifest of a tag, once for all clients; `None` if the bucket does not have
    /// it.
    pub(super) async fn load_stored(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        client: ClientRequest<'_>,
    ) -> Option<(Digest, Manifest)> {
        if self.bucket.get().is_none() || self.is_refused(repository) {
            return None;
        }
        let address = ClientAddress::from_peer(client.peer);
        let origins = self.origins(repository, address).ok()?;
        // The owner among the replicas asks the bucket for all of them.
        if !origins.is_direct(&repository.name) {
            return None;
        }
        let key = (repository.clone(), reference.clone());
        let load = |turn: Turn| {
            let (pull, (repository, reference)) = (Arc::clone(self), key.clone());
            async move {
                let _turn = turn;
                pull.load(&origins, &repository, &reference).await
            }
        };
        let waiting = if let Some(waiting) = self.stored.get(&key) {
            waiting
        } else {
            let turn = self.turn(repository, address).await.ok()?;
            self.stored.join(&key, || load(turn)).0
        };
        waiting.await.flatten()
    }

    /// Returns a tag with its manifest, as [`Self::load_stored`] does. No upstream confirmed it, so it is never fresh.
    pub(super) async fn load_stored_tag(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        client: ClientRequest<'_>,
    ) -> Option<(CachedTag, Manifest)> {
        let reference = Reference::Tag(tag.clone());
        let (digest, manifest) = self.load_stored(repository, &reference, client).await?;
        let tag = CachedTag {
            digest,
            validated: self.clock.now(),
            proven: false,
        };
        Some((tag, manifest))
    }

    async fn load(
        &self,
        origins: &Origins,
        repository: &Repository,
        reference: &Reference,
    ) -> Option<(Digest, Manifest)> {
        let (digest, tag) = match reference {
            Reference::Digest(digest) => (digest.clone(), None),
            Reference::Tag(tag) => {
                let known = unreadable(self.store.tag(repository, tag).await);
                let digest = match known {
                    Some(known) => known.digest,
                    None => origins.stored_tag(&repository.name, tag).await?,
                };
                (digest, Some(tag))
            }
        };
        if let Some(manifest) = unreadable(self.store.manifest(repository, &digest).await) {
            return Some((digest, manifest));
        }
        let (content, fetched) = origins.stored_manifest(&repository.name, &digest).await?;
        let document = Document::read(content.bytes())?;
        let Ok(MediaTypeVerdict::Manifest(media_type)) = media_type::judge(&document, None) else {
            return None;
        };
        self.sizes.record(repository, &document);
        let manifest = Manifest::new(content, &media_type);
        self.keep_stored(repository, tag, (&manifest, fetched)).await;
        Some((digest, manifest))
    }

    /// Keeps a manifest of the bucket, and its tag.
    async fn keep_stored(
        &self,
        repository: &Repository,
        tag: Option<&Tag>,
        (manifest, fetched): (&Manifest, Option<i64>),
    ) {
        let digest = manifest.digest();
        let revision = Link::Revision(repository.clone(), digest.clone());
        let tagged = tag.map(|tag| Link::Tag(repository.clone(), tag.clone()));
        let links = std::iter::once(revision).chain(tagged).collect();
        let kept = async {
            self.store.mark_kept(digest, links).await?;
            self.store.put_manifest(repository, manifest).await?;
            if let Some(fetched) = fetched {
                self.store.set_fetched(digest, fetched).await?;
            }
            match tag {
                Some(tag) => self.store.put_unproven_tag(repository, tag, digest).await,
                None => Ok(()),
            }
        };
        match kept.await {
            Ok(()) | Err(StageError::ReadOnly) => {}
            Err(error) => {
                debug!(%repository, %error, "a manifest of the bucket is served without being kept");
            }
        }
    }
}
