//! What is pulled: a layer, a small blob, a manifest, and as many new layers as are wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mirror::digest::{Algorithm, Digest};

pub(crate) const LAYER: usize = 100 << 20;

/// All content; clones share it.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) layer: Arc<[u8]>,
    pub(crate) layer_digest: Digest,
    pub(crate) small: Arc<[u8]>,
    pub(crate) small_digest: Digest,
    pub(crate) manifest: Arc<[u8]>,
    pub(crate) manifest_digest: Digest,
    /// New layers differ from the first in their first eight bytes, which are this number.
    fresh: Arc<AtomicU64>,
}

impl Content {
    pub(crate) fn new() -> Self {
        let layer = bytes(LAYER);
        let small: Arc<[u8]> = layer[..4096].into();
        let digest = |bytes: &[u8]| Digest::of(Algorithm::Sha256, bytes);
        let (layer_digest, small_digest) = (digest(&layer), digest(&small));
        let manifest: Arc<[u8]> = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": small_digest.as_str(), "size": small.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest.as_str(), "size": LAYER}],
        }))
        .unwrap()
        .into();
        Self {
            manifest_digest: digest(&manifest),
            layer,
            layer_digest,
            small,
            small_digest,
            manifest,
            fresh: Arc::default(),
        }
    }

    /// A layer that nobody has yet: its digest, and the eight bytes that it begins with.
    pub(crate) fn fresh_layer(&self) -> (Digest, [u8; 8]) {
        let head = (self.fresh.fetch_add(1, Ordering::Relaxed) + 1).to_le_bytes();
        let mut hasher = mirror::digest::Hasher::new(Algorithm::Sha256);
        hasher.update(&head);
        hasher.update(&self.layer[8..]);
        (hasher.finish(), head)
    }
}

/// The same bytes at each run; a compressor would find nothing in them (xorshift64).
fn bytes(length: usize) -> Arc<[u8]> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}
