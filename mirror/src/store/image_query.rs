//! The cached images: the tags of each repository, with what their manifests name.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::config::Globs;
use crate::digest::Digest;
use crate::store::image_summary::{ImageSummary, MAX_LISTING, SummaryBudget};
use crate::store::index::digest_of;
use crate::store::{Error, Inner, Store};

/// The most images that a query returns.
pub const MAX_IMAGES: usize = 1_000;

/// The order of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageOrder {
    /// The last used first.
    #[default]
    Used,
    /// By name.
    Name,
    /// The largest first.
    Size,
    /// The most pulled first.
    Pulls,
    /// The last confirmed by the upstream first.
    Validated,
}

/// A query of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageRequest {
    /// A part of the names; empty for all.
    pub search: String,
    /// The order.
    pub sort: ImageOrder,
    /// The most images of the result, at most [`MAX_IMAGES`].
    pub limit: usize,
}

/// A cached tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// `host/repository:tag`.
    pub name: String,
    /// The manifest.
    pub digest: Digest,
    /// Bytes of manifests, configuration and layers in the cache.
    pub bytes: u64,
    /// The platforms whose manifests are in the cache.
    pub platforms: Vec<String>,
    /// The GET requests that clients made for the manifest since it came into the cache.
    pub pulls: u64,
    /// The last use.
    pub used: Timestamp,
    /// The last confirmation by the upstream.
    pub validated: Timestamp,
    /// `true` if it neither expires nor gives way.
    pub is_pinned: bool,
}

/// The result of a query of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePage {
    /// The number of images in the cache.
    pub total: usize,
    /// The number of images whose name matches.
    pub matching: usize,
    /// The first images in the order.
    pub images: Vec<ImageEntry>,
}

/// The last use and the pulls of content since the index took the last uses.
type RecordedUses = HashMap<Digest, (i64, u64)>;

/// A tag as the index has it.
struct IndexedTag {
    name: String,
    key: Vec<u8>,
    used: i64,
    pulls: u64,
    validated: i64,
    summary: Arc<ImageSummary>,
}

impl Store {
    /// Returns the cached images of repositories that `is_listed` by host and name. Reads the manifests of the images that
    /// it returns; of all that match if they are sorted by size. One listing reads at a time, at most 32 MiB, and
    /// not for a client that left: the size of an image that was not read yet is that of its manifest.
    pub async fn images(
        &self,
        query: ImageRequest,
        is_listed: impl Fn(&str, &str) -> bool + Send + 'static,
    ) -> Result<ImagePage, Error> {
        let turn = Arc::clone(&self.inner.image_summaries.turn).lock_owned().await;
        let stop = CancellationToken::new();
        let _stops = stop.clone().drop_guard();
        self.blocking(move |inner| {
            let _turn = turn;
            inner.list_images(&query, is_listed, SummaryBudget::new(MAX_LISTING, stop))
        })
        .await
    }
}

impl Inner {
    fn list_images(
        &self,
        query: &ImageRequest,
        is_listed: impl Fn(&str, &str) -> bool,
        mut reads: SummaryBudget,
    ) -> Result<ImagePage, Error> {
        let (mut total, mut tags) = (0, Vec::new());
        let unread = Arc::new(ImageSummary::default());
        self.index.each_tag(|(repository, tag), key, validated, entry| {
            if !repository
                .split_once('/')
                .is_some_and(|(host, name)| is_listed(host, name))
            {
                return;
            }
            total += 1;
            let (name, key, used) = (format!("{repository}:{tag}"), key.to_vec(), entry.used);
            if name.contains(&query.search) {
                tags.push(IndexedTag {
                    name,
                    key,
                    used,
                    pulls: 0,
                    validated,
                    summary: Arc::clone(&unread),
                });
            }
        })?;
        let (matching, is_by_size) = (tags.len(), query.sort == ImageOrder::Size);
        let is_by_pulls = query.sort == ImageOrder::Pulls;
        let recorded = self.hot_cache.recorded_uses();
        add_recorded_uses(&mut tags, &recorded);
        if is_by_size {
            self.add_summaries(&mut tags, &mut reads)?;
        }
        if is_by_pulls {
            self.add_pulls(&mut tags, &recorded)?;
        }
        match query.sort {
            ImageOrder::Used => tags.sort_by_key(|tag| Reverse(tag.used)),
            ImageOrder::Name => tags.sort_by(|one, other| one.name.cmp(&other.name)),
            ImageOrder::Size => tags.sort_by_key(|tag| Reverse(tag.summary.bytes)),
            ImageOrder::Pulls => tags.sort_by_key(|tag| Reverse(tag.pulls)),
            ImageOrder::Validated => tags.sort_by_key(|tag| Reverse(tag.validated)),
        }
        tags.truncate(query.limit.min(MAX_IMAGES));
        if !is_by_size {
            self.add_summaries(&mut tags, &mut reads)?;
        }
        if !is_by_pulls {
            self.add_pulls(&mut tags, &recorded)?;
        }
        let pinned = self.pinned_patterns();
        let images = tags.into_iter().filter_map(|tag| image(tag, &pinned)).collect();
        Ok(ImagePage {
            total,
            matching,
            images,
        })
    }

    fn add_summaries(&self, tags: &mut [IndexedTag], reads: &mut SummaryBudget) -> Result<(), Error> {
        for tag in tags {
            if reads.is_stopped() {
                break;
            }
            if let Some(digest) = digest_of(&tag.key) {
                tag.summary = match self.image_summary(&digest, reads)? {
                    Some(summary) => summary,
                    None => self.unread_summary(&digest)?,
                };
            }
        }
        Ok(())
    }

    /// Adds the pulls that the index has, and those since.
    fn add_pulls(&self, tags: &mut [IndexedTag], recorded: &RecordedUses) -> Result<(), Error> {
        let pulls = self.index.pulls(tags.iter().map(|tag| tag.key.as_slice()))?;
        for (tag, pulls) in tags.iter_mut().zip(pulls) {
            let since = digest_of(&tag.key).and_then(|digest| recorded.get(&digest));
            tag.pulls = pulls + since.map_or(0, |(_, pulls)| *pulls);
        }
        Ok(())
    }
}

/// Replaces the last use of tags whose manifests were used since the index took the last uses.
fn add_recorded_uses(tags: &mut [IndexedTag], recorded: &RecordedUses) {
    if recorded.is_empty() {
        return;
    }
    for tag in tags {
        if let Some((used, _)) = digest_of(&tag.key).and_then(|digest| recorded.get(&digest)) {
            tag.used = tag.used.max(*used);
        }
    }
}

fn image(tag: IndexedTag, pinned: &Globs) -> Option<ImageEntry> {
    let time = |ms| Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
    Some(ImageEntry {
        digest: digest_of(&tag.key)?,
        is_pinned: !pinned.is_empty() && pinned.matches(&tag.name),
        name: tag.name,
        bytes: tag.summary.bytes,
        platforms: tag.summary.platforms.clone(),
        pulls: tag.pulls,
        used: time(tag.used),
        validated: time(tag.validated),
    })
}

#[cfg(test)]
pub(super) mod tests {

    use super::*;
    use crate::clock::Clock;
    use crate::digest::{Algorithm, Hashed};
    use crate::metrics::Metrics;
    use crate::name::Repository;
    use crate::store::index::Op;
    use crate::store::{Manifest, StoreOptions};

    /// Opens a store without a limit.
    pub(in crate::store) async fn open(root: &std::path::Path) -> Store {
        let options = StoreOptions {
            default_host: "docker.io".parse().unwrap(),
            max_size: None,
            pinned: Globs::default(),
            readonly: false,
            clock: Clock::system(),
            metrics: Metrics::new(),
        };
        Store::open(root, options).await.unwrap()
    }

    pub(in crate::store) fn repository(name: &str) -> Repository {
        Repository {
            host: "quay.io".parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    pub(in crate::store) fn query(search: &str, sort: ImageOrder) -> ImageRequest {
        let (search, limit) = (search.to_owned(), 50);
        ImageRequest { search, sort, limit }
    }

    /// 10,000 images are listed in any order that needs no sizes without reading them one by one: the index is read once
    /// for the tags, once for the pulls, and up to twice for each image of the result.
    #[tokio::test]
    async fn ten_thousand_images_are_listed_quickly() {
        const MOST_READS: u64 = 2 + 2 * 50;
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).await;
        let mut ops = Vec::new();
        for number in 0..10_000_i64 {
            let digest = Digest::compute(Algorithm::Sha256, &number.to_le_bytes());
            let repository = repository(&format!("team/app-{number}"));
            ops.push(Op::Admit {
                digest: digest.clone(),
                size: 10,
                now: number,
            });
            ops.push(Op::Tag(repository, "v1".parse().unwrap(), digest, number));
        }
        store.inner.index.write(ops).unwrap();
        for sort in [
            ImageOrder::Used,
            ImageOrder::Name,
            ImageOrder::Pulls,
            ImageOrder::Validated,
        ] {
            let before = store.inner.index.reads();
            let page = store.images(query("", sort), |_, _| true).await.unwrap();
            let reads = store.inner.index.reads() - before;
            assert!(reads <= MOST_READS, "{sort:?}: {reads} reads");
            assert_eq!(
                (page.total, page.matching, page.images.len()),
                (10_000, 10_000, 50)
            );
        }
        let page = store.images(query("app-77", ImageOrder::Used), |host, _| host == "quay.io");
        let page = page.await.unwrap();
        assert_eq!(page.matching, 111);
        assert_eq!(page.images[0].name, "quay.io/team/app-7799:v1");
        let none = store
            .images(query("", ImageOrder::Size), |_, name| name == "none")
            .await
            .unwrap();
        assert_eq!(none, ImagePage::default());
    }

    /// The size of an image is that of its manifest and of what it names, as far as it is cached.
    #[tokio::test]
    async fn image_size_counts_what_is_cached() {
        let root = tempfile::tempdir().unwrap();
        let (store, app) = (open(root.path()).await, repository("app"));
        let layer = Digest::compute(Algorithm::Sha256, &[7; 1000]);
        let mut staged = store.stage(&app.host, &layer, Some(1000)).await.unwrap();
        staged.append(&[7; 1000]).unwrap();
        staged.commit(std::slice::from_ref(&app)).await.unwrap();
        let absent = Digest::compute(Algorithm::Sha256, b"absent");
        let text =
            format!(r#"{{"layers":[{{"digest":"{layer}","size":1000}},{{"digest":"{absent}","size":5}}]}}"#);
        let manifest = Manifest::new(
            Hashed::compute(Algorithm::Sha256, text.clone().into_bytes().into()),
            "application/vnd.oci.image.manifest.v1+json",
        );
        store.put_manifest(&app, &manifest).await.unwrap();
        store
            .put_tag(&app, &"v1".parse().unwrap(), manifest.digest())
            .await
            .unwrap();
        for sort in [ImageOrder::Size, ImageOrder::Used] {
            let page = store.images(query("", sort), |_, _| true).await.unwrap();
            assert_eq!(page.images[0].bytes, 1000 + text.len() as u64);
        }
    }
}
