//! Uploads that Distribution left behind: counted against the limit, and removed when they are old.

use super::*;
use jiff::Timestamp;
use mirror::config::UploadPurging;
use mirror::store::Sweep;
use std::os::unix::fs::symlink;

const OLD: &str = "0123abcd-4567-89ab-cdef-0123456789ab";
const NEW: &str = "ffffffff-0000-1111-2222-333333333333";
const WEEK: Duration = Duration::from_hours(168);

/// Makes an upload of 1,000 bytes and more.
fn upload(place: &Place, repository: &str, uuid: &str, started: Option<Timestamp>) -> PathBuf {
    let path = place
        .v2()
        .join("repositories")
        .join(repository)
        .join("_uploads")
        .join(uuid);
    fs::create_dir_all(path.join("hashstates/sha256")).unwrap();
    fs::write(path.join("data"), [0; 1_000]).unwrap();
    fs::write(path.join("hashstates/sha256/0"), "state").unwrap();
    if let Some(started) = started {
        fs::write(path.join("startedat"), started.to_string()).unwrap();
    }
    path
}

fn eight_days_ago() -> Timestamp {
    Timestamp::now() - Duration::from_hours(8 * 24)
}

/// Old uploads are removed, and new ones are kept and counted.
#[tokio::test]
async fn old_uploads_are_removed_and_new_kept() {
    let place = Place::new();
    let layer = put(&place.open().await, &nginx(), b"layer").await;
    let old = [
        upload(&place, "library/nginx", OLD, Some(eight_days_ago())),
        upload(&place, "only/uploads", OLD, Some(eight_days_ago())),
        upload(&place, "_upstreams/quay.io/a/b", OLD, Some(eight_days_ago())),
    ];
    let new = [
        upload(&place, "library/nginx", NEW, Some(Timestamp::now() - HOUR)),
        upload(&place, "unknown/start", NEW, None),
    ];
    let store = place.open().await;
    let before = store.usage().bytes;
    let sweep = store.sweep_uploads(UploadPurging::default()).await.unwrap();
    assert_eq!((sweep.removed, sweep.spared), (3, 0));
    assert!(old.iter().all(|path| !path.exists()) && new.iter().all(|path| path.join("data").exists()));
    assert!(sweep.bytes > 2_000 && sweep.bytes < 3_000, "{sweep:?}");
    assert_eq!(store.usage().bytes, before + sweep.bytes);
    assert_eq!(get(&store, &nginx(), &layer).await.unwrap(), b"layer");
    // Those whose start is unknown are as old as their last change.
    place.clock.advance(WEEK);
    let sweep = store.sweep_uploads(UploadPurging::default()).await.unwrap();
    assert_eq!((sweep.removed, sweep.bytes), (2, 0));
}

#[tokio::test]
async fn dry_run_and_disabled_purging_remove_nothing() {
    let place = Place::new();
    let path = upload(&place, "library/nginx", OLD, Some(eight_days_ago()));
    let store = place.open().await;
    let dry = UploadPurging {
        dry_run: true,
        ..UploadPurging::default()
    };
    let disabled = UploadPurging {
        enabled: false,
        ..UploadPurging::default()
    };
    for (purging, spared) in [(dry, 1), (disabled, 0)] {
        let sweep = store.sweep_uploads(purging).await.unwrap();
        assert_eq!((sweep.removed, sweep.spared), (0, spared));
        assert!(sweep.bytes > 1_000 && path.join("data").exists());
    }
    store.set_readonly(true);
    assert_eq!(
        store
            .sweep_uploads(UploadPurging::default())
            .await
            .unwrap()
            .removed,
        0
    );
    store.set_readonly(false);
    let soon = UploadPurging {
        age: Duration::from_hours(9 * 24),
        ..UploadPurging::default()
    };
    assert_eq!(store.sweep_uploads(soon).await.unwrap().removed, 0);
}

/// Purging keeps all files but uploads, and follows no links.
#[tokio::test]
async fn purging_removes_uploads_only_follows_no_links() {
    let (place, elsewhere) = (Place::new(), tempfile::tempdir().unwrap());
    let outside = elsewhere.path().join(OLD);
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("startedat"), eight_days_ago().to_string()).unwrap();
    fs::write(outside.join("data"), [0; 5_000]).unwrap();
    let old = upload(&place, "library/nginx", OLD, Some(eight_days_ago()));
    let uploads = old.parent().unwrap().to_owned();
    symlink(&outside, old.join("link")).unwrap();
    symlink(&outside, uploads.join(NEW)).unwrap();
    let repositories = place.v2().join("repositories");
    fs::create_dir_all(repositories.join("linked")).unwrap();
    symlink(elsewhere.path(), repositories.join("linked/_uploads")).unwrap();
    symlink(elsewhere.path(), repositories.join("away")).unwrap();
    let kept = uploads.join("notes");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("startedat"), eight_days_ago().to_string()).unwrap();
    let store = place.open().await;
    let purging = UploadPurging {
        age: Duration::ZERO,
        ..UploadPurging::default()
    };
    let sweep = store.sweep_uploads(purging).await.unwrap();
    assert_eq!(sweep.removed, 1, "{sweep:?}");
    assert!(!old.exists() && kept.join("startedat").exists());
    assert!(outside.join("data").exists() && fs::symlink_metadata(uploads.join(NEW)).is_ok());
    assert!(sweep.bytes < 1_000, "{sweep:?}");
}

#[tokio::test]
async fn uploads_count_against_the_limit() {
    let place = Place::limited(2_500);
    upload(&place, "library/nginx", NEW, Some(Timestamp::now()));
    upload(&place, "library/nginx", OLD, Some(eight_days_ago()));
    let store = place.open().await;
    let disabled = UploadPurging {
        enabled: false,
        ..UploadPurging::default()
    };
    store.sweep_uploads(disabled).await.unwrap();
    let refused = try_put(&store, &nginx(), &bytes(1, 1_000)).await;
    assert!(matches!(refused, Err(StageError::NoRoom)), "{refused:?}");
    assert_eq!(
        store
            .sweep_uploads(UploadPurging::default())
            .await
            .unwrap()
            .removed,
        1
    );
    put(&store, &nginx(), &bytes(1, 1_000)).await;
}

/// The server's task sweeps at its start, and again at each interval.
#[tokio::test]
async fn uploads_are_swept_at_start_and_interval() {
    let place = Place::new();
    let first = upload(&place, "library/nginx", OLD, Some(eight_days_ago()));
    let store = place.open().await;
    let purging = UploadPurging {
        interval: Duration::from_millis(5),
        ..UploadPurging::default()
    };
    let shutdown = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(mirror::expiry::sweep_uploads(
        store.clone(),
        purging,
        shutdown.clone(),
    ));
    until(|| !first.exists()).await;
    let second = upload(&place, "other", NEW, Some(eight_days_ago()));
    until(|| !second.exists()).await;
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(store.sweep_uploads(purging).await.unwrap(), Sweep::default());
}

/// A full cache with uploads that another registry left behind keeps its content; new content displaces its own size.
#[tokio::test]
async fn uploads_left_behind_evict_no_content() {
    let place = Place::limited(4_500);
    let store = place.open().await;
    let mut digests = Vec::new();
    for seed in 0..4 {
        digests.push(put(&store, &nginx(), &bytes(seed, 1_000)).await);
        place.clock.advance(HOUR);
    }
    for uuid in [OLD, NEW] {
        upload(&place, "library/nginx", uuid, Some(Timestamp::now()));
    }
    drop(store);
    let store = place.open().await;
    let kept = UploadPurging {
        enabled: false,
        ..UploadPurging::default()
    };
    store.sweep_uploads(kept).await.unwrap();
    store
        .expire(None, mirror::config::TtlFrom::LastUse)
        .await
        .unwrap();
    assert_eq!(store.usage().blobs, 4, "nothing went at the start");
    let new = put(&store, &nginx(), &bytes(9, 1_000)).await;
    assert_eq!(get(&store, &nginx(), &digests[0]).await, None, "it made room");
    for digest in digests[1..].iter().chain([&new]) {
        assert!(get(&store, &nginx(), digest).await.is_some());
    }
}
