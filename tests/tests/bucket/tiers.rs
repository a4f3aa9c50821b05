//! The local tier and the bucket: what is asked of which.

use http::Method;
use testbed::bucket::{ACCESS_KEY, SECRET_KEY};
use testbed::image::{Layout, Random};
use testbed::wait;

use crate::place::{LAYERS, LIMIT, Mirror, NAME, Place, until_stored};

/// The blobs of an image with all its platforms.
fn blobs(layout: &Layout) -> usize {
    let directory = layout.path().join("blobs/sha256");
    std::fs::read_dir(directory).expect("a directory").count()
}

/// A mirror with an empty local tier pulls from the bucket while the registry is down: one GET for each piece of
/// content, no HEAD, no LIST; a hit of the local tier asks the bucket for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_serves_an_empty_local_tier() {
    let mut place = Place::new(&LAYERS).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    let count = blobs(&place.image);
    until_stored(&place, count, &first).await;
    assert_eq!(place.check_objects(), count);
    place.upstream.go_down();
    let second = place.mirror("second").await;
    place.store.forget();
    place.pull(&second, "pulled-2").await;
    assert_eq!(place.reads(), (count, 0, 0), "{:#?}", place.store.seen());
    let writes = place.requests(|seen| seen.method != Method::GET);
    assert_eq!(writes, [], "what came from the bucket is not uploaded");
    place.store.forget();
    place.pull(&second, "pulled-3").await;
    assert_eq!(place.store.seen(), [], "a hit asks the bucket for nothing");
}

/// Bytes that come from the bucket are counted by that source, and so are those that pass by a local tier without room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_the_bucket_are_counted() {
    let mut place = Place::new(&LAYERS).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place.image), &first).await;
    place.upstream.go_down();
    let content = f64::from(u32::try_from(LAYERS.iter().sum::<usize>()).expect("a size"));
    let keys = place.store.keys();
    for (tier, size) in [("second", "1Gi"), ("small", "8Mi")] {
        let cache = format!("cache: {{maxsize: {size}}}");
        let mirror = place.mirror_with(tier, &keys, &cache).await;
        place.pull(&mirror, &format!("pulled-{tier}")).await;
        let labels = ["source=\"bucket\""];
        let counted = || async {
            let served = mirror.metric("registry_mirror_served_bytes_total", &labels).await;
            (served >= content).then_some(())
        };
        wait::until("bytes of the bucket", LIMIT, counted)
            .await
            .expect("they are counted");
        for source in ["upstream", "coalesced", "peer"] {
            let label = format!("source=\"{source}\"");
            let served = mirror
                .metric("registry_mirror_served_bytes_total", &[&label])
                .await;
            assert!(served < 1.0, "{source}");
        }
    }
}

/// Returns the digests of the blobs that a repository has links to in the bucket.
fn layers(place: &Place, name: &str) -> Vec<String> {
    let directory = place
        .store
        .objects()
        .join("docker/registry/v2/repositories/library");
    let links = std::fs::read_dir(directory.join(name).join("_layers/sha256")).expect("links");
    links
        .map(|entry| {
            format!(
                "sha256:{}",
                entry.expect("an entry").file_name().to_string_lossy()
            )
        })
        .collect()
}

/// Many clients that want one blob of the bucket cost one GET.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn herd_costs_one_get_of_the_bucket() {
    let mut place = Place::new(&[2_000_000, 300_000]).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled").await;
    until_stored(&place, blobs(&place.image), &first).await;
    place.upstream.go_down();
    let second = place.mirror("second").await;
    for digest in layers(&place, "app") {
        place.store.forget();
        let path = format!("/v2/{}/blobs/{digest}", "library/app");
        let pulls = (0..96).map(|_| second.get(&path));
        for (status, body) in futures::future::join_all(pulls).await {
            assert_eq!((status, sha256(&body)), (200, digest.clone()));
        }
        assert_eq!(gets_of(&place, &digest), 1, "{:#?}", place.store.seen());
    }
}

/// Returns the number of GETs of a blob, of its links or of its content.
fn gets_of(place: &Place, digest: &str) -> usize {
    let hex = digest.trim_start_matches("sha256:");
    place
        .requests(|seen| seen.method == Method::GET && seen.path.contains(hex))
        .len()
}

/// A blob of the bucket costs one GET for the repository that it was uploaded for, and two for another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blob_of_the_bucket_costs_one_get() {
    let mut place = Place::new(&LAYERS).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled").await;
    until_stored(&place, blobs(&place.image), &first).await;
    place
        .upstream
        .push(&place.image, "1", "library/other:1")
        .await
        .expect("a push");
    let digests = layers(&place, "app");
    for digest in &digests {
        let (status, _) = first.get(&format!("/v2/library/other/blobs/{digest}")).await;
        assert_eq!(status, 200);
    }
    until_stored(&place, blobs(&place.image), &first).await;
    place.upstream.go_down();
    for (name, gets) in [("app", 1), ("other", 2)] {
        let mirror = place.mirror(&format!("tier-of-{name}")).await;
        place.store.forget();
        for digest in &digests {
            let (status, body) = mirror.get(&format!("/v2/library/{name}/blobs/{digest}")).await;
            assert_eq!((status, sha256(&body)), (200, digest.clone()));
            assert_eq!(gets_of(&place, digest), gets, "{:#?}", place.store.seen());
        }
    }
}

/// A blob that nothing has costs the bucket three requests: a GET, its content and its link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_blob_costs_three_requests() {
    let place = Place::new(&[300_000]).await;
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled").await;
    until_stored(&place, blobs(&place.image), &mirror).await;
    for digest in layers(&place, "app") {
        let hex = digest.trim_start_matches("sha256:").to_owned();
        let requests = place.requests(|seen| seen.path.contains(&hex));
        let methods: Vec<_> = requests.into_iter().map(|seen| seen.method).collect();
        assert_eq!(methods, [Method::GET, Method::PUT, Method::PUT]);
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// Content of the bucket is served only in a repository that has a link to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_content_needs_a_link() {
    let place = Place::new(&[300_000]).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled").await;
    until_stored(&place, blobs(&place.image), &first).await;
    let second = place.mirror("second").await;
    place.store.forget();
    for digest in layers(&place, "app") {
        let (status, _) = second.get(&format!("/v2/library/other/blobs/{digest}")).await;
        assert_eq!(status, 404);
        assert_eq!(gets_of(&place, &digest), 2, "of the content, and of the link");
    }
}

/// An offline mirror serves what the bucket has: manifests by tag and digest, blobs, and the size of a blob.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offline_mirror_serves_the_bucket() {
    let place = Place::new(&LAYERS).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place.image), &first).await;
    place.upstream.reset_counts();
    let keys = place.store.keys();
    let second = place
        .mirror_with("second", &keys, "cache: {maxsize: 1Gi, offline: true}")
        .await;
    for digest in layers(&place, "app") {
        let url = format!("http://{}/v2/library/app/blobs/{digest}", second.address);
        let answer = reqwest::Client::new().head(url).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("content-length"));
    }
    assert_eq!(place.reads().1, 0, "no HEAD of the bucket");
    place.pull(&second, "pulled-2").await;
    assert_eq!(place.upstream.counts().requests(), 0);
    let (status, _) = second.get("/v2/library/none/manifests/1").await;
    assert_eq!(status, 503);
}

/// The tags of the bucket are listed while the registry is not asked or is down, and never by another request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_tags_are_listed_without_registry() {
    let mut place = Place::new(&LAYERS).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place.image), &first).await;
    let tags = async |mirror: &Mirror| {
        let (status, body) = mirror.get("/v2/library/app/tags/list").await;
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        (status, body["tags"].clone())
    };
    let lists = |place: &Place| place.requests(|seen| seen.query.contains("list-type")).len();
    place.store.forget();
    let (status, listed) = tags(&first).await;
    assert_eq!((status, lists(&place)), (200, 0), "{:#?}", place.store.seen());
    let keys = place.store.keys();
    let offline = "cache: {maxsize: 1Gi, offline: true}";
    let second = place.mirror_with("second", &keys, offline).await;
    assert_eq!(tags(&second).await, (200, listed.clone()));
    assert_eq!(lists(&place), 1);
    let third = place.mirror("third").await;
    place.upstream.go_down();
    assert_eq!(tags(&third).await, (200, listed));
    assert_eq!(lists(&place), 2);
}

/// A tag of the bucket is never fresh: the registry confirms it, and another digest of the registry wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tag_of_the_bucket_is_revalidated() {
    let place = Place::new(&[1_000]).await;
    let first = place.mirror("first").await;
    place.pull(&first, "pulled-1").await;
    until_stored(&place, blobs(&place.image), &first).await;
    let moved = Random::new(8, &[2_000])
        .write(&place.scratch.path().join("moved"), "1")
        .expect("an image");
    place.upstream.push(&moved, "1", NAME).await.expect("a push");
    let second = place.mirror("second").await;
    let into = place.scratch.path().join("pulled-2");
    second.pull(NAME, &into).await;
    assert_eq!(
        Layout::open(&into).expect("a layout").digest("1"),
        moved.digest("1")
    );
    // The bucket follows.
    let digest = moved.digest("1").expect("a digest").to_owned();
    let link = "docker/registry/v2/repositories/library/app/_manifests/tags/1/current/link";
    let link = place.store.objects().join(link);
    let follows = || async { (std::fs::read_to_string(&link).ok()? == digest).then_some(()) };
    wait::until("tag in the bucket that moved", LIMIT, follows)
        .await
        .expect("it follows");
}

/// Content of the local tier is uploaded to another bucket or prefix, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_prefix_gets_all_content() {
    let place = Place::new(&[300_000]).await;
    let keys = |prefix: &str| format!("rootdirectory: {prefix}, {}", place.store.keys());
    let stored = |prefix: &str| {
        let tags = place
            .store
            .objects()
            .join(prefix)
            .join("docker/registry/v2/repositories/library/app/_manifests/tags");
        tags.join("1/current/link").exists()
    };
    for prefix in ["one", "two"] {
        let mirror = place
            .mirror_with("tier", &keys(prefix), "cache: {maxsize: 1Gi}")
            .await;
        place.pull(&mirror, &format!("pulled-{prefix}")).await;
        let uploaded = || async {
            let pending = mirror.status().await["pendingUploads"] == 0;
            (pending && stored(prefix)).then_some(())
        };
        wait::until("content below the prefix", LIMIT, uploaded)
            .await
            .expect("uploads");
        mirror.stop().await;
    }
}

/// New credentials in the file are used without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_credentials_rotate_live() {
    let mut place = Place::new(&[300_000]).await;
    let file = |secret: &str| format!("accesskey: {ACCESS_KEY}\nsecretkey: {secret}\n");
    let path = place.scratch.write("keys", file(SECRET_KEY)).expect("a file");
    let keys = format!(
        "credentialsfile: '{}', {}",
        path.display(),
        place.store.keys_without_credentials()
    );
    let mirror = place.mirror_with("tier", &keys, "cache: {maxsize: 1Gi}").await;
    place
        .store
        .restart_with("anothersecret")
        .await
        .expect("a restart");
    place.pull(&mirror, "pulled").await;
    let denied = || async { (mirror.status().await["state"] == "Denied").then_some(()) };
    wait::until("denial", LIMIT, denied)
        .await
        .expect("the old key is denied");
    place
        .scratch
        .write("keys", file("anothersecret"))
        .expect("a file");
    let renewed = || async { (mirror.status().await["state"] == "Reachable").then_some(()) };
    wait::until("renewed credentials", LIMIT, renewed)
        .await
        .expect("the new key is used");
    until_stored(&place, blobs(&place.image), &mirror).await;
}
