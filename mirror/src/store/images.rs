//! The cached images, listed from the directories.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::name::{Reference, Repository};
use crate::store::catalog::each_repository;
use crate::store::image_summary::SummaryBudget;
use crate::store::purge::RepositoryLinks;
use crate::store::{Error, Inner, Store, pins};

/// An image of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedImage {
    /// The repository.
    pub repository: Repository,
    /// The tag, or the digest of an image that was pulled without a tag.
    pub reference: Reference,
    /// The digest of the manifest.
    pub digest: Digest,
    /// The cached bytes of the image: manifests, configurations and layers. Images share layers.
    pub bytes: u64,
    /// The last use of the manifest, in ms since 1970.
    pub used: i64,
}

impl Store {
    /// Calls `visit` for each cached image of the repositories that `is_listed`, until it returns `false`. Memory holds
    /// the links of one repository at a time. The listing ends with its caller.
    pub async fn each_image(
        &self,
        is_listed: impl Fn(&Repository) -> bool + Send + 'static,
        mut visit: impl FnMut(CachedImage) -> bool + Send + 'static,
    ) -> Result<(), Error> {
        let stop = CancellationToken::new();
        let _stops = stop.clone().drop_guard();
        self.blocking(move |inner| {
            let mut reads = SummaryBudget::new(u64::MAX, stop);
            inner.write_recorded_uses()?;
            let mut repositories = Vec::new();
            each_repository(&inner.layout, &mut |repository| {
                if is_listed(&repository) {
                    repositories.push(repository);
                }
            })?;
            repositories.sort_by_cached_key(ToString::to_string);
            for repository in &repositories {
                if !inner
                    .images_of(repository, &mut reads)?
                    .into_iter()
                    .all(&mut visit)
                {
                    break;
                }
            }
            Ok(())
        })
        .await
    }
}

impl Inner {
    /// Returns the images of a repository: tags first, then manifests that no tag and no index leads to.
    fn images_of(
        &self,
        repository: &Repository,
        reads: &mut SummaryBudget,
    ) -> Result<Vec<CachedImage>, Error> {
        let RepositoryLinks { tags, manifests, .. } = self.repository_links(repository)?;
        let mut led_to: BTreeSet<_> = tags.iter().map(|(_, digest)| digest.clone()).collect();
        for digest in &manifests {
            if reads.is_stopped() {
                return Ok(Vec::new());
            }
            led_to.extend(pins::named_by(&self.layout, digest));
        }
        let tagged = tags
            .into_iter()
            .map(|(tag, digest)| (Reference::Tag(tag), digest));
        let others = manifests.into_iter().filter(|digest| !led_to.contains(digest));
        let others = others.map(|digest| (Reference::Digest(digest.clone()), digest));
        let mut images = Vec::new();
        for (reference, digest) in tagged.chain(others) {
            // A tag may point to a manifest that was evicted.
            let Some(manifest) = self.index.get(&digest)? else {
                continue;
            };
            let Some(summary) = self.image_summary(&digest, reads)? else {
                break;
            };
            images.push(CachedImage {
                repository: repository.clone(),
                reference,
                digest,
                bytes: summary.bytes,
                used: manifest.used,
            });
        }
        Ok(images)
    }
}
