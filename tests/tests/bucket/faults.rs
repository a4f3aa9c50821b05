//! A bucket that fails: no pull fails, and the server stays ready.

use std::time::{Duration, Instant};

use test_case::test_case;
use testbed::bucket::Fault;
use testbed::image::{Layout, Random};
use testbed::wait;

use crate::place::{LAYERS, LIMIT, Place, until_stored};

const SMALL: [usize; 2] = [300_000, 10];

fn blobs(place: &Place) -> usize {
    std::fs::read_dir(place.image.path().join("blobs/sha256"))
        .expect("a directory")
        .count()
}

/// A pull succeeds from the registry while the bucket fails. It waits for the bucket once, and the next one not at all.
#[test_case(Fault::Hang, "Unreachable"; "it hangs")]
#[test_case(Fault::SlowDown, "Unreachable"; "it limits requests")]
#[test_case(Fault::Denied, "Denied"; "it denies access")]
#[test_case(Fault::Skewed, "Denied"; "its clock is off")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_bucket_fails_no_pull(fault: Fault, state: &str) {
    let place = Place::new(&SMALL).await;
    let plain = place.mirror("plain").await;
    let began = Instant::now();
    place.pull(&plain, "pulled-0").await;
    let usual = began.elapsed();
    place.store.fail(Some(fault));
    let mirror = place.mirror("tier").await;
    let began = Instant::now();
    place.pull(&mirror, "pulled-1").await;
    let took = began.elapsed();
    assert!(
        took < usual * 3 + Duration::from_millis(1_500),
        "{took:?}, usually {usual:?}"
    );
    assert!(mirror.is_ready().await);
    assert_eq!(mirror.status().await["state"], state);
    place.store.forget();
    let (status, _) = mirror.get("/v2/library/app/manifests/none").await;
    assert_eq!(status, 404);
    assert_eq!(place.store.seen(), [], "a failing bucket is skipped");
}

/// Bytes of the bucket that are wrong or cut are a miss: the registry is asked, and no client gets them.
#[test_case(Fault::Wrong; "wrong bytes")]
#[test_case(Fault::Cut; "cut bodies")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bucket_body_is_a_miss(fault: Fault) {
    let place = Place::new(&SMALL).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place), &first).await;
    first.stop().await;
    place.store.fail(Some(fault));
    let second = place.mirror("second").await;
    place.pull(&second, "pulled-2").await;
}

/// An object of the bucket with wrong bytes is replaced once the registry sent the right ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_object_is_replaced() {
    let place = Place::new(&SMALL).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place), &first).await;
    first.stop().await;
    let blobs = place.store.objects().join("docker/registry/v2/blobs/sha256");
    for shard in std::fs::read_dir(&blobs).expect("a directory") {
        for blob in std::fs::read_dir(shard.expect("an entry").path()).expect("a directory") {
            let data = blob.expect("an entry").path().join("data");
            let mut bytes = std::fs::read(&data).expect("an object");
            bytes[0] ^= 1;
            std::fs::write(&data, bytes).expect("a write");
        }
    }
    let second = place.mirror("second").await;
    place.pull(&second, "pulled-2").await;
    let replaced = || async { (second.status().await["pendingUploads"] == 0).then_some(()) };
    wait::until("end of the uploads", LIMIT, replaced)
        .await
        .expect("they end");
    place.check_objects();
}

/// A store whose answers are too long for an upload fails the upload, and the next attempt succeeds once it answers
/// rightly.
#[test_case(Fault::LongId; "the id of an upload")]
#[test_case(Fault::LongTag; "the tag of a part")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlong_answer_fails_one_upload(fault: Fault) {
    let place = Place::new(&LAYERS).await;
    place.store.fail(Some(fault));
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled").await;
    let failed = || async { mirror.status().await["uploadError"].as_str().map(str::to_owned) };
    let error = wait::until("error of an upload", LIMIT, failed)
        .await
        .expect("it is reported");
    assert!(error.len() < 300, "{error}");
    place.store.fail(None);
    until_stored(&place, blobs(&place), &mirror).await;
    assert_eq!(place.check_objects(), blobs(&place));
}

/// No message repeats what a store repeats of the credentials of a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_a_store_repeats_are_masked() {
    let place = Place::new(&SMALL).await;
    place.store.fail(Some(Fault::Echo));
    let keys = format!("{}, sessiontoken: hunter2-session-token", place.store.keys());
    let mirror = place.mirror_with("tier", &keys, "").await;
    place.pull(&mirror, "pulled").await;
    let failed = || async { mirror.status().await["uploadError"].as_str().map(drop) };
    wait::until("error of an upload", LIMIT, failed)
        .await
        .expect("it is reported");
    let status = mirror.status().await.to_string();
    assert!(status.contains("echo"), "{status}");
    for secret in ["hunter2", "Signature=", "AWS4-HMAC"] {
        assert!(!status.contains(secret), "{status}");
    }
}

/// Lists the tags of a bucket with a fault while the registry is down; returns them with the number of listings.
async fn tags_despite(fault: Fault) -> (Vec<String>, usize) {
    let mut place = Place::new(&SMALL).await;
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled").await;
    until_stored(&place, blobs(&place), &mirror).await;
    place.upstream.go_down();
    place.store.fail(Some(fault));
    place.store.forget();
    let (status, body) = mirror.get("/v2/library/app/tags/list").await;
    let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(status, 200);
    let tags = serde_json::from_value(body["tags"].clone()).expect("tags");
    let listings = place.requests(|seen| seen.query.contains("list-type=2"));
    (tags, listings.len())
}

/// Pages of a listing that do not end, or repeat themselves, end the listing.
#[test_case(Fault::EndlessPage; "a page without an end")]
#[test_case(Fault::SamePage; "the same page")]
#[test_case(Fault::LongToken; "a token that fits no URL")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_listing_of_tags_ends(fault: Fault) {
    let (tags, listings) = tags_despite(fault).await;
    assert_eq!(tags, ["1"]);
    assert!((1..=8).contains(&listings), "{listings}");
}

/// A store that sends its tags one by one, without an end, costs no more requests than a listing may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_one_by_one_is_bounded() {
    let (tags, listings) = tags_despite(Fault::OneByOne).await;
    assert!(tags.iter().any(|tag| tag == "1"), "{tags:?}");
    assert!((2..=200).contains(&listings), "{listings}");
}

/// A bucket that denies listings alone is still read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_listing_stops_no_reads() {
    let mut place = Place::new(&SMALL).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place), &first).await;
    place.upstream.go_down();
    place.store.fail(Some(Fault::NoLists));
    let second = place.mirror("second").await;
    place.store.forget();
    for _ in 0..2 {
        second.get("/v2/library/app/tags/list").await;
    }
    let listings = place.requests(|seen| seen.query.contains("list-type=2"));
    assert_eq!(listings.len(), 2, "tried twice, and then not for a while");
    place.pull(&second, "pulled-2").await;
    assert_eq!(second.status().await["state"], "Reachable");
}

/// Pushes another image to the registry, and returns it.
async fn push_other(place: &Place) -> Layout {
    let other = Random::new(20, &SMALL)
        .write(&place.scratch.path().join("other"), "1")
        .expect("an image");
    place.upstream.push(&other, "1", OTHER).await.expect("a push");
    other
}

const OTHER: &str = "library/other:1";

/// A bucket that accepts no writes serves its content while uploads to it fail.
#[test_case(Fault::ReadOnly; "read only")]
#[test_case(Fault::Full; "full")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_uploads_stop_no_reads(fault: Fault) {
    let mut place = Place::new(&SMALL).await;
    push_other(&place).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place), &first).await;
    first.stop().await;
    place.store.fail(Some(fault));
    let second = place.mirror("second").await;
    second
        .pull(OTHER, &place.scratch.path().join("pulled-other"))
        .await;
    let failed = || async { second.status().await["uploadError"].as_str().map(drop) };
    wait::until("error of an upload", LIMIT, failed)
        .await
        .expect("it is reported");
    place.upstream.go_down();
    place.pull(&second, "pulled-2").await;
}

/// Content reaches a bucket that denies reads alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_reads_stop_no_uploads() {
    let place = Place::new(&SMALL).await;
    let other = push_other(&place).await;
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled").await;
    until_stored(&place, blobs(&place), &mirror).await;
    place.store.fail(Some(Fault::WriteOnly));
    mirror
        .pull(OTHER, &place.scratch.path().join("pulled-other"))
        .await;
    assert_eq!(mirror.status().await["state"], "Denied");
    let count = std::fs::read_dir(other.path().join("blobs/sha256"))
        .expect("a directory")
        .count();
    until_stored(&place, blobs(&place) + count, &mirror).await;
    assert_eq!(place.check_objects(), blobs(&place) + count);
}

/// A new bucket that denies reads gets no upload, as its owner is unknown; it gets all of them later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_without_reads_catches_up() {
    let place = Place::new(&SMALL).await;
    place.store.fail(Some(Fault::WriteOnly));
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled").await;
    let failed = || async { mirror.status().await["uploadError"].as_str().map(str::to_owned) };
    let error = wait::until("error of an upload", LIMIT, failed)
        .await
        .expect("it is reported");
    assert!(error.contains("denied access"), "{error}");
    place.store.fail(None);
    until_stored(&place, blobs(&place), &mirror).await;
    assert_eq!(place.check_objects(), blobs(&place));
}

/// A bucket that accepts no writes is still read, and gets what it lacks when it accepts them again.
#[test_case(Fault::ReadOnly; "read only")]
#[test_case(Fault::Full; "full")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_without_writes_catches_up(fault: Fault) {
    let place = Place::new(&SMALL).await;
    place.store.fail(Some(fault));
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled").await;
    let failed = || async { mirror.status().await["uploadError"].as_str().map(drop) };
    wait::until("error of an upload", LIMIT, failed)
        .await
        .expect("it is reported");
    assert!(mirror.is_ready().await);
    assert_eq!(place.check_objects(), 0);
    place.store.fail(None);
    until_stored(&place, blobs(&place), &mirror).await;
    assert_eq!(place.check_objects(), blobs(&place));
}
