//! Pinned images, which stay with all their content.

use super::*;
use mirror::config::Globs;
use mirror::config::TtlFrom::FirstFetch;

fn globs(patterns: &[&str]) -> Globs {
    Globs::new(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

/// Stores an image of one layer with a tag, and an index of it with another tag.
async fn image(store: &Store, layer: &[u8]) -> (Digest, Digest, Digest) {
    let layer = put(store, &nginx(), layer).await;
    let image = manifest(&format!(r#"{{"layers":[{{"digest":"{layer}"}}]}}"#));
    store.put_manifest(&nginx(), &image).await.unwrap();
    let index = manifest(&format!(r#"{{"manifests":[{{"digest":"{}"}}]}}"#, image.digest()));
    store.put_manifest(&nginx(), &index).await.unwrap();
    (layer, image.digest().clone(), index.digest().clone())
}

/// A pinned tag keeps its index, its image and its layers from expiry.
#[tokio::test]
async fn pinned_tag_keeps_index_image_and_layers() {
    let (place, store) = Place::opened().await;
    let (layer, image, index) = image(&store, b"kept").await;
    let other = put(&store, &nginx(), b"other").await;
    store
        .put_tag(&nginx(), &"v1".parse().unwrap(), &index)
        .await
        .unwrap();
    store.set_pinned(&globs(&["docker.io/library/nginx:v*"]));
    place.clock.advance(2 * HOUR);
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 1);
    assert_eq!(get(&store, &nginx(), &other).await, None);
    assert!(get(&store, &nginx(), &layer).await.is_some());
    for digest in [&image, &index] {
        assert!(store.manifest(&nginx(), digest).await.unwrap().is_some());
    }
    store.set_pinned(&globs(&[]));
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 3);
}

/// A pin by digest keeps a manifest or a blob.
#[tokio::test]
async fn pin_by_digest_keeps_manifest_or_blob() {
    let (place, store) = Place::opened().await;
    let (layer, image, _) = image(&store, b"by manifest").await;
    let blob = put(&store, &nginx(), b"by itself").await;
    let pins = [&image, &blob].map(|digest| format!("docker.io/library/nginx@{digest}"));
    store.set_pinned(&globs(&[&pins[0], &pins[1]]));
    place.clock.advance(2 * HOUR);
    assert_eq!(
        store.expire(Some(HOUR), FirstFetch).await.unwrap(),
        1,
        "the index goes"
    );
    assert!(get(&store, &nginx(), &layer).await.is_some());
    assert!(get(&store, &nginx(), &blob).await.is_some());
}

/// A pinned tag that moved keeps its new target and releases the old one.
#[tokio::test]
async fn moved_pinned_tag_keeps_its_new_target() {
    let (place, store) = Place::opened().await;
    store.set_pinned(&globs(&["docker.io/**/nginx:latest"]));
    let tag = "latest".parse().unwrap();
    let (old, _, before) = image(&store, b"old").await;
    store.put_tag(&nginx(), &tag, &before).await.unwrap();
    place.clock.advance(2 * HOUR);
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 0);
    let (new, _, after) = image(&store, b"new").await;
    store.put_tag(&nginx(), &tag, &after).await.unwrap();
    place.clock.advance(2 * HOUR);
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 3);
    assert_eq!(get(&store, &nginx(), &old).await, None);
    assert!(get(&store, &nginx(), &new).await.is_some());
}

/// Pinned content is not evicted, and the store reports that it has no space.
#[tokio::test]
async fn pinned_content_is_not_evicted() {
    let place = Place::limited(2048);
    let store = place.open().await;
    let pinned = put(&store, &nginx(), &bytes(0, 1024)).await;
    store.set_pinned(&globs(&[&format!("docker.io/library/nginx@{pinned}")]));
    place.clock.advance(HOUR);
    let first = put(&store, &nginx(), &bytes(1, 1024)).await;
    place.clock.advance(HOUR);
    put(&store, &nginx(), &bytes(2, 1024)).await;
    assert!(get(&store, &nginx(), &pinned).await.is_some());
    assert_eq!(get(&store, &nginx(), &first).await, None);
    let refused = try_put(&store, &nginx(), &bytes(3, 2048)).await;
    assert!(matches!(refused, Err(StageError::NoRoom)), "{refused:?}");
    assert!(get(&store, &nginx(), &pinned).await.is_some());
}

/// A blob that pinned content leaves no room for is refused before its first byte, and nothing else goes for it.
#[tokio::test]
async fn blob_that_pins_leave_no_room_for_is_refused_at_once() {
    let place = Place::limited(10_000);
    let store = place.open().await;
    let pinned = put(&store, &nginx(), &bytes(0, 6_000)).await;
    store.set_pinned(&globs(&[&format!("docker.io/library/nginx@{pinned}")]));
    let other = put(&store, &nginx(), &bytes(1, 3_000)).await;
    let large = digest(b"large");
    let refused = store.stage(&nginx().host, &large, Some(5_000)).await.unwrap_err();
    assert!(matches!(refused, StageError::NoRoom), "{refused:?}");
    assert!(get(&store, &nginx(), &other).await.is_some());
    put(&store, &nginx(), &bytes(2, 4_000)).await;
    assert_eq!(get(&store, &nginx(), &other).await, None);
}
