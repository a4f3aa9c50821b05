//! Sizes of blobs that manifests name: a HEAD needs no more, and no question to upstream.

use moka::sync::Cache;

use super::per_upstream::PerUpstream;
use crate::digest::Digest;
use crate::manifest::Document;
use crate::name::{Host, Repository};

/// The most sizes of an upstream's blobs that are remembered.
const CAPACITY: u64 = 25_000;

/// What manifests that were fetched say of their blobs.
pub(super) struct Named(PerUpstream<(Repository, Digest), u64>);

impl Default for Named {
    fn default() -> Self {
        Self(PerUpstream::new(|| Cache::new(CAPACITY)))
    }
}

impl Named {
    /// Forgets what other upstreams than these sent.
    pub(super) fn retain(&self, is_kept: impl Fn(&Host) -> bool) {
        self.0.retain(is_kept);
    }

    /// Remembers what a manifest says of its blobs. What lies elsewhere by its `urls` may not be at the registry.
    pub(super) fn note(&self, repository: &Repository, manifest: &Document) {
        let sizes = self.0.of(&repository.host);
        for blob in manifest.blobs().iter().filter(|blob| !blob.elsewhere) {
            if let Some(size) = blob.size {
                sizes.insert((repository.clone(), blob.digest.clone()), size);
            }
        }
    }

    /// The size of this blob by a manifest of the same repository.
    pub(super) fn of(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        let sizes = self.0.of(&repository.host);
        sizes.get(&(repository.clone(), digest.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn sizes_are_known_by_repository_but_for_what_lies_elsewhere() {
        let (sizes, digest) = (Named::default(), |text: &[u8]| {
            Digest::of(Algorithm::Sha256, text)
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
        sizes.note(&repository("x"), &Document::read(manifest.as_bytes()).unwrap());
        assert_eq!(sizes.of(&repository("x"), &digest(b"config")), Some(7));
        assert_eq!(sizes.of(&repository("x"), &digest(b"layer")), None);
        assert_eq!(sizes.of(&repository("y"), &digest(b"config")), None);
    }
}
