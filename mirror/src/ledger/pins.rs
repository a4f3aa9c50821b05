//! Pinned content of the bucket: what the patterns name in the shards of this server, and all that these manifests name.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::table::ShardTable;
use super::{LedgerError, Shared};
use crate::config::Globs;
use crate::digest::Digest;
use crate::manifest::Document;
use crate::store::Link;
use crate::upstream::MAX_MANIFEST;

/// The time for which the pinned content stays known.
const VALID: Duration = Duration::from_mins(5);
/// The most pinned pieces of content; with more, nothing is evicted.
pub(crate) const MAX_PINNED: usize = 65_536;

/// The pinned content, as it was found last.
#[derive(Debug, Default)]
pub(super) struct BucketPins {
    found: Option<(Globs, Instant)>,
    pinned: HashSet<Digest>,
}

impl BucketPins {
    /// Returns the pinned content; `None` if it is not known, so that nothing may be evicted.
    pub(super) async fn get(
        &mut self,
        shared: &Shared,
        owned: &[u8],
        patterns: &Globs,
    ) -> Result<Option<HashSet<Digest>>, LedgerError> {
        if patterns.is_empty() {
            return Ok(Some(HashSet::new()));
        }
        let is_known = |(of, at): &(Globs, Instant)| of == patterns && at.elapsed() < VALID;
        if !self.found.as_ref().is_some_and(is_known) {
            let Some(pinned) = shared.pinned(owned, patterns).await? else {
                return Ok(None);
            };
            self.pinned = pinned;
            self.found = Some((patterns.clone(), Instant::now()));
        }
        Ok(Some(self.pinned.clone()))
    }
}

impl Shared {
    /// Returns the content that is pinned, by what this server and the others know; `None` if it is not known.
    pub(super) async fn all_pinned(&self, owned: &[u8]) -> Result<Option<HashSet<Digest>>, LedgerError> {
        let patterns = self.patterns.lock().clone();
        if patterns.is_empty() {
            return Ok(Some(HashSet::new()));
        }
        let own = self.pins.lock().await.get(self, owned, &patterns).await?;
        let (Some(own), Some(others)) = (own, self.pinned_of_members().await) else {
            tracing::warn!("the pinned content of the bucket is not known: nothing is evicted from it");
            return Ok(None);
        };
        Ok(Some(own.into_iter().chain(others).collect()))
    }

    /// Returns the content that patterns pin by what these shards have; `None` if there is too much of it.
    pub(super) async fn pinned(
        &self,
        shards: &[u8],
        patterns: &Globs,
    ) -> Result<Option<HashSet<Digest>>, LedgerError> {
        let mut pinned = HashSet::new();
        let mut manifests = Vec::new();
        for (digest, link) in self.pinned_links(shards, patterns) {
            match &link {
                Link::Layer(..) => {
                    pinned.insert(digest);
                }
                Link::Revision(..) => manifests.push(digest),
                // A tag keeps what it points to now, not what it once did.
                Link::Tag(repository, tag) => {
                    if self.bucket.current_tag(repository, tag).await?.as_ref() == Some(&digest) {
                        manifests.push(digest);
                    }
                }
            }
        }
        while let Some(digest) = manifests.pop() {
            if !pinned.insert(digest.clone()) {
                continue;
            }
            if pinned.len() > MAX_PINNED {
                return Ok(None);
            }
            let document = self.document(&digest).await?;
            pinned.extend(document.blobs().iter().map(|blob| blob.digest.clone()));
            manifests.extend(document.manifests().iter().map(|found| found.digest.clone()));
        }
        Ok((pinned.len() <= MAX_PINNED).then_some(pinned))
    }

    fn pinned_links(&self, shards: &[u8], patterns: &Globs) -> Vec<(Digest, Link)> {
        let mut found = Vec::new();
        for shard in shards {
            let slot = self.slot(*shard).lock();
            for (digest, entry) in slot.iter().flat_map(ShardTable::iter) {
                let links = entry.links(digest);
                let pinned = links.filter(|link| patterns.matches(&link.pin_name()));
                found.extend(pinned.map(|link| (digest.clone(), link)));
            }
        }
        found
    }

    /// Returns a manifest of the cache, or else of the bucket; an empty document if neither has it.
    async fn document(&self, digest: &Digest) -> Result<Document, LedgerError> {
        let local = self.store.manifest_bytes(digest).await?;
        let bytes = match local {
            Some(bytes) => Some(bytes),
            None => self.bucket.small_content(digest, MAX_MANIFEST).await?,
        };
        Ok(bytes.and_then(|bytes| Document::read(&bytes)).unwrap_or_default())
    }
}
