//! Purges: an administrator removes images or repositories, so that the next pull asks upstream.

use std::collections::BTreeSet;

use crate::digest::Digest;
use crate::metrics::EvictionReason;
use crate::name::{Repository, Tag};
use crate::store::catalog::directories;
use crate::store::index::{Link, Op};
use crate::store::path::ALGORITHMS;
use crate::store::{Error, Inner, IoError, StageError, Store, link, pins};

/// The part of a repository that a purge removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgeTarget {
    /// All tags, manifests and layers.
    All,
    /// A tag, with its manifest and layers if nothing else of the repository needs them.
    Tag(Tag),
    /// A manifest with the tags that point to it, and its layers if nothing else of the repository needs them.
    Digest(Digest),
}

/// The content that a purge removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Tags.
    pub tags: u64,
    /// Manifests of the repository.
    pub manifests: u64,
    /// Layers and configurations of the repository.
    pub blobs: u64,
    /// Bytes of content that no repository links any more.
    pub bytes: u64,
}

/// The links of a repository.
#[derive(Debug, Default)]
pub(super) struct RepositoryLinks {
    pub(super) tags: Vec<(Tag, Digest)>,
    pub(super) manifests: BTreeSet<Digest>,
    pub(super) blobs: BTreeSet<Digest>,
}

impl Store {
    /// Removes links of a repository, and content that has no other link. A download under way may add its link
    /// afterwards.
    ///
    /// # Errors
    /// [`StageError::ReadOnly`] if the cache is read-only.
    pub async fn purge(&self, repository: &Repository, target: PurgeTarget) -> Result<Purged, StageError> {
        let repository = repository.clone();
        self.blocking(move |inner| inner.purge(&repository, &target))
            .await
    }
}

impl Inner {
    fn purge(&self, repository: &Repository, target: &PurgeTarget) -> Result<Purged, StageError> {
        if self.is_readonly() {
            return Err(StageError::ReadOnly);
        }
        let links = self.repository_links(repository)?;
        let gone = self.to_purge(&links, target);
        let mut purged = Purged::default();
        for (tag, digest) in &links.tags {
            let is_named = match target {
                PurgeTarget::All => true,
                PurgeTarget::Tag(named) => named == tag,
                PurgeTarget::Digest(named) => named == digest,
            };
            if is_named {
                self.purge_tag(repository, tag)?;
                purged.tags += 1;
            }
        }
        for digest in &gone {
            purged.manifests += u64::from(links.manifests.contains(digest));
            purged.blobs += u64::from(links.blobs.contains(digest));
            purged.bytes += self.purge_links(repository, digest)?;
        }
        Ok(purged)
    }

    /// Returns the tags, manifests and blobs that are linked to a repository on disk.
    pub(super) fn repository_links(&self, repository: &Repository) -> Result<RepositoryLinks, Error> {
        let mut links = RepositoryLinks::default();
        for tag in self.list_tags(repository)? {
            let Ok(tag) = tag.parse::<Tag>() else { continue };
            if let Some(digest) = link::read(&self.layout.tag_current(repository, &tag))? {
                links.tags.push((tag, digest));
            }
        }
        let own = self.layout.repository(repository);
        links.manifests = digests_in(&own.join("_manifests/revisions"))?;
        links.blobs = digests_in(&own.join("_layers"))?;
        Ok(links)
    }

    /// Returns the manifests and blobs of a repository that go with a target.
    fn to_purge(&self, links: &RepositoryLinks, target: &PurgeTarget) -> BTreeSet<Digest> {
        let root = match target {
            PurgeTarget::All => return links.manifests.union(&links.blobs).cloned().collect(),
            PurgeTarget::Digest(digest) => Some(digest),
            PurgeTarget::Tag(tag) => {
                let current = links.tags.iter().find(|(name, _)| name == tag);
                current.map(|(_, digest)| digest)
            }
        };
        let Some(root) = root else { return BTreeSet::new() };
        let mut gone = self.content_of([root]);
        let is_other = |tag: &Tag, digest: &Digest| match target {
            PurgeTarget::Tag(named) => named != tag,
            _ => digest != root,
        };
        let tagged = links.tags.iter().filter(|(tag, digest)| is_other(tag, digest));
        let tagged = tagged.map(|(_, digest)| digest);
        let others = links.manifests.iter().filter(|digest| !gone.contains(digest));
        let kept = self.content_of(tagged.chain(others));
        gone.retain(|digest| !kept.contains(digest));
        if let PurgeTarget::Digest(digest) = target {
            gone.insert(digest.clone());
        }
        gone
    }

    /// Returns these manifests and all that they name, down to the layers.
    pub(super) fn content_of<'a>(&self, roots: impl IntoIterator<Item = &'a Digest>) -> BTreeSet<Digest> {
        let mut found: Vec<_> = roots.into_iter().cloned().collect();
        let mut all = BTreeSet::new();
        while let Some(digest) = found.pop() {
            if all.insert(digest.clone()) {
                found.extend(pins::named_by(&self.layout, &digest));
            }
        }
        all
    }

    /// Removes a tag with all digests that it has pointed to.
    fn purge_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let current = self.layout.tag_current(repository, tag);
        let mut digests = digests_in(&self.layout.tags(repository).join(tag.as_str()).join("index"))?;
        digests.extend(link::read(&current)?);
        let link = Link::Tag(repository.clone(), tag.clone());
        for digest in digests {
            let _one = self.stripe(&digest);
            self.purge_link(&digest, &link)?;
        }
        Ok(())
    }

    /// Removes the links of a repository to content, and the content if that was the last link. Returns the bytes that
    /// became free.
    fn purge_links(&self, repository: &Repository, name: &Digest) -> Result<u64, Error> {
        let revision = Link::Revision(repository.clone(), name.clone());
        let layer = Link::Layer(repository.clone(), name.clone());
        let paths = [
            (self.layout.revision_link(repository, name), revision),
            (self.layout.layer_link(repository, name), layer),
        ];
        let mut freed = 0;
        for (path, link) in paths {
            // A link may name the same bytes by another digest.
            let digest = link::read_named(&path, name)?.unwrap_or_else(|| name.clone());
            let one = self.stripe(&digest);
            self.purge_link(&digest, &link)?;
            self.hot_cache.unlink(repository, name);
            // Without a complete index, other repositories may have links that it does not know.
            if self.index.is_complete() && !self.is_linked(&digest)? {
                let removed = self.remove_under(&one, &digest)?;
                self.count_evicted(EvictionReason::Purged, removed);
                freed += removed.map_or(0, |entry| entry.size);
            }
        }
        Ok(freed)
    }

    /// Returns whether a repository has this content. That a tag once pointed to it does not count.
    fn is_linked(&self, digest: &Digest) -> Result<bool, Error> {
        let links = self.index.links(digest)?;
        Ok(links.iter().any(|link| !matches!(link, Link::Tag(..))))
    }

    fn purge_link(&self, digest: &Digest, link: &Link) -> Result<(), Error> {
        let untagged = self.remove_link(digest, link)?;
        let mut ops = vec![Op::Unlink(digest.clone(), link.clone())];
        ops.extend(untagged);
        self.index.write(ops)?;
        Ok(())
    }
}

/// Returns the digests below a directory of links, `ALGORITHM/HEX`.
fn digests_in(directory: &std::path::Path) -> Result<BTreeSet<Digest>, IoError> {
    let mut digests = BTreeSet::new();
    for algorithm in ALGORITHMS {
        for path in directories(&directory.join(algorithm.as_str()))? {
            let hex = path.file_name().and_then(|name| name.to_str());
            let digest = hex.and_then(|hex| format!("{}:{hex}", algorithm.as_str()).parse().ok());
            digests.extend(digest);
        }
    }
    Ok(digests)
}
