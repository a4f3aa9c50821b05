//! The paths below the storage root: Distribution's filesystem layout, and `_mirror` next to it.

use std::path::{Component, Path, PathBuf};

use crate::digest::{Algorithm, Digest};
use crate::name::{Host, Repository, Tag};
use crate::store::durable::{IoError, Ours, on};

/// The directory that holds other upstreams' repositories; no repository's name may start with `_`.
const UPSTREAMS: &str = "_upstreams";

/// Maps content, repositories and tags to paths, and back.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    default_host: Host,
}

impl Layout {
    pub(crate) fn new(root: &Path, default_host: Host) -> Self {
        Self {
            root: root.to_owned(),
            default_host,
        }
    }

    /// Returns the storage root.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The upstream whose repositories have no prefix.
    pub(super) fn default_host(&self) -> &Host {
        &self.default_host
    }

    /// `_mirror`: what is ours alone.
    pub(super) fn own(&self) -> PathBuf {
        self.root.join("_mirror")
    }

    /// Returns the directories in which obstacles may be replaced.
    pub(super) fn ours(&self) -> Ours {
        Ours(vec![self.own(), self.registry()])
    }

    /// Refuses a link or a file where a directory must be that is not replaced as damage: the cache would be elsewhere, or
    /// could store nothing.
    ///
    /// # Errors
    /// The link or the file.
    pub(super) fn refuse_obstacles(&self) -> Result<(), IoError> {
        let registry = self.registry();
        let parts = registry.ancestors().take_while(|path| *path != self.root);
        for path in parts.chain([&*self.own()]) {
            if path.is_symlink() {
                let link = std::io::Error::other(
                    "it is a symbolic link: put the whole root there, or mount a directory in its place",
                );
                return Err(on("use", path)(link));
            }
            if path.exists() && !path.is_dir() {
                let file = std::io::Error::other("it is not a directory: move it to another place");
                return Err(on("use", path)(file));
            }
        }
        Ok(())
    }

    /// Unfinished files, on the same file system as what they become.
    pub(super) fn scratch(&self) -> PathBuf {
        self.own().join("scratch")
    }

    /// The file with the host of the upstream whose repositories have no prefix.
    pub(super) fn owner(&self) -> PathBuf {
        self.own().join("owner")
    }

    /// The file whose lock keeps other processes out.
    pub(super) fn lock(&self) -> PathBuf {
        self.own().join("lock")
    }

    /// The random id of this cache.
    pub(super) fn instance_id(&self) -> PathBuf {
        self.own().join("id")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.own().join("index.redb")
    }

    /// Distribution's expiry state.
    pub(super) fn scheduler_state(&self) -> PathBuf {
        self.root.join("scheduler-state.json")
    }

    fn registry(&self) -> PathBuf {
        self.root.join("docker/registry/v2")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.registry().join("blobs")
    }

    pub(super) fn repositories(&self) -> PathBuf {
        self.registry().join("repositories")
    }

    /// Returns the directory of the repositories of a host other than the default one.
    pub(super) fn upstream(&self, host: &Host) -> PathBuf {
        self.repositories().join(UPSTREAMS).join(host.as_str())
    }

    pub(crate) fn blob_data(&self, digest: &Digest) -> PathBuf {
        let mut path = self.blobs();
        path.push(digest.algorithm().as_str());
        path.push(&digest.hex()[..2]);
        path.push(digest.hex());
        path.push("data");
        path
    }

    pub(super) fn repository(&self, repository: &Repository) -> PathBuf {
        let base = if repository.host == self.default_host {
            self.repositories()
        } else {
            self.upstream(&repository.host)
        };
        base.join(repository.name.as_str())
    }

    pub(crate) fn layer_link(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        link_below(self.repository(repository).join("_layers"), digest)
    }

    pub(crate) fn revision_link(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        link_below(self.repository(repository).join("_manifests/revisions"), digest)
    }

    /// Returns the directory of all tags of a repository.
    pub(crate) fn tags(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_manifests/tags")
    }

    /// Returns the path of the link that holds the current digest of a tag.
    pub(crate) fn tag_current(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.tags(repository).join(tag.as_str()).join("current/link")
    }

    /// That a tag has pointed to this digest.
    pub(crate) fn tag_index(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> PathBuf {
        link_below(self.tags(repository).join(tag.as_str()).join("index"), digest)
    }

    /// The repository whose directory this is, or `None` where no repository can lie.
    pub(super) fn repository_at(&self, directory: &Path) -> Option<Repository> {
        let below = directory.strip_prefix(self.repositories()).ok()?;
        let (host, name) = match below.strip_prefix(UPSTREAMS) {
            Ok(rest) => {
                let mut parts = rest.components();
                let Some(Component::Normal(host)) = parts.next() else {
                    return None;
                };
                (host.to_str()?.parse().ok()?, parts.as_path())
            }
            Err(_) => (self.default_host.clone(), below),
        };
        Some(Repository {
            host,
            name: name.to_str()?.parse().ok()?,
        })
    }

    /// The digest whose data this file is.
    pub(super) fn digest_at(&self, data: &Path) -> Option<Digest> {
        let below = data.strip_prefix(self.blobs()).ok()?;
        let mut parts = below.iter().map(|part| part.to_str());
        let (algorithm, _, hex) = (parts.next()??, parts.next()?, parts.next()??);
        let digest: Digest = format!("{algorithm}:{hex}").parse().ok()?;
        (self.blob_data(&digest) == data).then_some(digest)
    }
}

/// The directories that content of each algorithm lies in.
pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

fn link_below(mut base: PathBuf, digest: &Digest) -> PathBuf {
    base.push(digest.algorithm().as_str());
    base.push(digest.hex());
    base.push("link");
    base
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new(Path::new("/r"), "docker.io".parse().unwrap())
    }

    fn repository(host: &str, name: &str) -> Repository {
        Repository {
            host: host.parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    /// The repositories of the default upstream have the paths of Distribution.
    #[test]
    fn default_upstream_has_distributions_paths() {
        let digest = Digest::compute(Algorithm::Sha256, b"");
        let hex = digest.hex();
        let nginx = repository("docker.io", "library/nginx");
        let v2 = "/r/docker/registry/v2";
        let expected = [
            format!("{v2}/blobs/sha256/e3/{hex}/data"),
            format!("{v2}/repositories/library/nginx/_layers/sha256/{hex}/link"),
            format!("{v2}/repositories/library/nginx/_manifests/revisions/sha256/{hex}/link"),
            format!("{v2}/repositories/library/nginx/_manifests/tags/1.27/current/link"),
            format!("{v2}/repositories/library/nginx/_manifests/tags/1.27/index/sha256/{hex}/link"),
        ];
        let tag = "1.27".parse().unwrap();
        let found = [
            layout().blob_data(&digest),
            layout().layer_link(&nginx, &digest),
            layout().revision_link(&nginx, &digest),
            layout().tag_current(&nginx, &tag),
            layout().tag_index(&nginx, &tag, &digest),
        ];
        assert_eq!(found.map(|path| path.to_str().unwrap().to_owned()), expected);
    }

    /// The repositories of other upstreams are stored below the host's name.
    #[test]
    fn other_upstreams_are_stored_below_their_host() {
        let path = layout().repository(&repository("quay.io:443", "a/b"));
        assert!(path.ends_with("repositories/_upstreams/quay.io:443/a/b"));
    }

    /// A path that belongs to no repository gives none.
    #[test]
    fn paths_without_repository_have_none() {
        for path in ["_upstreams", "_upstreams/quay.io", "a/_layers", "", "../x", "A"] {
            let path = layout().repositories().join(path);
            assert_eq!(layout().repository_at(&path), None, "{path:?}");
        }
    }

    fn names() -> impl Strategy<Value = String> {
        "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,3}"
    }

    proptest! {
        /// Every repository reads back from its path.
        #[test]
        fn repository_reads_back_from_its_path(name in names(), host in "[a-z]{1,9}(\\.[a-z]{2,5})?(:[0-9]{2,5})?") {
            for host in [host.as_str(), "docker.io"] {
                let it = repository(host, &name);
                prop_assert_eq!(layout().repository_at(&layout().repository(&it)), Some(it));
            }
        }

        #[test]
        fn no_two_repositories_share_a_path(a in names(), b in names()) {
            let (here, there) = (repository("docker.io", &a), repository("quay.io", &b));
            prop_assert_ne!(layout().repository(&here), layout().repository(&there));
            let other = repository("docker.io", &b);
            prop_assert_eq!(layout().repository(&here) == layout().repository(&other), a == b);
        }

        /// Every digest reads back from its path.
        #[test]
        fn digest_reads_back_from_its_path(bytes: Vec<u8>, long: bool) {
            let digest = Digest::compute(ALGORITHMS[usize::from(long)], &bytes);
            prop_assert_eq!(layout().digest_at(&layout().blob_data(&digest)), Some(digest));
        }

        /// No name gives a path outside of the root.
        #[test]
        fn paths_stay_below_the_root(name in names(), tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}") {
            let it = repository("quay.io", &name);
            let path = layout().tag_current(&it, &tag.parse().unwrap());
            prop_assert!(path.starts_with(layout().repositories()));
            prop_assert!(path.components().all(|part| part != Component::ParentDir));
        }
    }
}
