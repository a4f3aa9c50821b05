//! Room: reserved first, made by evicting what was not used for longest, never exceeded.

use super::*;

const KIB: u64 = 1024;

/// Returns the bytes of all content on the disk.
fn stored(place: &Place) -> u64 {
    let blobs = files(&place.v2().join("blobs"));
    blobs.values().map(|bytes| bytes.len() as u64).sum()
}

/// The content that was used longest ago is evicted first.
#[tokio::test]
async fn least_recently_used_is_evicted_first() {
    let place = Place::limited(3 * KIB);
    let store = place.open().await;
    let mut digests = Vec::new();
    for seed in 0..3 {
        digests.push(put(&store, &nginx(), &bytes(seed, 1024)).await);
        place.clock.advance(HOUR);
    }
    assert!(get(&store, &nginx(), &digests[0]).await.is_some());
    place.clock.advance(HOUR);
    put(&store, &nginx(), &bytes(3, 1024)).await;
    assert!(get(&store, &nginx(), &digests[0]).await.is_some(), "used last");
    assert!(
        get(&store, &nginx(), &digests[1]).await.is_none(),
        "not used for longest"
    );
    assert!(get(&store, &nginx(), &digests[2]).await.is_some());
}

/// The order of use survives a restart.
#[tokio::test]
async fn order_of_use_survives_restart() {
    let place = Place::limited(2 * KIB);
    let store = place.open().await;
    let first = put(&store, &nginx(), &bytes(0, 1024)).await;
    place.clock.advance(HOUR);
    let second = put(&store, &nginx(), &bytes(1, 1024)).await;
    place.clock.advance(HOUR);
    get(&store, &nginx(), &first).await.unwrap();
    store.flush().await;
    drop(store);
    let store = place.open().await;
    put(&store, &nginx(), &bytes(2, 1024)).await;
    assert!(get(&store, &nginx(), &first).await.is_some());
    assert!(get(&store, &nginx(), &second).await.is_none());
}

/// Space is reserved once, and released when the blob is dropped.
#[tokio::test]
async fn space_is_reserved_once_and_released() {
    let place = Place::limited(10 * KIB);
    let store = place.open().await;
    let mut staged = Vec::new();
    for seed in 0..5 {
        staged.push(
            store
                .stage(&nginx().host, &digest(&bytes(seed, 8)), Some(2 * KIB))
                .await
                .unwrap(),
        );
    }
    let refused = store
        .stage(&nginx().host, &digest(b"x"), Some(1))
        .await
        .unwrap_err();
    assert!(matches!(refused, StageError::NoRoom));
    staged.pop();
    assert!(
        store
            .stage(&nginx().host, &digest(b"x"), Some(2 * KIB))
            .await
            .is_ok()
    );
}

/// A blob that is larger than the limit evicts nothing.
#[tokio::test]
async fn blob_above_limit_evicts_nothing() {
    let place = Place::limited(2 * KIB);
    let store = place.open().await;
    let kept = put(&store, &nginx(), &bytes(0, 1024)).await;
    let refused = store
        .stage(&nginx().host, &digest(b"x"), Some(3 * KIB))
        .await
        .unwrap_err();
    assert!(matches!(refused, StageError::NoRoom));
    assert!(get(&store, &nginx(), &kept).await.is_some());
}

/// Content that is open is not evicted.
#[tokio::test]
async fn open_content_is_not_evicted() {
    let place = Place::limited(2 * KIB);
    let store = place.open().await;
    let reading = put(&store, &nginx(), &bytes(0, 1024)).await;
    let blob = store.blob(&nginx(), &reading).await.unwrap().unwrap();
    place.clock.advance(HOUR);
    let idle = put(&store, &nginx(), &bytes(1, 1024)).await;
    put(&store, &nginx(), &bytes(2, 1024)).await;
    assert!(get(&store, &nginx(), &idle).await.is_none());
    assert_eq!(read(&blob), bytes(0, 1024));
    drop(blob);
    put(&store, &nginx(), &bytes(3, 1024)).await;
    put(&store, &nginx(), &bytes(4, 1024)).await;
    assert!(get(&store, &nginx(), &reading).await.is_none());
}

/// Concurrent fills never exceed the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_fills_never_exceed_the_limit() {
    let limit = 64 * KIB;
    let place = Place::limited(limit);
    let store = place.open().await;
    let mut fills = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let store = store.clone();
        fills.spawn(async move {
            for round in 0..12 {
                let content = bytes(worker * 100 + round, 4096 + usize::try_from(round * 500).unwrap());
                match try_put(&store, &nginx(), &content).await {
                    Ok(_) | Err(StageError::NoRoom) => {}
                    Err(error) => panic!("{error}"),
                }
                let usage = store.usage();
                assert!(usage.bytes <= limit, "{usage:?}");
            }
        });
    }
    fills.join_all().await;
    assert_eq!(stored(&place), store.usage().bytes);
    assert!(stored(&place) <= limit && store.usage().blobs > 3);
    assert_eq!(place.scratch(), 0);
}

/// A lowered limit applies to cached content.
#[tokio::test]
async fn lowered_limit_applies_to_cached_content() {
    let place = Place::limited(4 * KIB);
    let store = place.open().await;
    for seed in 0..4 {
        put(&store, &nginx(), &bytes(seed, 1024)).await;
    }
    store.set_limits(Some(MaxSize::Bytes(2 * KIB)));
    store
        .expire(None, mirror::config::TtlFrom::LastUse)
        .await
        .unwrap();
    assert_eq!((store.usage().bytes, stored(&place)), (2 * KIB, 2 * KIB));
    assert_eq!(store.usage().limit, Some(2 * KIB));
}

/// A limit in percent is a share of the file system.
#[tokio::test]
async fn percentage_limit_is_of_the_file_system() {
    let place = Place {
        max_size: Some(MaxSize::Percent(50)),
        ..Place::new()
    };
    let store = place.open().await;
    let system = rustix::fs::statvfs(place.path()).unwrap();
    let half = system.f_blocks * system.f_frsize / 2;
    assert!(store.usage().limit.unwrap().abs_diff(half) < 1000);
}

/// A blob of unknown size reserves space while it grows.
#[tokio::test]
async fn blob_of_unknown_size_reserves_as_it_grows() {
    let place = Place::limited(20 << 20);
    let store = place.open().await;
    let kept = put(&store, &nginx(), &bytes(0, 2 << 20)).await;
    place.clock.advance(HOUR);
    put(&store, &nginx(), &bytes(1, 17 << 20)).await;
    let content = bytes(2, 2 << 20);
    let mut staged = store.stage(&nginx().host, &digest(&content), None).await.unwrap();
    for part in content.chunks(1 << 20) {
        staged.append(part).unwrap();
    }
    staged.commit(&[nginx()]).await.unwrap();
    assert!(store.usage().bytes <= 20 << 20);
    assert!(get(&store, &nginx(), &kept).await.is_none(), "both do not fit");
}

/// A blob that may have no end evicts an eighth of the cache at most, however often its upstream sends it.
#[tokio::test]
async fn endless_blob_evicts_a_share_of_the_cache() {
    let place = Place::limited(4 << 20);
    let store = place.open().await;
    for seed in 0..16 {
        put(&store, &nginx(), &bytes(seed, 256 << 10)).await;
        place.clock.advance(HOUR);
    }
    let liar = repository("bad.test", "a").host;
    let part = bytes(1, 64 << 10);
    for _ in 0..2 {
        let mut endless = Vec::new();
        for name in [b"x", b"y"] {
            let mut staged = store.stage(&liar, &digest(name), None).await.unwrap();
            let refused = (0..64).find_map(|_| staged.append(&part).err());
            assert!(matches!(refused, Some(StageError::NoRoom)), "{refused:?}");
            endless.push(staged);
        }
        assert_eq!(store.usage().bytes, (4 << 20) / 8 * 7);
    }
}

/// The metrics count evictions by their reason.
#[tokio::test]
async fn evictions_are_counted_by_reason() {
    let place = Place::limited(2 * KIB);
    let store = place.open().await;
    for seed in 0..4 {
        put(&store, &nginx(), &bytes(seed, 1024)).await;
        place.clock.advance(HOUR);
    }
    let damaged = put(&store, &nginx(), &bytes(4, 1024)).await;
    fs::write(place.data(&damaged), "").unwrap();
    place.clock.advance(2 * HOUR);
    assert_eq!(get(&store, &nginx(), &damaged).await, None);
    expire(&store).await;
    let counted = place.metrics.encode().unwrap();
    for (reason, blobs) in [("room", 3), ("damaged", 1), ("expired", 1)] {
        let line = format!("evictions_total{{reason=\"{reason}\"}} {blobs}\n");
        assert!(counted.contains(&line), "{line}: {counted}");
        let line = format!("evicted_bytes_total{{reason=\"{reason}\"}} {}\n", blobs * 1024);
        assert!(counted.contains(&line), "{line}: {counted}");
    }
}

/// An announcement evicts nothing; bytes that come evict no more than the step that is taken for them.
#[tokio::test]
async fn announced_size_evicts_nothing_before_bytes_come() {
    const FIRST_STEP: u64 = 256 * KIB;
    let place = Place::limited(4 << 20);
    let store = place.open().await;
    for seed in 0..16 {
        put(&store, &nginx(), &bytes(seed, 256 << 10)).await;
        place.clock.advance(HOUR);
    }
    let before = store.usage().bytes;
    assert_eq!(before, 4 << 20);
    let liar = repository("bad.test", "a").host;
    let mut staged = store.stage(&liar, &digest(b"x"), Some(4 << 20)).await.unwrap();
    assert_eq!(store.usage().bytes, before);
    staged.append(b"x").unwrap();
    assert_eq!(store.usage().bytes, before - FIRST_STEP);
    staged.append(&bytes(1, 256 << 10)).unwrap();
    assert_eq!(
        store.usage().bytes,
        before - 2 * FIRST_STEP,
        "twice as much at most"
    );
    drop(staged);
    put(&store, &nginx(), &bytes(100, 512 << 10)).await;
    assert_eq!(store.usage().bytes, before, "the room is free again");
}

/// An announced size counts against the blobs of its own upstream only.
#[tokio::test]
async fn announcement_takes_no_room_from_another_upstream() {
    let place = Place::limited(10 * KIB);
    let store = place.open().await;
    let [bad, good] = ["bad.test", "good.test"].map(|host| repository(host, "a").host);
    let announced = store.stage(&bad, &digest(b"x"), Some(9 * KIB)).await.unwrap();
    let refused = store.stage(&bad, &digest(b"y"), Some(9 * KIB)).await.unwrap_err();
    assert!(matches!(refused, StageError::NoRoom));
    let content = bytes(1, 9 << 10);
    let mut staged = store
        .stage(&good, &digest(&content), Some(9 * KIB))
        .await
        .unwrap();
    staged.append(&content).unwrap();
    staged.commit(&[repository("good.test", "a")]).await.unwrap();
    drop(announced);
    assert!(store.stage(&bad, &digest(b"y"), Some(9 * KIB)).await.is_ok());
}
