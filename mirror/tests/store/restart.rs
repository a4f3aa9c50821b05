//! The state that a restart keeps, and that the store finds again after the loss of its index.

use super::*;
use mirror::config::TtlFrom::FirstFetch;

async fn filled(place: &Place) -> (Digest, Manifest) {
    let store = place.open().await;
    let layer = put(&store, &nginx(), b"layer").await;
    let manifest = manifest(r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#);
    store.put_manifest(&nginx(), &manifest).await.unwrap();
    let tag = "latest".parse().unwrap();
    store.put_tag(&nginx(), &tag, manifest.digest()).await.unwrap();
    store.flush().await;
    (layer, manifest)
}

async fn assert_serves(store: &Store, layer: &Digest, manifest: &Manifest) {
    assert_eq!(get(store, &nginx(), layer).await.unwrap(), b"layer");
    assert_eq!(
        store
            .manifest(&nginx(), manifest.digest())
            .await
            .unwrap()
            .as_ref(),
        Some(manifest)
    );
    let tag = store
        .tag(&nginx(), &"latest".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(tag.digest, *manifest.digest());
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let place = Place::new();
    let (layer, manifest) = filled(&place).await;
    let store = place.open().await;
    assert_serves(&store, &layer, &manifest).await;
    let usage = store.usage();
    assert_eq!((usage.blobs, usage.bytes), (2, 5 + manifest.bytes().len() as u64));
}

/// A lost index is rebuilt from the files, with ages from then on and with their links.
#[tokio::test]
async fn lost_index_is_rebuilt_from_files() {
    let place = Place::new();
    let (layer, manifest) = filled(&place).await;
    place.clock.advance(2 * HOUR);
    fs::remove_file(place.path().join("_mirror/index.redb")).unwrap();
    let store = place.open().await;
    assert_eq!(store.usage().blobs, 2);
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 0);
    assert_serves(&store, &layer, &manifest).await;
    place.clock.advance(2 * HOUR);
    drop(store);
    let store = place.open().await;
    assert_eq!(store.expire(Some(HOUR), FirstFetch).await.unwrap(), 2);
    assert_eq!(place.tree(), BTreeMap::new());
}

#[tokio::test]
async fn a_damaged_index_is_rebuilt() {
    for damage in [&b"not a database"[..], b""] {
        let place = Place::new();
        let (layer, manifest) = filled(&place).await;
        fs::write(place.path().join("_mirror/index.redb"), damage).unwrap();
        assert_serves(&place.open().await, &layer, &manifest).await;
    }
}

/// An index with damaged pages costs no content.
#[tokio::test]
async fn damaged_index_pages_cost_no_content() {
    let place = Place::new();
    let (layer, manifest) = filled(&place).await;
    let path = place.path().join("_mirror/index.redb");
    let mut index = fs::read(&path).unwrap();
    for byte in index.iter_mut().skip(8192) {
        *byte ^= 0x5a;
    }
    fs::write(&path, index).unwrap();
    let store = place.open().await;
    // The first questions may meet the damage; then the server creates a new index.
    let mut served = None;
    for _ in 0..5 {
        store.flush().await;
        until(|| store.is_settled()).await;
        if let Ok(Some(blob)) = store.blob(&nginx(), &layer).await {
            served = Some(read(&blob));
            break;
        }
    }
    assert_eq!(served.unwrap(), b"layer");
    assert_serves(&store, &layer, &manifest).await;
}

/// The leftovers of unfinished blobs are removed at the start.
#[tokio::test]
async fn unfinished_blobs_are_swept_at_start() {
    let (place, store) = Place::opened().await;
    let staged = store.stage(&nginx().host, &digest(b"x"), Some(1)).await.unwrap();
    std::mem::forget(staged);
    assert_eq!(place.scratch(), 1);
    let copy = Place::new();
    fs::create_dir_all(copy.path().join("_mirror/scratch")).unwrap();
    fs::write(copy.path().join("_mirror/scratch/0"), "half").unwrap();
    let _store = copy.open().await;
    assert_eq!(copy.scratch(), 0);
}

/// Content expires at the times in the scheduler state of Distribution.
#[tokio::test]
async fn expiry_continues_from_distributions_state() {
    let place = Place::new();
    let (layer, manifest) = filled(&place).await;
    fs::remove_dir_all(place.path().join("_mirror")).unwrap();
    let state = |hours: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours)).to_string();
    let entry = |digest: &Digest, kind: u8, hours| {
        let key = format!("library/nginx@{digest}");
        format!(
            r#""{key}":{{"Key":"{key}","ExpiryData":"{}","EntryType":{kind}}}"#,
            state(hours)
        )
    };
    let (soon, late) = (entry(&layer, 0, 1), entry(manifest.digest(), 1, 100));
    fs::write(
        place.path().join("scheduler-state.json"),
        format!("{{{soon},{late}}}"),
    )
    .unwrap();
    let store = place.open().await;
    let week = 168 * HOUR;
    assert_eq!(store.expire(Some(week), FirstFetch).await.unwrap(), 0);
    place.clock.advance(2 * HOUR);
    assert_eq!(store.expire(Some(week), FirstFetch).await.unwrap(), 1);
    assert_eq!(get(&store, &nginx(), &layer).await, None);
    place.clock.advance(100 * HOUR);
    assert_eq!(store.expire(Some(week), FirstFetch).await.unwrap(), 1);
}

/// Changes that a different registry made while the store was closed are read from the files.
#[tokio::test]
async fn offline_changes_are_read_from_files() {
    let place = Place::new();
    let (layer, manifest) = filled(&place).await;
    fs::remove_file(place.data(&layer)).unwrap();
    let new = digest(b"new");
    fs::create_dir_all(place.data(&new).parent().unwrap()).unwrap();
    fs::write(place.data(&new), "new").unwrap();
    fs::write(place.path().join("scheduler-state.json"), "{}").unwrap();
    let store = place.open().await;
    assert_eq!(store.usage().bytes, 3 + manifest.bytes().len() as u64);
    assert_eq!(get(&store, &nginx(), &layer).await, None);
}
