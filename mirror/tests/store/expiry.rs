//! The time to live.

use super::*;
use mirror::config::TtlFrom::{FirstFetch, LastUse};

/// Unused content expires with its links and tags.
#[tokio::test]
async fn unused_content_expires_with_links_and_tags() {
    let (place, store) = Place::opened().await;
    let other = repository("quay.io", "org/app");
    let layer = put(&store, &nginx(), b"layer").await;
    store.link_blob(&other, &layer).await.unwrap();
    let manifest = manifest("{}");
    store.put_manifest(&nginx(), &manifest).await.unwrap();
    let tag = "latest".parse().unwrap();
    store.put_tag(&nginx(), &tag, manifest.digest()).await.unwrap();
    place.clock.advance(2 * HOUR);
    assert_eq!(store.expire(Some(HOUR), LastUse).await.unwrap(), 2);
    assert_eq!(get(&store, &nginx(), &layer).await, None);
    assert_eq!(store.manifest(&nginx(), manifest.digest()).await.unwrap(), None);
    assert_eq!(store.tag(&nginx(), &tag).await.unwrap(), None);
    assert_eq!(place.tree(), BTreeMap::new());
    assert_eq!((store.usage().bytes, store.usage().blobs), (0, 0));
}

/// A use renews content only if the TTL counts from the last use.
#[tokio::test]
async fn use_renews_only_with_last_use() {
    for (from, stays) in [(LastUse, true), (FirstFetch, false)] {
        let (place, store, digest) = Place::with_layer().await;
        place.clock.advance(HOUR);
        get(&store, &nginx(), &digest).await.unwrap();
        place.clock.advance(HOUR / 2);
        store.expire(Some(HOUR), from).await.unwrap();
        assert_eq!(get(&store, &nginx(), &digest).await.is_some(), stays, "{from:?}");
    }
}

#[tokio::test]
async fn ages_survive_a_restart() {
    let (place, store) = Place::opened().await;
    let old = put(&store, &nginx(), b"old").await;
    place.clock.advance(2 * HOUR);
    let new = put(&store, &nginx(), b"new").await;
    drop(store);
    let store = place.open().await;
    store.expire(Some(HOUR), FirstFetch).await.unwrap();
    assert_eq!(get(&store, &nginx(), &old).await, None);
    assert!(get(&store, &nginx(), &new).await.is_some());
}

/// A shorter TTL applies to cached content, and no TTL keeps everything.
#[tokio::test]
async fn shortened_ttl_applies_to_cached_content() {
    let (place, store, digest) = Place::with_layer().await;
    place.clock.advance(24 * HOUR);
    assert_eq!(store.expire(None, LastUse).await.unwrap(), 0);
    assert_eq!(store.expire(Some(48 * HOUR), LastUse).await.unwrap(), 0);
    assert_eq!(store.expire(Some(HOUR), LastUse).await.unwrap(), 1);
    assert_eq!(get(&store, &nginx(), &digest).await, None);
}

/// An open download runs to its end, and its content expires afterwards.
#[tokio::test]
async fn open_download_delays_expiry() {
    let (place, store, digest) = Place::with_layer().await;
    let blob = store.blob(&nginx(), &digest).await.unwrap().unwrap();
    place.clock.advance(2 * HOUR);
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 0);
    assert_eq!(read(&blob), b"layer");
    drop(blob);
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 1);
}

#[tokio::test]
async fn expiry_runs_at_once_after_changes_and_flushes() {
    let (place, store, digest) = Place::with_layer().await;
    place.clock.advance(2 * HOUR);
    let config = |ttl| mirror::config::Cache {
        ttl: Some(ttl),
        ttl_from: LastUse,
        tag_ttl: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        stale_if_denied: false,
        max_size: None,
        pinned: mirror::config::Globs::default(),
        offline: false,
        readonly: false,
        scrub_period: None,
    };
    let (send, receive) = tokio::sync::watch::channel(config(3 * HOUR));
    let shutdown = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(mirror::expiry::run(store.clone(), receive, shutdown.clone()));
    let state = place.path().join("scheduler-state.json");
    until(|| fs::read_to_string(&state).is_ok_and(|text| text.contains(digest.as_str()))).await;
    send.send(config(HOUR)).unwrap();
    until(|| !place.data(&digest).exists()).await;
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(fs::read_to_string(&state).unwrap(), "{}");
}

#[tokio::test]
async fn use_alone_rewrites_expiry_state_hourly() {
    let (place, store, digest) = Place::with_layer().await;
    store.expire(Some(24 * HOUR), LastUse).await.unwrap();
    store.flush_if_due().await;
    let state = || fs::read_to_string(place.path().join("scheduler-state.json")).unwrap();
    let use_it = async || {
        place.clock.advance(Duration::from_mins(2));
        get(&store, &nginx(), &digest).await.unwrap();
    };
    let first = state();
    use_it().await;
    store.flush_if_due().await;
    assert_eq!(state(), first);
    store.flush().await;
    let second = state();
    assert_ne!(second, first);
    place.clock.advance(HOUR);
    use_it().await;
    store.flush_if_due().await;
    assert_ne!(state(), second);
}

#[tokio::test]
async fn use_never_rewrites_expiry_state_from_first_fetch() {
    let (place, store, digest) = Place::with_layer().await;
    store.expire(Some(24 * HOUR), FirstFetch).await.unwrap();
    store.flush().await;
    let path = place.path().join("scheduler-state.json");
    fs::remove_file(&path).unwrap();
    place.clock.advance(2 * HOUR);
    get(&store, &nginx(), &digest).await.unwrap();
    store.flush().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn clock_years_ahead_neither_drops_nor_keeps_content() {
    let (year, week) = (8_760 * HOUR, 168 * HOUR);
    let (place, store) = Place::opened().await;
    let old = put(&store, &nginx(), b"old").await;
    let expire = async |from| store.expire(Some(week), from).await.unwrap();
    assert_eq!(expire(LastUse).await, 0);
    place.clock.set_ahead(10 * year);
    assert_eq!(expire(LastUse).await, 0);
    place.clock.advance(HOUR / 2);
    let new = put(&store, &nginx(), b"new").await;
    get(&store, &nginx(), &old).await.unwrap();
    assert_eq!(expire(LastUse).await, 0);
    place.clock.set_back(10 * year);
    assert_eq!(expire(LastUse).await, 0);
    place.clock.advance(2 * HOUR);
    assert_eq!(expire(LastUse).await, 0);
    place.clock.advance(week + HOUR);
    assert_eq!(expire(LastUse).await, 2);
    for digest in [old, new] {
        assert_eq!(get(&store, &nginx(), &digest).await, None);
    }
}

#[tokio::test]
async fn clock_set_ahead_expires_content_after_an_hour() {
    let (place, store) = Place::opened().await;
    put(&store, &nginx(), b"layer").await;
    let expire = async || store.expire(Some(168 * HOUR), LastUse).await.unwrap();
    assert_eq!(expire().await, 0);
    place.clock.set_ahead(200 * HOUR);
    assert_eq!(expire().await, 0);
    place.clock.advance(HOUR);
    assert_eq!(expire().await, 1);
}
