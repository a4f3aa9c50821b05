//! The content that is pulled: a layer, a small blob, a manifest, and any number of new layers and images.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mirror::digest::{Algorithm, Digest, Hasher};
use serde_json::{Value, json};

pub(crate) const LAYER: usize = 100 << 20;
pub(crate) const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The layers of an image, in MiB: 105 in all.
const LAYERS: [usize; 8] = [50, 25, 12, 8, 5, 3, 1, 1];

/// Bytes that an upstream serves under a digest.
#[derive(Clone)]
pub(crate) enum Item {
    /// The first layer's bytes up to this length, but for the first eight.
    Layer { head: [u8; 8], length: usize },
    /// A document of this type.
    Document(Arc<[u8]>, &'static str),
}

/// Something by the name that it is asked for by.
pub(crate) type Named = (String, Item);

/// All content; clones share it.
#[derive(Clone)]
pub(crate) struct Content {
    /// The bytes that all layers consist of.
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) layer: Digest,
    pub(crate) small: Digest,
    pub(crate) manifest: Digest,
    pub(crate) manifest_bytes: Arc<[u8]>,
    fresh: Arc<AtomicU64>,
}

impl Content {
    pub(crate) const SMALL: usize = 4096;

    pub(crate) fn new() -> Self {
        let bytes = bytes(LAYER);
        let digest = |bytes: &[u8]| Digest::compute(Algorithm::Sha256, bytes);
        let (layer, small) = (digest(&bytes), digest(&bytes[..Self::SMALL]));
        let manifest_bytes = manifest((&small, Self::SMALL), &[(layer.clone(), LAYER)]);
        Self {
            manifest: digest(&manifest_bytes),
            manifest_bytes,
            bytes,
            layer,
            small,
            fresh: Arc::default(),
        }
    }

    /// Returns the content that exists from the start, `latest` included.
    pub(crate) fn first(&self) -> Vec<Named> {
        let head = self.bytes[..8].try_into().unwrap();
        let layer = |length| Item::Layer { head, length };
        let manifest = || Item::Document(self.manifest_bytes.clone(), IMAGE);
        vec![
            (self.layer.to_string(), layer(LAYER)),
            (self.small.to_string(), layer(Self::SMALL)),
            (self.manifest.to_string(), manifest()),
            ("latest".to_owned(), manifest()),
        ]
    }

    /// An uncached layer.
    pub(crate) fn fresh_layer(&self, length: usize) -> (Digest, Item) {
        let head = (self.fresh.fetch_add(1, Ordering::Relaxed) + 1).to_le_bytes();
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&head);
        hasher.update(&self.bytes[8..length.max(9)]);
        (hasher.finish(), Item::Layer { head, length })
    }

    /// A tag of this number, and the manifest that it leads to.
    pub(crate) fn tagged(&self, number: usize) -> (String, Item) {
        let text = json!({"schemaVersion": 2, "mediaType": IMAGE, "annotations": {"number": number.to_string()}, "layers": [],
            "config": descriptor(CONFIG, &self.small, Self::SMALL)});
        let bytes = text.to_string().into_bytes();
        (format!("tag-{number}"), Item::Document(bytes.into(), IMAGE))
    }

    /// A tag that leads to an index, which leads to an image of eight layers; with all that belongs to it.
    pub(crate) fn fresh_image(&self) -> (String, Vec<Named>) {
        let mut items = Vec::new();
        let mut layers = Vec::new();
        for length in LAYERS.map(|mib| mib << 20) {
            let (digest, item) = self.fresh_layer(length);
            items.push((digest.to_string(), item));
            layers.push((digest, length));
        }
        let config =
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}});
        let config: Arc<[u8]> = config.to_string().into_bytes().into();
        let config_digest = Digest::compute(Algorithm::Sha256, &config);
        let image = manifest((&config_digest, config.len()), &layers);
        items.push((config_digest.to_string(), Item::Document(config, CONFIG)));
        let digest = Digest::compute(Algorithm::Sha256, &image);
        let mut of_the_image = descriptor(IMAGE, &digest, image.len());
        of_the_image["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [of_the_image]});
        let index: Arc<[u8]> = index.to_string().into_bytes().into();
        let tag = format!("image-{}", &digest.hex()[..12]);
        let by_digest = Digest::compute(Algorithm::Sha256, &index).to_string();
        items.push((digest.to_string(), Item::Document(image, IMAGE)));
        items.push((by_digest, Item::Document(index.clone(), INDEX)));
        items.push((tag.clone(), Item::Document(index, INDEX)));
        (tag, items)
    }
}

fn manifest((config, size): (&Digest, usize), layers: &[(Digest, usize)]) -> Arc<[u8]> {
    let layer = |(digest, size): &(Digest, usize)| {
        descriptor("application/vnd.oci.image.layer.v1.tar", digest, *size)
    };
    json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": descriptor(CONFIG, config, size),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes()
    .into()
}

fn descriptor(kind: &str, digest: &Digest, size: usize) -> Value {
    json!({"mediaType": kind, "digest": digest.as_str(), "size": size})
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
