//! The size and the platforms of a cached image, read from its manifests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::manifest::{self, Document, ImagePlatform};
use crate::store::manifests::MAX_MANIFEST;
use crate::store::{Error, Inner, durable};

/// The most images whose summaries are remembered.
const MAX_REMEMBERED: u64 = 20_000;
/// An image that names more content is large: its summary is remembered for [`KEPT_INCOMPLETE`] although a part
/// of its content is missing.
const LARGE: usize = 1_000;
const KEPT_INCOMPLETE: Duration = Duration::from_mins(1);
/// The most manifests of an image that are read, in bytes, and the most content that it names: what an image has beyond
/// that does not count.
const MAX_IMAGE: u64 = 8 << 20;
const MAX_NAMED: usize = 4_096;
/// The bytes of manifests after which a listing reads no further image; the next listing continues there.
pub(super) const MAX_LISTING: u64 = 32 << 20;
/// The most platforms of an image that are listed.
const MAX_PLATFORMS: usize = 32;
/// The largest image configuration that is read for its platform, in bytes.
const MAX_CONFIGURATION: u64 = 1 << 20;

/// The summaries of images, by their manifests.
#[derive(Debug)]
pub(super) struct ImageSummaryCache {
    known: Cache<Digest, KnownSummary>,
    /// The turn of the listing that reads manifests: the next one finds what it read.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
}

/// The manifests that one listing of images reads.
#[derive(Debug)]
pub(super) struct SummaryBudget {
    /// The bytes that may still be read.
    left: u64,
    /// Cancelled once the client left.
    stop: CancellationToken,
}

/// A summary that was read before.
#[derive(Clone, Debug)]
struct KnownSummary {
    summary: Arc<ImageSummary>,
    /// The time of the reading, if a part of the content was missing.
    incomplete_since: Option<Timestamp>,
}

/// The size and the platforms of a cached image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageSummary {
    /// The bytes of manifests, configurations and layers in the cache.
    pub(super) bytes: u64,
    /// The platforms whose manifests are in the cache, in the order of the index.
    pub(super) platforms: Vec<String>,
}

impl Default for ImageSummaryCache {
    fn default() -> Self {
        Self {
            known: Cache::new(MAX_REMEMBERED),
            turn: Arc::default(),
        }
    }
}

impl SummaryBudget {
    /// Returns the reads of a listing that may read so many bytes, until `stop`.
    pub(super) fn new(left: u64, stop: CancellationToken) -> Self {
        Self { left, stop }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }
}

impl Inner {
    /// Returns the bytes of the manifest alone, for an image that is not read now.
    pub(super) fn unread_summary(&self, digest: &Digest) -> Result<Arc<ImageSummary>, Error> {
        let bytes = self.index.get(digest)?.map_or(0, |entry| entry.size);
        let platforms = Vec::new();
        Ok(Arc::new(ImageSummary { bytes, platforms }))
    }

    /// Returns the summary of the image with this manifest; `None` if the listing may read no more. The summary is remembered
    /// once all of its content is there, as a digest names the same content always; a layer that is evicted later still
    /// counts. The summary of a large image, which is costly to read, is remembered for a minute before that.
    pub(super) fn image_summary(
        &self,
        digest: &Digest,
        reads: &mut SummaryBudget,
    ) -> Result<Option<Arc<ImageSummary>>, Error> {
        let is_current = |since| !self.clock.is_over(since, KEPT_INCOMPLETE);
        if let Some(known) = self.image_summaries.known.get(digest)
            && known.incomplete_since.is_none_or(is_current)
        {
            return Ok(Some(known.summary));
        }
        if reads.left == 0 {
            return Ok(None);
        }
        let Some((summary, is_whole, counted)) = self.read_summary(digest, reads)? else {
            return Ok(None);
        };
        let summary = Arc::new(summary);
        if is_whole || counted > LARGE {
            let incomplete_since = (!is_whole).then(|| self.clock.now());
            let (digest, summary) = (digest.clone(), Arc::clone(&summary));
            let known = KnownSummary {
                summary,
                incomplete_since,
            };
            self.image_summaries.known.insert(digest, known);
        }
        Ok(Some(summary))
    }

    /// Reads the summary of an image. Returns it with `true` if all that the image names is there, and the number of
    /// pieces of content; `None` once the client left.
    pub(super) fn read_summary(
        &self,
        digest: &Digest,
        reads: &mut SummaryBudget,
    ) -> Result<Option<(ImageSummary, bool, usize)>, Error> {
        let (mut summary, mut is_whole, mut read) = (ImageSummary::default(), true, 0);
        let (mut counted, mut open) = (HashSet::new(), vec![digest.clone()]);
        let mut platforms = HashMap::new();
        while let Some(next) = open.pop() {
            if !counted.insert(next.clone()) {
                continue;
            }
            let Some(entry) = self.index.get(&next)? else {
                is_whole = false;
                continue;
            };
            summary.bytes += entry.size;
            // Only manifests have a type in the index: layers are not read.
            if next != *digest && self.index.media_type(&next)?.is_none() {
                continue;
            }
            if reads.is_stopped() {
                return Ok(None);
            }
            if read >= MAX_IMAGE {
                is_whole = false;
                continue;
            }
            let bytes = durable::read(&self.layout.blob_data(&next), MAX_MANIFEST).unwrap_or_default();
            read += bytes.len() as u64;
            let document = Document::read(&bytes).unwrap_or_default();
            for child in manifest::platforms(&bytes) {
                platforms.extend(child.platform.map(|platform| (child.digest, platform)));
            }
            let platform = match platforms.remove(&next) {
                Some(platform) => Some(platform),
                None => self.configured_platform(&document)?,
            };
            summary.add(platform);
            // The last one is popped first.
            let room = MAX_NAMED.saturating_sub(counted.len() + open.len());
            let named: Vec<_> = document.named().take(room).cloned().collect();
            is_whole &= named.len() < room;
            open.extend(named.into_iter().rev());
        }
        reads.left = reads.left.saturating_sub(read);
        Ok(Some((summary, is_whole, counted.len())))
    }

    /// Returns the platform that the configuration of an image names, if it is in the cache. The configuration is the first
    /// blob of a manifest.
    fn configured_platform(&self, document: &Document) -> Result<Option<ImagePlatform>, Error> {
        let Some(first) = document.blobs().first() else {
            return Ok(None);
        };
        let entry = self.index.get(&first.digest)?;
        if entry.is_none_or(|entry| entry.size > MAX_CONFIGURATION) {
            return Ok(None);
        }
        let bytes = durable::read(&self.layout.blob_data(&first.digest), MAX_CONFIGURATION);
        Ok(manifest::configured_platform(&bytes.unwrap_or_default()))
    }
}

impl ImageSummary {
    fn add(&mut self, platform: Option<ImagePlatform>) {
        let Some(platform) = platform.filter(|platform| !platform.is_unknown()) else {
            return;
        };
        let name = platform.to_string();
        if self.platforms.len() < MAX_PLATFORMS && !self.platforms.contains(&name) {
            self.platforms.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Hashed};
    use crate::store::image_query::tests::{open, query, repository};
    use crate::store::{ImageEntry, ImageOrder, Manifest};

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
            let manifest = Manifest::new(
                Hashed::compute(Algorithm::Sha256, text.into_bytes().into()),
                "application/vnd.oci.image.manifest.v1+json",
            );
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
        let manifest = Manifest::new(
            Hashed::compute(Algorithm::Sha256, text.into_bytes().into()),
            "application/vnd.oci.image.manifest.v1+json",
        );
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
        let manifest = Manifest::new(
            Hashed::compute(Algorithm::Sha256, br#"{"layers":[]}"#.as_slice().into()),
            "application/vnd.oci.image.manifest.v1+json",
        );
        store.put_manifest(&app, &manifest).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let mut reads = SummaryBudget::new(u64::MAX, stop);
        let read = store.inner.image_summary(manifest.digest(), &mut reads).unwrap();
        assert_eq!(read, None);
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
        let manifest = Manifest::new(
            Hashed::compute(Algorithm::Sha256, text.clone().into_bytes().into()),
            "application/vnd.oci.image.manifest.v1+json",
        );
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

    /// The platforms of an image are those of its cached manifests: an index names them, and else the configuration does.
    #[tokio::test]
    async fn image_platforms_are_those_in_the_cache() {
        const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
        let root = tempfile::tempdir().unwrap();
        let (store, app) = (open(root.path()).await, repository("app"));
        let put = async |text: String| {
            let content = Hashed::compute(Algorithm::Sha256, text.into_bytes().into());
            let manifest = Manifest::new(content, TYPE);
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
