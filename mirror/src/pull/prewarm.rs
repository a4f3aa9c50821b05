//! Prewarming: the server pulls an image by itself, so that clients get hits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;

use super::{ClientRequest, Pull, Source};
use crate::digest::Digest;
use crate::fill::{Fill, Phase};
use crate::manifest::{self, Descriptor, Document, ImagePlatform};
use crate::metrics::Outcome;
use crate::name::{Reference, Repository};
use crate::pull_error::PullError;
use crate::range::Wanted;

/// The name of the server as a client of its own pull path.
const PEER: &str = "prewarm";
/// The number of layers that one prewarming downloads at the same time.
const LAYERS_AT_A_TIME: usize = 3;
/// The most manifests of one prewarming; an index names a manifest for each platform.
const MAX_MANIFESTS: usize = 64;
/// The interval between two reports on a download.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// The image that the server pulls.
#[derive(Clone, Debug)]
pub(crate) struct Prewarm {
    /// The repository.
    pub(crate) repository: Repository,
    /// The tag or digest.
    pub(crate) reference: Reference,
    /// The platforms of an index.
    pub(crate) platforms: PlatformSelection,
}

/// The platforms of an index that are pulled.
#[derive(Clone, Debug)]
pub(crate) enum PlatformSelection {
    /// Every platform.
    All,
    /// These platforms.
    Some(Vec<ImagePlatform>),
}

/// A report on a prewarming, a line of JSON each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum PrewarmEvent {
    /// A manifest is cached.
    Manifest {
        /// Its digest.
        digest: String,
        /// Its platform, if an index names one.
        #[serde(skip_serializing_if = "Option::is_none")]
        platform: Option<String>,
        /// `HIT`, `MISS`, `STALE` or `COALESCED`.
        cache: String,
        /// Its length.
        bytes: u64,
    },
    /// A layer or configuration is under way.
    Progress {
        /// Its digest.
        digest: String,
        /// The bytes that have arrived.
        bytes: u64,
        /// Its length, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// A layer or configuration is cached.
    Blob {
        /// Its digest.
        digest: String,
        /// `HIT`, `MISS` or `COALESCED`.
        cache: String,
        /// Its length.
        bytes: u64,
        /// The time that it took.
        seconds: f64,
    },
    /// The image is cached.
    Done {
        /// The number of manifests.
        manifests: u64,
        /// The number of layers and configurations.
        blobs: u64,
        /// The bytes of all.
        bytes: u64,
        /// The bytes that were downloaded.
        fetched: u64,
    },
    /// The prewarming failed. There are no further reports.
    Error {
        /// The reason.
        message: String,
    },
}

/// The reason why an image is not cached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrewarmError {
    /// The pull failed.
    #[error("{what}: {source}")]
    Pull { what: String, source: PullError },
    /// The cache has no room, or is read-only.
    #[error("{0} not stored: the cache is full or read-only")]
    NotStored(Digest),
    /// The index has no such platform.
    #[error("no image for {wanted}: the index has {found}; choose one of them, or all")]
    NoPlatform { wanted: String, found: String },
    /// The index names too many manifests.
    #[error("more than {MAX_MANIFESTS} manifests: choose a platform")]
    TooMany,
    /// The caller ended the request.
    #[error("the caller ended the request")]
    Ended,
}

/// A sender of reports.
type Events = Sender<PrewarmEvent>;

/// The totals of a prewarming.
#[derive(Default)]
struct Totals {
    manifests: u64,
    blobs: u64,
    bytes: u64,
    fetched: u64,
}

impl Totals {
    fn add(&mut self, bytes: u64, outcome: Outcome) {
        self.bytes += bytes;
        if outcome == Outcome::Miss {
            self.fetched += bytes;
        }
    }
}

impl Pull {
    /// Pulls an image into the cache like a client, and reports. Ends early if the receiver of the reports is dropped.
    pub(crate) async fn prewarm(
        self: &Arc<Self>,
        wanted: &Prewarm,
        events: &Events,
    ) -> Result<(), PrewarmError> {
        let mut totals = Totals::default();
        let mut manifests = vec![(wanted.reference.clone(), None)];
        let mut blobs: Vec<Descriptor> = Vec::new();
        while let Some((reference, platform)) = manifests.pop() {
            if totals.manifests >= MAX_MANIFESTS as u64 {
                return Err(PrewarmError::TooMany);
            }
            totals.manifests += 1;
            let bytes = self
                .prewarm_manifest(&wanted.repository, &reference, platform, events, &mut totals)
                .await?;
            let below = select(&bytes, &wanted.platforms)?;
            manifests.extend(
                below
                    .into_iter()
                    .map(|(digest, platform)| (Reference::Digest(digest), platform)),
            );
            for blob in Document::read(&bytes).unwrap_or_default().blobs() {
                if !blob.elsewhere && blobs.iter().all(|known| known.digest != blob.digest) {
                    blobs.push(blob.clone());
                }
            }
        }
        let pulls = stream::iter(blobs.into_iter().map(|blob| {
            let (pull, repository, events) = (Arc::clone(self), wanted.repository.clone(), events.clone());
            async move { pull.prewarm_blob(&repository, &blob.digest, &events).await }
        }));
        let mut pulls = pulls.buffer_unordered(LAYERS_AT_A_TIME);
        while let Some(pulled) = pulls.next().await {
            let (bytes, outcome) = pulled?;
            totals.blobs += 1;
            totals.add(bytes, outcome);
        }
        let Totals {
            manifests,
            blobs,
            bytes,
            fetched,
        } = totals;
        let done = PrewarmEvent::Done {
            manifests,
            blobs,
            bytes,
            fetched,
        };
        send(events, done).await
    }

    async fn prewarm_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        platform: Option<ImagePlatform>,
        events: &Events,
        totals: &mut Totals,
    ) -> Result<bytes::Bytes, PrewarmError> {
        let client = ClientRequest {
            headers: &HeaderMap::new(),
            peer: PEER,
        };
        let served = self.manifest(repository, reference, client).await;
        let served = served.map_err(|source| failed(format!("manifest {reference}"), source))?;
        let bytes = served.value.bytes().clone();
        totals.add(bytes.len() as u64, served.outcome);
        let event = PrewarmEvent::Manifest {
            digest: served.value.digest().to_string(),
            platform: platform.map(|platform| platform.to_string()),
            cache: cache_status(served.outcome),
            bytes: bytes.len() as u64,
        };
        send(events, event).await?;
        Ok(bytes)
    }

    async fn prewarm_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        events: &Events,
    ) -> Result<(u64, Outcome), PrewarmError> {
        let started = Instant::now();
        let served = self.blob(repository, digest, &Wanted::Whole, PEER).await;
        let served = served.map_err(|source| failed(format!("layer {digest}"), source))?;
        let bytes = match served.value {
            Source::Stored(blob) => blob.size,
            Source::Filling(fill) => {
                let bytes = follow(&fill, digest, events).await?;
                fill.settled().await;
                // Without a link, the next client would fetch it again.
                if !matches!(self.store.blob(repository, digest).await, Ok(Some(_))) {
                    return Err(PrewarmError::NotStored(digest.clone()));
                }
                bytes
            }
            // Only a client can use the bytes.
            Source::PassThrough(_) => return Err(PrewarmError::NotStored(digest.clone())),
        };
        let event = PrewarmEvent::Blob {
            digest: digest.to_string(),
            cache: cache_status(served.outcome),
            bytes,
            seconds: started.elapsed().as_secs_f64(),
        };
        send(events, event).await?;
        Ok((bytes, served.outcome))
    }
}

/// Waits for the end of a fill with a report every [`REPORT_INTERVAL`]. Returns the size of the blob.
async fn follow(fill: &Fill, digest: &Digest, events: &Events) -> Result<u64, PrewarmError> {
    loop {
        let ended = tokio::select! {
            ended = fill.ended() => ended,
            () = tokio::time::sleep(REPORT_INTERVAL) => {
                let progress = fill.progress();
                let event = PrewarmEvent::Progress {
                    digest: digest.to_string(),
                    bytes: progress.written,
                    size: progress.size,
                };
                send(events, event).await?;
                continue;
            }
        };
        return match ended.phase {
            Phase::Verified => Ok(ended.written),
            Phase::Failed(source) => Err(failed(format!("layer {digest}"), source)),
            Phase::Asking | Phase::Filling | Phase::NoRoom => Err(PrewarmError::NotStored(digest.clone())),
        };
    }
}

/// Returns the manifests of an index that are pulled; none for an image.
fn select(
    index: &[u8],
    selection: &PlatformSelection,
) -> Result<Vec<(Digest, Option<ImagePlatform>)>, PrewarmError> {
    let named = manifest::platforms(index);
    let wanted = match selection {
        PlatformSelection::All => {
            return Ok(named
                .into_iter()
                .map(|entry| (entry.digest, entry.platform))
                .collect());
        }
        PlatformSelection::Some(wanted) => wanted,
    };
    let mut selected = Vec::new();
    for platform in wanted {
        let is_wanted =
            |found: &Option<ImagePlatform>| found.as_ref().is_none_or(|found| platform.accepts(found));
        let before = selected.len();
        selected.extend(named.iter().filter(|entry| is_wanted(&entry.platform)));
        if selected.len() == before && !named.is_empty() {
            let found = named.iter().filter_map(|entry| entry.platform.as_ref());
            let found: Vec<_> = found
                .filter(|found| !found.is_unknown())
                .map(ToString::to_string)
                .collect();
            return Err(PrewarmError::NoPlatform {
                wanted: platform.to_string(),
                found: found.join(", "),
            });
        }
    }
    let selected = selected
        .into_iter()
        .map(|entry| (entry.digest.clone(), entry.platform.clone()));
    Ok(selected.collect())
}

fn failed(what: String, source: PullError) -> PrewarmError {
    PrewarmError::Pull { what, source }
}

fn cache_status(outcome: Outcome) -> String {
    outcome.cache_status().unwrap_or("MISS").to_owned()
}

async fn send(events: &Events, event: PrewarmEvent) -> Result<(), PrewarmError> {
    events.send(event).await.map_err(|_| PrewarmError::Ended)
}
