//! The store as its users see it: over real directories, restarts, crashes and another registry.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

#[path = "../fixtures/small_disk.rs"]
mod small_disk;

mod content;
mod crash;
mod damage;
mod distribution;
mod expiry;
mod full;
mod limits;
mod pins;
mod restart;
mod tags;
mod takeover;
mod uploads;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mirror::clock::Clock;
use mirror::config::{Globs, MaxSize};
use mirror::digest::{Algorithm, Digest, Hashed};
use mirror::metrics::Metrics;
use mirror::name::Repository;
use mirror::store::{Blob, Found, Manifest, OpenError, StageError, Store, StoreOptions};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const HOUR: Duration = Duration::from_hours(1);

/// A root directory, and a clock for all that is opened on it.
struct Place {
    root: tempfile::TempDir,
    clock: Clock,
    metrics: Metrics,
    max_size: Option<MaxSize>,
}

impl Place {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            clock: Clock::system(),
            metrics: Metrics::new(),
            max_size: None,
        }
    }

    /// Creates a place, and opens its store.
    async fn opened() -> (Self, Store) {
        let place = Self::new();
        let store = place.open().await;
        (place, store)
    }

    /// Creates a place whose store has the blob `layer` in [`nginx`].
    async fn with_layer() -> (Self, Store, Digest) {
        let (place, store) = Self::opened().await;
        let digest = put(&store, &nginx(), b"layer").await;
        (place, store, digest)
    }

    fn limited(bytes: u64) -> Self {
        Self {
            max_size: Some(MaxSize::Bytes(bytes)),
            ..Self::new()
        }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn options(&self) -> StoreOptions {
        StoreOptions {
            default_host: "docker.io".parse().unwrap(),
            max_size: self.max_size,
            pinned: Globs::default(),
            readonly: false,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Opens the store and waits until it knows its files.
    async fn open(&self) -> Store {
        self.open_for("docker.io").await
    }

    /// Opens the store with another default upstream.
    async fn open_for(&self, default_host: &str) -> Store {
        let options = StoreOptions {
            default_host: default_host.parse().unwrap(),
            ..self.options()
        };
        let opened = async {
            loop {
                match Store::open(self.path(), options.clone()).await {
                    // Background work of the previous store may not have ended.
                    Err(OpenError::Locked(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                    opened => break opened.unwrap(),
                }
            }
        };
        let store = tokio::time::timeout(Duration::from_secs(30), opened)
            .await
            .expect("the directory is let go of");
        until(|| store.is_settled()).await;
        store
    }

    fn data(&self, digest: &Digest) -> PathBuf {
        let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
        self.v2()
            .join("blobs")
            .join(algorithm)
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    fn v2(&self) -> PathBuf {
        self.path().join("docker/registry/v2")
    }

    /// Returns all files of the registry's tree with their bytes.
    fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.v2())
    }

    fn scratch(&self) -> usize {
        files(&self.path().join("_mirror/scratch")).len()
    }
}

fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(here) = open.pop() {
        for entry in fs::read_dir(&here).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_owned();
                // A file that is evicted meanwhile is absent.
                found.extend(fs::read(&path).ok().map(|bytes| (name, bytes)));
            }
        }
    }
    found
}

fn repository(host: &str, name: &str) -> Repository {
    Repository {
        host: host.parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

fn nginx() -> Repository {
    repository("docker.io", "library/nginx")
}

/// Returns bytes that differ by seed.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = seed.to_le_bytes().repeat(len / 8 + 1);
    bytes.truncate(len);
    bytes
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::compute(Algorithm::Sha256, bytes)
}

/// Stages, appends and commits, as a fill does.
async fn try_put(store: &Store, repository: &Repository, bytes: &[u8]) -> Result<Digest, StageError> {
    let digest = digest(bytes);
    let mut staged = store
        .stage(&repository.host, &digest, Some(bytes.len() as u64))
        .await?;
    staged.append(bytes)?;
    staged.verify().unwrap();
    staged.commit(std::slice::from_ref(repository)).await?;
    Ok(digest)
}

async fn put(store: &Store, repository: &Repository, bytes: &[u8]) -> Digest {
    try_put(store, repository, bytes).await.unwrap()
}

fn manifest(text: &str) -> Manifest {
    Manifest::new(
        Hashed::compute(Algorithm::Sha256, Bytes::copy_from_slice(text.as_bytes())),
        IMAGE,
    )
}

fn read(blob: &Blob) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(blob.size).unwrap()];
    blob.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Returns the blob that the repository serves for a digest.
async fn get(store: &Store, repository: &Repository, digest: &Digest) -> Option<Vec<u8>> {
    store.blob(repository, digest).await.unwrap().as_ref().map(read)
}

/// Removes what was not used for an hour.
async fn expire(store: &Store) {
    let expired = store.expire(Some(HOUR), mirror::config::TtlFrom::LastUse).await;
    expired.unwrap();
}

async fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
