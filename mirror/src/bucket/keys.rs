//! The keys of objects: the paths of the disk below the prefix of the bucket.

use std::path::Path;

use object_store::path::Path as Key;

use crate::digest::Digest;
use crate::name::{Host, Repository, Tag};
use crate::store::{Layout, Link};

/// The keys of one bucket.
#[derive(Clone, Debug)]
pub(super) struct Keys(Layout);

/// Returns the key of the object that names the owner of the repositories without a prefix.
pub(super) fn owner(root: &str) -> Key {
    Key::from(root).join("_mirror").join("v1").join("owner")
}

/// Returns the key of the ledger of a shard.
pub(super) fn ledger(root: &str, shard: u8) -> Key {
    let directory = Key::from(root).join("_mirror").join("v1").join("ledger");
    directory.join(format!("{shard:02x}"))
}

/// Returns the digest of a key of content.
pub(super) fn digest_of_data(key: &Key) -> Option<Digest> {
    let mut parts = key.as_ref().rsplit('/');
    let (data, hex, _, algorithm) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (data == "data").then(|| format!("{algorithm}:{hex}").parse().ok())?
}

impl Keys {
    /// Creates the keys below `root`; the repositories of `owner` have no prefix.
    pub(super) fn new(root: &str, owner: Host) -> Self {
        Self(Layout::new(Path::new(root), owner))
    }

    /// Returns the key of content.
    pub(super) fn data(&self, digest: &Digest) -> Key {
        key(&self.0.blob_data(digest))
    }

    /// Returns the prefix of the SHA-256 content of a shard.
    pub(super) fn shard(&self, shard: u8) -> Key {
        let blobs = key(&self.0.blobs());
        blobs.join("sha256").join(format!("{shard:02x}"))
    }

    /// Returns the key of a blob's link in a repository.
    pub(super) fn layer(&self, repository: &Repository, digest: &Digest) -> Key {
        key(&self.0.layer_link(repository, digest))
    }

    /// Returns the key of a manifest's link in a repository.
    pub(super) fn revision(&self, repository: &Repository, digest: &Digest) -> Key {
        key(&self.0.revision_link(repository, digest))
    }

    /// Returns the key of a link to content; of a tag, the one that holds its current digest.
    pub(super) fn link(&self, link: &Link) -> Key {
        match link {
            Link::Layer(repository, name) => self.layer(repository, name),
            Link::Revision(repository, name) => self.revision(repository, name),
            Link::Tag(repository, tag) => self.tag(repository, tag),
        }
    }

    /// Returns the start of the keys of all tags of a repository.
    pub(super) fn tags(&self, repository: &Repository) -> Key {
        key(&self.0.tags(repository))
    }

    /// Returns the key of the link that holds the current digest of a tag.
    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Key {
        key(&self.0.tag_current(repository, tag))
    }

    /// Returns the key of the link that says that a tag has pointed to a digest.
    pub(super) fn tag_index(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Key {
        key(&self.0.tag_index(repository, tag, digest))
    }
}

/// Returns a path of the layout as a key; names of repositories, tags and hosts are text without special characters.
fn key(path: &Path) -> Key {
    Key::from(path.to_string_lossy().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    /// The keys are those of Distribution, also with a prefix and for an upstream with a port.
    #[test]
    fn keys_are_those_of_distribution() {
        let digest = Digest::compute(Algorithm::Sha256, b"");
        let hex = digest.hex();
        let repository = |host: &str| Repository {
            host: host.parse().unwrap(),
            name: "a/b".parse().unwrap(),
        };
        let keys = Keys::new("", "docker.io".parse().unwrap());
        let data = format!("docker/registry/v2/blobs/sha256/e3/{hex}/data");
        assert_eq!(keys.data(&digest).as_ref(), data);
        let keys = Keys::new("x/y", "docker.io".parse().unwrap());
        assert_eq!(keys.data(&digest).as_ref(), format!("x/y/{data}"));
        let repositories = "x/y/docker/registry/v2/repositories";
        assert_eq!(
            keys.layer(&repository("docker.io"), &digest).as_ref(),
            format!("{repositories}/a/b/_layers/sha256/{hex}/link")
        );
        let tag = "v1_0.2-x".parse().unwrap();
        assert_eq!(
            keys.tag(&repository("quay.io:443"), &tag).as_ref(),
            format!("{repositories}/_upstreams/quay.io:443/a/b/_manifests/tags/v1_0.2-x/current/link")
        );
        assert_eq!(digest_of_data(&keys.data(&digest)), Some(digest.clone()));
        let shard = keys.shard(0xe3);
        assert_eq!(shard.as_ref(), "x/y/docker/registry/v2/blobs/sha256/e3");
        assert_eq!(ledger("x/y", 0xe).as_ref(), "x/y/_mirror/v1/ledger/0e");
        assert_eq!(owner("x/y").as_ref(), "x/y/_mirror/v1/owner");
        assert_eq!(owner("").as_ref(), "_mirror/v1/owner");
    }
}
