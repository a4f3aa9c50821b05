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

    /// Returns the summary of the image with this manifest; `None` where the listing may read no more. It is remembered once all of its content is there, as a digest
    /// names the same content always; a layer that is evicted later still counts. The summary of a large
    /// image, which is costly to read, is remembered for a minute before that.
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
