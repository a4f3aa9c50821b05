//! The size and the platforms of a cached image, read from its manifests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::manifest::{self, Document, ImagePlatform};
use crate::store::manifests::MAX_MANIFEST;
use crate::store::{Error, Inner, durable};

/// The most images whose summaries are remembered.
pub(super) const MAX_REMEMBERED: u64 = 20_000;
/// An image that names more content is large: its summary is remembered for [`KEPT_INCOMPLETE`] although a part
/// of its content is missing.
const LARGE: usize = 1_000;
const KEPT_INCOMPLETE: Duration = Duration::from_mins(1);
/// The most platforms of an image that are listed.
const MAX_PLATFORMS: usize = 32;
/// The largest image configuration that is read for its platform, in bytes.
const MAX_CONFIGURATION: u64 = 1 << 20;

/// A summary that was read before.
#[derive(Clone, Debug)]
pub(super) struct KnownSummary {
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

impl Inner {
    /// Returns the summary of the image with this manifest. It is remembered once all of its content is there, as a digest
    /// names the same content always; a layer that is evicted later still counts. The summary of a large
    /// image, which is costly to read, is remembered for a minute before that.
    pub(super) fn image_summary(&self, digest: &Digest) -> Result<Arc<ImageSummary>, Error> {
        let is_current = |since| !self.clock.is_over(since, KEPT_INCOMPLETE);
        if let Some(known) = self.image_summaries.get(digest)
            && known.incomplete_since.is_none_or(is_current)
        {
            return Ok(known.summary);
        }
        let (mut summary, mut is_whole) = (ImageSummary::default(), true);
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
            let bytes = durable::read(&self.layout.blob_data(&next), MAX_MANIFEST).unwrap_or_default();
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
            let named: Vec<_> = document.named().cloned().collect();
            open.extend(named.into_iter().rev());
        }
        let summary = Arc::new(summary);
        if is_whole || counted.len() > LARGE {
            let incomplete_since = (!is_whole).then(|| self.clock.now());
            let (digest, summary) = (digest.clone(), Arc::clone(&summary));
            let known = KnownSummary {
                summary,
                incomplete_since,
            };
            self.image_summaries.insert(digest, known);
        }
        Ok(summary)
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
