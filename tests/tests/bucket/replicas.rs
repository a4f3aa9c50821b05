//! Replicas that share a bucket: what they upload together.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use http::Method;
use testbed::bucket::{Fault, SECRET_KEY};
use testbed::wait;

use crate::place::{LAYERS, LIMIT, Mirror, Place, until_stored};

/// Uploads pause after failures, twice as long after each one.
const LONGEST_PAUSE: Duration = Duration::from_mins(6);
/// The link that holds the digest of the tag.
const CURRENT: &str = "docker/registry/v2/repositories/library/app/_manifests/tags/1/current/link";
const KEEP: &str = "cache: {maxsize: 1Gi}";

fn blobs(place: &Place) -> usize {
    std::fs::read_dir(place.image.path().join("blobs/sha256"))
        .expect("a directory")
        .count()
}

/// Starts three replicas that know each other.
async fn replicas(place: &Place) -> [Mirror; 3] {
    let mirrors = place.replicas::<3>(&place.store.keys(), KEEP).await;
    for mirror in &mirrors {
        let know_each_other = || async { (mirror.serving_peers().await == 2).then_some(()) };
        wait::until("replicas that serve each other", LIMIT, know_each_other)
            .await
            .expect("members");
    }
    mirrors
}

/// Pulls the image at all replicas at once, and waits for their uploads.
async fn pull_at_all(place: &Place, mirrors: &[Mirror; 3], into: &str) {
    let pulls = mirrors.iter().enumerate().map(|(number, mirror)| async move {
        place.pull(mirror, &format!("{into}-{number}")).await;
    });
    join_all(pulls).await;
    for mirror in mirrors {
        until_stored(place, blobs(place), mirror).await;
    }
}

/// Returns how often each object was written whole; a part of a larger one does not count.
fn writes(place: &Place) -> BTreeMap<String, usize> {
    let mut writes = BTreeMap::new();
    for seen in place.requests(|seen| match seen.method {
        Method::PUT => seen.query.is_empty() || seen.query.starts_with("x-id"),
        Method::POST => seen.query.contains("uploadId"),
        _ => false,
    }) {
        *writes.entry(seen.path).or_default() += 1;
    }
    writes
}

/// Content and links that all replicas get at a time are uploaded once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_upload_content_once() {
    let place = Place::new(&LAYERS).await;
    let mirrors = replicas(&place).await;
    pull_at_all(&place, &mirrors, "pulled").await;
    assert_eq!(place.check_objects(), blobs(&place));
    let mut written = writes(&place);
    written.retain(|path, _| !path.ends_with("/owner"));
    let twice = written.values().filter(|count| **count > 1).count();
    // A replica that a busy machine delays is not asked, and uploads on its own.
    assert!(twice * 4 <= written.len(), "{written:#?}");
}

/// Content that replicas with empty local tiers get from the bucket is not uploaded again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_upload_nothing_of_the_bucket() {
    let place = Place::new(&LAYERS).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled").await;
    until_stored(&place, blobs(&place), &first).await;
    first.stop().await;
    let mirrors = replicas(&place).await;
    place.store.forget();
    pull_at_all(&place, &mirrors, "pulled-again").await;
    let writes = place.requests(|seen| seen.method != Method::GET);
    assert_eq!(writes, []);
}

/// The bucket has another digest for a tag than a replica recorded: the tag moved there and back, unseen by that replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tag_that_moved_back_is_written_again() {
    let place = Place::new(&LAYERS).await;
    let mirrors = replicas(&place).await;
    pull_at_all(&place, &mirrors, "pulled").await;
    let [_one, _other, last] = mirrors;
    last.stop().await;
    let scratch = place.scratch.path();
    std::fs::remove_dir_all(scratch.join("replica-2")).expect("a local tier");
    let link = place.store.objects().join(CURRENT);
    let digest = std::fs::read_to_string(&link).expect("a link");
    std::fs::write(&link, format!("sha256:{}", "a".repeat(64))).expect("a link");
    let last = Mirror::start(&scratch.join("replica-2.yml")).await;
    place.pull(&last, "pulled-again").await;
    let is_restored = || async { (std::fs::read_to_string(&link).ok()? == digest).then_some(()) };
    wait::until("link of the tag", LIMIT, is_restored)
        .await
        .expect("an upload");
}

/// Content that a replica did not upload before it ended is uploaded by another one that has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_lost_replicas_are_made_by_another() {
    let place = Place::new(&LAYERS).await;
    let [one, other, last] = replicas(&place).await;
    place.store.fail(Some(Fault::ReadOnly));
    for (number, mirror) in [&one, &other, &last].into_iter().enumerate() {
        place.pull(mirror, &format!("pulled-{number}")).await;
    }
    tokio::join!(one.stop(), other.stop());
    assert_eq!(place.check_objects(), 0);
    place.store.fail(None);
    let uploaded = || async { (last.status().await["pendingUploads"] == 0).then_some(()) };
    wait::until("uploads of the last replica", LONGEST_PAUSE, uploaded)
        .await
        .expect("uploads");
    assert_eq!(place.check_objects(), blobs(&place));
}

/// A replica with a wrong key has nothing to upload where another replica uploaded the same, and reports no failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_others_need_no_access() {
    let place = Place::new(&LAYERS).await;
    let [one, other] = place.replicas::<2>(&place.store.keys(), KEEP).await;
    other.stop().await;
    let path = place.scratch.path().join("replica-1.yml");
    let text = std::fs::read_to_string(&path).expect("a file");
    std::fs::write(&path, text.replace(SECRET_KEY, "anothersecret")).expect("a file");
    let other = Mirror::start(&path).await;
    for mirror in [&one, &other] {
        let know_each_other = || async { (mirror.serving_peers().await == 1).then_some(()) };
        wait::until("replicas that serve each other", LIMIT, know_each_other)
            .await
            .expect("members");
    }
    let digest = place.image.digest("1").expect("a digest");
    let name = format!("library/app@{digest}");
    one.pull(&name, &place.scratch.path().join("pulled-0")).await;
    until_stored(&place, blobs(&place), &one).await;
    other.pull(&name, &place.scratch.path().join("pulled-1")).await;
    let is_done = || async {
        let status = other.status().await;
        (status["pendingUploads"] == 0).then_some(status)
    };
    let status = wait::until("end of the uploads", LONGEST_PAUSE, is_done)
        .await
        .expect("nothing to upload");
    assert!(
        status["uploadError"].as_str().is_none_or(str::is_empty),
        "{status}"
    );
}
