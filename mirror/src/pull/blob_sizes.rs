//! Sizes of blobs from manifests: a HEAD needs no request to the upstream.

use moka::sync::Cache;

use super::per_upstream::PerUpstream;
use crate::digest::Digest;
use crate::manifest::Document;
use crate::name::{Host, Repository};

/// The most sizes of an upstream's blobs that are remembered.
const CAPACITY: u64 = 25_000;
/// The most sizes that are remembered of a manifest: each costs time of the thread that serves clients, and no image has
/// as many layers.
const MAX_OF_MANIFEST: usize = 256;

/// A cache of the sizes of blobs that fetched manifests name.
pub(super) struct BlobSizes(PerUpstream<(Repository, Digest), u64>);

impl Default for BlobSizes {
    fn default() -> Self {
        Self(PerUpstream::new(|| Cache::new(CAPACITY)))
    }
}

impl BlobSizes {
    /// Forgets what other upstreams than these sent.
    pub(super) fn retain(&self, is_kept: impl Fn(&Host) -> bool) {
        self.0.retain(is_kept);
    }

    /// Records the first sizes that a manifest names. Blobs with `urls` may not be at the registry.
    pub(super) fn record(&self, repository: &Repository, manifest: &Document) {
        let sizes = self.0.cache(&repository.host);
        let first = manifest.blobs().iter().take(MAX_OF_MANIFEST);
        for blob in first.filter(|blob| !blob.elsewhere) {
            if let Some(size) = blob.size {
                sizes.insert((repository.clone(), blob.digest.clone()), size);
            }
        }
    }

    /// Returns the size of a blob that a manifest of the same repository names.
    pub(super) fn get(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        let sizes = self.0.cache(&repository.host);
        sizes.get(&(repository.clone(), digest.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    /// The sizes that a manifest gives are known in its repository, except those of foreign layers.
    #[test]
    fn blob_sizes_are_known_by_repository() {
        let (sizes, digest) = (BlobSizes::default(), |text: &[u8]| {
            Digest::compute(Algorithm::Sha256, text)
        });
        let repository = |name: &str| Repository {
            host: "a.test".parse().unwrap(),
            name: name.parse().unwrap(),
        };
        let manifest = format!(
            r#"{{"config":{{"digest":"{}","size":7}},"layers":[{{"digest":"{}","size":9,"urls":["https://b"]}}]}}"#,
            digest(b"config"),
            digest(b"layer"),
        );
        sizes.record(&repository("x"), &Document::read(manifest.as_bytes()).unwrap());
        assert_eq!(sizes.get(&repository("x"), &digest(b"config")), Some(7));
        assert_eq!(sizes.get(&repository("x"), &digest(b"layer")), None);
        assert_eq!(sizes.get(&repository("y"), &digest(b"config")), None);
    }

    /// Of a manifest with very many layers only the first sizes are remembered.
    #[test]
    fn sizes_of_one_manifest_are_bounded() {
        let (sizes, digest) = (BlobSizes::default(), |number: usize| {
            Digest::compute(Algorithm::Sha256, &number.to_le_bytes())
        });
        let repository = Repository {
            host: "a.test".parse().unwrap(),
            name: "x".parse().unwrap(),
        };
        let layers = (0..1_000).map(|number| format!(r#"{{"digest":"{}","size":1}}"#, digest(number)));
        let manifest = format!(r#"{{"layers":[{}]}}"#, layers.collect::<Vec<_>>().join(","));
        sizes.record(&repository, &Document::read(manifest.as_bytes()).unwrap());
        let known = |number| sizes.get(&repository, &digest(number)).is_some();
        assert!(known(0) && known(MAX_OF_MANIFEST - 1) && !known(MAX_OF_MANIFEST));
    }
}
