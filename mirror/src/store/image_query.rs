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
    /// it returns; of all that match if they are sorted by size. One listing reads at a time, [`MAX_LISTING`] bytes at most
    /// and not for a client that left: the size of an image that was not read yet is that of its manifest.
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
    use std::time::Duration;

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
            readonly: false,
            clock: Clock::system(),
            metrics: Metrics::new(),
        };
        Store::open(root, options).await.unwrap()
    }

    fn repository(name: &str) -> Repository {
        Repository {
            host: "quay.io".parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    fn query(search: &str, sort: ImageOrder) -> ImageRequest {
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
        let manifest = Manifest {
            content: Hashed::compute(Algorithm::Sha256, text.clone().into_bytes().into()),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        };
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

    /// The summary of a large image is read once a minute while a part of its content is missing.
    #[tokio::test]
    async fn large_incomplete_image_is_read_once_a_minute() {
        let root = tempfile::tempdir().unwrap();
        let (store, app) = (open(root.path()).await, repository("app"));
        let digests: Vec<_> = (0..1_200_u32)
            .map(|number| Digest::compute(Algorithm::Sha256, &number.to_le_bytes()))
            .collect();
        let layers: Vec<_> = digests
            .iter()
            .map(|digest| format!(r#"{{"digest":"{digest}","size":4}}"#))
            .collect();
        let text = format!(r#"{{"layers":[{}]}}"#, layers.join(","));
        let manifest = Manifest {
            content: Hashed::compute(Algorithm::Sha256, text.clone().into_bytes().into()),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        };
        store.put_manifest(&app, &manifest).await.unwrap();
        let tag = "v1".parse().unwrap();
        store.put_tag(&app, &tag, manifest.digest()).await.unwrap();
        let bytes = async || {
            let page = store.images(query("", ImageOrder::Used), |_, _| true).await;
            page.unwrap().images[0].bytes
        };
        assert_eq!(bytes().await, text.len() as u64);
        let mut staged = store.stage(&app.host, &digests[0], Some(4)).await.unwrap();
        staged.append(&0_u32.to_le_bytes()).unwrap();
        staged.commit(std::slice::from_ref(&app)).await.unwrap();
        assert_eq!(bytes().await, text.len() as u64);
        store.inner.clock.advance(Duration::from_secs(61));
        assert_eq!(bytes().await, text.len() as u64 + 4);
    }

    /// A listing reads a bounded part of the manifests, and the next ones read the others: none is read twice.
    #[tokio::test]
    async fn large_manifests_are_read_over_several_listings() {
        const IMAGES: usize = 12;
        let root = tempfile::tempdir().unwrap();
        let (store, app) = (open(root.path()).await, repository("app"));
        let padding = " ".repeat(4_000_000);
        let layer = Digest::compute(Algorithm::Sha256, b"layer");
        let mut staged = store.stage(&app.host, &layer, None).await.unwrap();
        staged.append(b"layer").unwrap();
        staged.commit(std::slice::from_ref(&app)).await.unwrap();
        for number in 0..IMAGES {
            let text = format!(r#"{{"n":{number},"layers":[{{"digest":"{layer}"}}]}}{padding}"#);
            let manifest = Manifest {
                content: Hashed::compute(Algorithm::Sha256, text.into_bytes().into()),
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            };
            store.put_manifest(&app, &manifest).await.unwrap();
            let tag = format!("v{number}").parse().unwrap();
            store.put_tag(&app, &tag, manifest.digest()).await.unwrap();
        }
        let read = async || {
            let page = store
                .images(query("", ImageOrder::Name), |_, _| true)
                .await
                .unwrap();
            let entry = |image: &ImageEntry| store.inner.index.get(&image.digest).unwrap().unwrap().size;
            let read = page.images.iter().filter(|image| image.bytes == entry(image) + 5);
            (page.images.len(), read.count())
        };
        let (first, second) = (read().await, read().await);
        assert_eq!(first.0, IMAGES);
        assert!((1..IMAGES).contains(&first.1), "{first:?}");
        assert_eq!(second, (IMAGES, IMAGES));
    }

    /// An image that names more content than the bound is counted up to it.
    #[tokio::test]
    async fn image_that_names_too_much_is_read_in_part() {
        let root = tempfile::tempdir().unwrap();
        let (store, app) = (open(root.path()).await, repository("app"));
        let entry = |number: u32| {
            let digest = Digest::compute(Algorithm::Sha256, &number.to_le_bytes());
            format!(r#"{{"digest":"{digest}","size":4}}"#)
        };
        let layers: Vec<_> = (0..9_000).map(entry).collect();
        let text = format!(r#"{{"layers":[{}]}}"#, layers.join(","));
        let manifest = Manifest {
            content: Hashed::compute(Algorithm::Sha256, text.into_bytes().into()),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        };
        store.put_manifest(&app, &manifest).await.unwrap();
        let mut reads = SummaryBudget::new(u64::MAX, CancellationToken::new());
        let read = store.inner.read_summary(manifest.digest(), &mut reads).unwrap();
        let (summary, is_whole, counted) = read.unwrap();
        assert!(!is_whole && counted <= 4_096, "{counted}");
        assert_eq!(summary.bytes, manifest.bytes().len() as u64);
    }

    /// A listing ends with its client.
    #[tokio::test]
    async fn listing_of_client_that_left_reads_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (store, app) = (open(root.path()).await, repository("app"));
        let manifest = Manifest {
            content: Hashed::compute(Algorithm::Sha256, br#"{"layers":[]}"#.as_slice().into()),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        };
        store.put_manifest(&app, &manifest).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let mut reads = SummaryBudget::new(u64::MAX, stop);
        let read = store.inner.image_summary(manifest.digest(), &mut reads).unwrap();
        assert_eq!(read, None);
    }

    /// The platforms of an image are those of its cached manifests: an index names them, and else the configuration does.
    #[tokio::test]
    async fn image_platforms_are_those_in_the_cache() {
        const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
        let root = tempfile::tempdir().unwrap();
        let (store, app) = (open(root.path()).await, repository("app"));
        let put = async |text: String| {
            let content = Hashed::compute(Algorithm::Sha256, text.into_bytes().into());
            let media_type = TYPE.to_owned();
            let manifest = Manifest { content, media_type };
            store.put_manifest(&app, &manifest).await.unwrap();
            manifest.digest().clone()
        };
        let tag = async |tag: &str, digest: &Digest| {
            store.put_tag(&app, &tag.parse().unwrap(), digest).await.unwrap();
        };
        let configuration = br#"{"architecture":"arm64","os":"linux","variant":"v8"}"#;
        let config = Digest::compute(Algorithm::Sha256, configuration);
        let mut staged = store.stage(&app.host, &config, None).await.unwrap();
        staged.append(configuration).unwrap();
        staged.commit(std::slice::from_ref(&app)).await.unwrap();
        let image = put(format!(r#"{{"config":{{"digest":"{config}"}},"layers":[]}}"#)).await;
        let plain = put(r#"{"layers":[]}"#.to_owned()).await;
        let absent = Digest::compute(Algorithm::Sha256, b"absent");
        let entry = |digest: &Digest, architecture: &str| {
            format!(r#"{{"digest":"{digest}","platform":{{"os":"linux","architecture":"{architecture}"}}}}"#)
        };
        let entries = [
            entry(&plain, "amd64"),
            entry(&absent, "s390x"),
            entry(&image, "arm64"),
        ];
        let index = put(format!(r#"{{"manifests":[{}]}}"#, entries.join(","))).await;
        tag("image", &image).await;
        tag("index", &index).await;
        tag("plain", &plain).await;
        let page = store
            .images(query("", ImageOrder::Name), |_, _| true)
            .await
            .unwrap();
        let platforms: Vec<_> = page
            .images
            .iter()
            .map(|image| image.platforms.join(" "))
            .collect();
        assert_eq!(platforms, ["linux/arm64/v8", "linux/amd64 linux/arm64", ""]);
    }
}
