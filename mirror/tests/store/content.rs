//! Blobs and manifests: in whole, by repository, or not at all.

use super::*;
use mirror::store::Found;
use mirror::store::OpenError;

#[tokio::test]
async fn committed_blob_is_linked_to_its_repositories() {
    let (_place, store, digest) = Place::with_layer().await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
    let other = repository("quay.io", "library/nginx");
    assert_eq!(get(&store, &other, &digest).await, None);
}

#[tokio::test]
async fn content_is_linked_into_other_repository() {
    let (_place, store, digest) = Place::with_layer().await;
    let other = repository("docker.io", "org/app");
    let found = store.find(&other, &digest).await.unwrap();
    assert!(matches!(found, Found::Unlinked(blob) if read(&blob) == b"layer"));
    let elsewhere = store
        .find(&repository("quay.io", "org/app"), &digest)
        .await
        .unwrap();
    assert!(matches!(elsewhere, Found::Missing), "another upstream");
    store.link_blob(&other, &digest).await.unwrap();
    assert_eq!(get(&store, &other, &digest).await.unwrap(), b"layer");
    assert_eq!(store.usage().blobs, 1);
}

/// Content that does not exist gets no link.
#[tokio::test]
async fn missing_content_gets_no_link() {
    let (place, store) = Place::opened().await;
    store.link_blob(&nginx(), &digest(b"gone")).await.unwrap();
    assert_eq!(place.tree(), BTreeMap::new());
}

#[tokio::test]
async fn staged_blob_is_readable_and_leaves_nothing() {
    let (place, store) = Place::opened().await;
    let mut staged = store
        .stage(&nginx().host, &digest(b"abcdef"), Some(6))
        .await
        .unwrap();
    staged.append(b"abc").unwrap();
    let mut seen = [0; 3];
    staged.file().read_exact_at(&mut seen, 0).unwrap();
    assert_eq!((&seen, staged.written()), (b"abc", 3));
    assert_eq!(staged.file().metadata().unwrap().len(), 3);
    drop(staged);
    assert_eq!(place.scratch(), 0);
    assert_eq!(place.tree(), BTreeMap::new());
}

#[tokio::test]
async fn wrong_bytes_are_never_committed() {
    let (place, store) = Place::opened().await;
    let mut staged = store.stage(&nginx().host, &digest(b"right"), None).await.unwrap();
    staged.append(b"wrong").unwrap();
    let mismatch = staged.verify().unwrap_err();
    assert_eq!((mismatch.found, mismatch.size), (digest(b"wrong"), 5));
    let error = staged.commit(&[nginx()]).await.unwrap_err();
    assert!(matches!(error, StageError::Mismatch(_)), "{error}");
    assert_eq!((place.tree(), place.scratch()), (BTreeMap::new(), 0));
}

/// A blob that is longer or shorter than announced is refused.
#[tokio::test]
async fn blob_of_wrong_length_is_refused() {
    let (_place, store) = Place::opened().await;
    let mut long = store
        .stage(&nginx().host, &digest(b"abcd"), Some(3))
        .await
        .unwrap();
    assert!(matches!(
        long.append(b"abcd"),
        Err(StageError::TooLong { size: 3 })
    ));
    let mut short = store
        .stage(&nginx().host, &digest(b"abcd"), Some(5))
        .await
        .unwrap();
    short.append(b"abcd").unwrap();
    assert!(short.verify().is_err());
}

/// Blobs with a SHA-512 digest and empty blobs are stored as any other.
#[tokio::test]
async fn sha512_and_empty_blobs_are_stored() {
    let (place, store) = Place::opened().await;
    let empty = put(&store, &nginx(), b"").await;
    let long = Digest::compute(Algorithm::Sha512, b"x");
    let mut staged = store.stage(&nginx().host, &long, None).await.unwrap();
    staged.append(b"x").unwrap();
    staged.commit(&[nginx()]).await.unwrap();
    drop(store);
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &empty).await.unwrap(), b"");
    assert_eq!(get(&store, &nginx(), &long).await.unwrap(), b"x");
}

/// A manifest keeps its bytes and its media type over a restart.
#[tokio::test]
async fn manifest_survives_restart_with_media_type() {
    let place = Place::new();
    let text = br#"{ "schemaVersion":2 }"#;
    let content = Hashed::compute(Algorithm::Sha256, text.as_slice().into());
    let manifest = Manifest::new(content, "application/vnd.example+json");
    let store = place.open().await;
    store.put_manifest(&nginx(), &manifest).await.unwrap();
    drop(store);
    let store = place.open().await;
    assert_eq!(
        store.manifest(&nginx(), manifest.digest()).await.unwrap(),
        Some(manifest.clone())
    );
    let other = repository("docker.io", "other");
    assert_eq!(store.manifest(&other, manifest.digest()).await.unwrap(), None);
}

/// The error for a second store on the same root names the root.
#[tokio::test]
async fn second_store_on_root_is_refused() {
    let place = Place::new();
    let _store = place.open().await;
    let error = Store::open(place.path(), place.options()).await.unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)));
    assert!(error.to_string().contains(place.path().to_str().unwrap()));
}

/// The error for a root that cannot be created names the root.
#[tokio::test]
async fn unwritable_root_is_named() {
    let place = Place::new();
    fs::write(place.path().join("file"), "").unwrap();
    let root = Path::new("/proc/nothing");
    let error = Store::open(root, place.options()).await.unwrap_err();
    assert!(matches!(error, OpenError::Unwritable { .. }));
    assert!(error.to_string().contains("/proc/nothing"), "{error}");
}

/// A read-only store serves its content and accepts no more.
#[tokio::test]
async fn read_only_store_accepts_nothing() {
    let (place, store, digest) = Place::with_layer().await;
    drop(store);
    let options = StoreOptions {
        readonly: true,
        ..place.options()
    };
    let store = Store::open(place.path(), options).await.unwrap();
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
    let error = try_put(&store, &nginx(), b"more").await.unwrap_err();
    assert!(matches!(error, StageError::ReadOnly));
}

/// A warm hit writes nothing to the disk.
#[tokio::test]
async fn warm_hit_writes_nothing() {
    let (place, store, digest) = Place::with_layer().await;
    let index = || {
        fs::metadata(place.path().join("_mirror/index.redb"))
            .unwrap()
            .modified()
            .unwrap()
    };
    store.flush().await;
    let before = (index(), place.tree());
    for _ in 0..100 {
        get(&store, &nginx(), &digest).await.unwrap();
    }
    assert_eq!((index(), place.tree()), before);
}

#[tokio::test]
async fn without_hits_a_flush_writes_nothing() {
    let (place, store) = Place::opened().await;
    put(&store, &nginx(), b"layer").await;
    expire(&store).await;
    store.flush().await;
    let written = || {
        let state = fs::metadata(place.path().join("scheduler-state.json")).unwrap();
        let index = fs::metadata(place.path().join("_mirror/index.redb")).unwrap();
        (state.modified().unwrap(), index.modified().unwrap())
    };
    let before = written();
    expire(&store).await;
    store.flush().await;
    assert_eq!(written(), before);
}

/// A blob of unknown size uses no more disk space than it has bytes.
#[tokio::test]
async fn blob_of_unknown_size_wastes_no_space() {
    use std::os::unix::fs::MetadataExt;
    let (place, store) = Place::opened().await;
    let mut staged = store.stage(&nginx().host, &digest(b"small"), None).await.unwrap();
    staged.append(b"small").unwrap();
    staged.commit(&[nginx()]).await.unwrap();
    let blocks = fs::metadata(place.data(&digest(b"small"))).unwrap().blocks();
    assert!(blocks * 512 <= 64 << 10, "{blocks} blocks");
    assert_eq!(store.usage().bytes, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_operations_keep_quota_exact() {
    let place = Place::limited(40_000);
    let store = place.open().await;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..4_u64 {
        let (store, clock) = (store.clone(), place.clock.clone());
        workers.spawn(async move {
            for step in 0..60_u64 {
                // Few pieces of content, so that the workers meet on them.
                let content = bytes(step * 7 % 9, 9000);
                let digest = digest(&content);
                match (step * 31 + worker * 17) % 6 {
                    0 | 1 => drop(try_put(&store, &nginx(), &content).await),
                    2 => store.drop_blob(&digest).await,
                    3 => drop(store.link_blob(&repository("quay.io", "a"), &digest).await),
                    4 => drop(store.expire(Some(HOUR), mirror::config::TtlFrom::LastUse).await),
                    _ => clock.advance(HOUR / 20),
                }
                if let Some(found) = get(&store, &nginx(), &digest).await {
                    assert_eq!(found, content);
                }
            }
        });
    }
    workers.join_all().await;
    let on_disk = || {
        files(&place.v2().join("blobs"))
            .values()
            .map(Vec::len)
            .sum::<usize>() as u64
    };
    assert_eq!(store.usage().bytes, on_disk());
    drop(store);
    let store = place.open().await;
    assert_eq!((store.usage().bytes, place.scratch()), (on_disk(), 0));
    place.clock.advance(2 * HOUR);
    expire(&store).await;
    assert_eq!((store.usage().bytes, store.usage().blobs, on_disk()), (0, 0, 0));
    assert_eq!(place.tree(), BTreeMap::new());
}

/// Chunks that are hashed while they are written have the digest of all bytes, few or many, and are readable at once.
#[tokio::test]
async fn chunks_appended_together_keep_the_digest() {
    let (_place, store) = Place::opened().await;
    let content = bytes(3, 700_000);
    let digest = digest(&content);
    let size = Some(content.len() as u64);
    let mut staged = store.stage(&nginx().host, &digest, size).await.unwrap();
    let (mut left, whole) = (Bytes::from(content.clone()), content.len());
    for lengths in [&[1, 70_000, 0][..], &[10], &[200_000, 5, 300_000]] {
        let chunks = lengths.iter().map(|length| left.split_to(*length)).collect();
        staged = staged.append_all(chunks, |_| ()).await.unwrap();
    }
    let (sender, written) = std::sync::mpsc::channel();
    let on_written = move |written| sender.send(written).unwrap();
    staged = staged.append_all(vec![left], on_written).await.unwrap();
    assert_eq!(written.recv().unwrap(), whole as u64);
    staged.verify().unwrap();
    staged.commit(&[nginx()]).await.unwrap();
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), content);
}

/// Chunks that are longer together than was announced are refused.
#[tokio::test]
async fn chunks_beyond_the_size_are_refused() {
    let (place, store) = Place::opened().await;
    let (host, digest) = (nginx().host, digest(b"x"));
    let staged = store.stage(&host, &digest, Some(99_999)).await.unwrap();
    let chunks = vec![Bytes::from(bytes(1, 70_000)); 2];
    let refused = staged.append_all(chunks, |_| ()).await;
    assert!(matches!(refused, Err(StageError::TooLong { size: 99_999 })));
    assert_eq!(place.scratch(), 0);
}
