//! Manifests by tag and digest: fresh, moved, stale, refused.

use std::time::Duration;

use test_case::test_case;

use crate::LIMIT;
use crate::hub::{Fault, Gate, Hub};
use crate::served::{Mirror, assert_answer, cache, header};

const PATH: &str = "/v2/app/manifests/1";

#[tokio::test]
async fn fresh_tag_asks_no_upstream_stale_one_sends_head() {
    let (hub, mirror, digest) = Mirror::with_image().await;
    let first = mirror.get(PATH).await;
    assert_eq!(header(&first, "x-cache"), "MISS");
    assert_eq!(header(&first, "docker-content-digest"), digest.as_str());
    assert_eq!(header(&first, "etag"), format!("\"{digest}\""));
    assert_eq!(header(&mirror.get(PATH).await, "x-cache"), "HIT");
    assert_eq!((hub.count("GET manifests"), hub.count("HEAD manifests")), (1, 0));
    mirror.clock.advance(Duration::from_mins(6));
    assert_eq!(header(&mirror.get(PATH).await, "x-cache"), "HIT");
    assert_eq!((hub.count("GET manifests"), hub.count("HEAD manifests")), (1, 1));
}

/// A tag that moved is fetched again, by its digest.
#[tokio::test]
async fn moved_tag_is_fetched_by_digest() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "1", &[b"old"]);
    let mirror = Mirror::of(&hub).await;
    mirror.get(PATH).await;
    let (moved, _) = hub.push_image("library/app", "1", &[b"new"]);
    mirror.clock.advance(Duration::from_mins(6));
    let second = mirror.get(PATH).await;
    assert_eq!(header(&second, "docker-content-digest"), moved.as_str());
    assert_eq!(hub.count(&format!("GET manifests/{moved}")), 1);
}

/// A tag that moved is fetched although the upstream refuses HEAD requests.
#[test_case(401)]
#[test_case(403)]
#[test_case(405)]
#[tokio::test]
async fn moved_tag_is_fetched_though_head_fails(status: u16) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "1", &[b"old"]);
    hub.always("HEAD manifests", Fault::status(status));
    let mirror = Mirror::of(&hub).await;
    mirror.get(PATH).await;
    let (moved, _) = hub.push_image("library/app", "1", &[b"new"]);
    mirror.clock.advance(Duration::from_mins(6));
    let second = mirror.get(PATH).await;
    assert_eq!(header(&second, "docker-content-digest"), moved.as_str());
    assert_eq!(hub.count("GET manifests"), 2);
}

#[test_case(&Fault::status(500); "500")]
#[test_case(&Fault::limited(None); "429")]
#[test_case(&Fault::html(404); "a 404 that no registry wrote")]
#[test_case(&Fault::html(403); "a 403 that no registry wrote")]
#[test_case(&Fault::Reset; "the connection ends")]
#[test_case(&Fault::Hang; "no answer")]
#[tokio::test]
async fn failing_upstream_serves_stale_within_two_seconds(fault: &Fault) {
    let (hub, mirror, digest) = Mirror::with_image().await;
    mirror.get(PATH).await;
    mirror.clock.advance(Duration::from_mins(6));
    hub.always("* manifests", fault.clone());
    let answer = tokio::time::timeout(Duration::from_secs(10), mirror.get(PATH))
        .await
        .unwrap();
    assert_answer(&answer, 200, "x-cache", "STALE");
    assert_eq!(header(&answer, "docker-content-digest"), digest.as_str());
    assert!(header(&answer, "warning").starts_with("299 - \""));
}

#[tokio::test]
async fn probed_upstream_serves_copy_without_wait() {
    let hub = Hub::start().await;
    for tag in ["1", "2"] {
        hub.push_image("library/app", tag, &[b"layer"]);
    }
    let mirror = Mirror::of(&hub).await;
    let other = "/v2/app/manifests/2";
    for path in [PATH, other] {
        mirror.get(path).await;
    }
    mirror.clock.advance(Duration::from_mins(6));
    hub.always("*", Fault::Hang);
    assert_eq!(header(&mirror.get(PATH).await, "x-cache"), "STALE");
    for path in [PATH, other] {
        let answer = tokio::time::timeout(Duration::from_secs(1), mirror.get(path)).await;
        let answer = answer.expect("as long as a client with a copy waits for upstream is not over");
        assert_eq!(header(&answer, "x-cache"), "STALE");
    }
}

#[tokio::test]
async fn stale_ends_with_staleiferror() {
    let (hub, mirror, _) = Mirror::with_image().await;
    mirror.get(PATH).await;
    hub.always("* manifests", Fault::status(500));
    mirror.clock.advance(Duration::from_mins(61));
    assert_eq!(mirror.get(PATH).await.status(), 503);
}

#[tokio::test]
async fn deleted_tag_is_404_but_its_digest_is_served() {
    let (hub, mirror, digest) = Mirror::with_image().await;
    mirror.get(PATH).await;
    hub.content().remove("library/app");
    mirror.clock.advance(Duration::from_mins(6));
    assert_eq!(mirror.get(PATH).await.status(), 404);
    assert_eq!(
        mirror.get(&format!("/v2/app/manifests/{digest}")).await.status(),
        200
    );
}

/// A cached manifest is never revalidated by its digest.
#[tokio::test]
async fn cached_digest_is_never_revalidated() {
    let (hub, mirror, digest) = Mirror::with_image().await;
    let path = format!("/v2/app/manifests/{digest}");
    mirror.get(&path).await;
    mirror.clock.advance(Duration::from_hours(24));
    assert_eq!(header(&mirror.get(&path).await, "x-cache"), "HIT");
    assert_eq!(hub.count("* manifests"), 1);
}

/// A wrong manifest is neither served nor stored.
#[test_case(&Fault::html(200); "a page with 200")]
#[test_case(&Fault::Corrupt; "a flipped bit")]
#[test_case(&Fault::Cut(10); "cut short")]
#[test_case(&Fault::Header("docker-content-digest", format!("sha256:{}", "0".repeat(64))); "a digest that lies")]
#[tokio::test]
async fn wrong_manifest_is_neither_served_nor_stored(fault: &Fault) {
    let (hub, mirror, digest) = Mirror::with_image().await;
    hub.always("GET manifests", fault.clone());
    assert_eq!(
        mirror.get(&format!("/v2/app/manifests/{digest}")).await.status(),
        503
    );
    assert_eq!(mirror.store.usage().blobs, 0);
    hub.heal();
    assert_eq!(mirror.get(PATH).await.status(), 200);
}

#[tokio::test]
async fn head_naming_missing_manifest_serves_last_copy() {
    let (hub, mirror, digest) = Mirror::with_image().await;
    mirror.get(PATH).await;
    mirror.clock.advance(Duration::from_mins(6));
    let nowhere = format!("sha256:{}", "0".repeat(64));
    hub.always("HEAD manifests", Fault::Header("docker-content-digest", nowhere));
    for _ in 0..2 {
        let answer = mirror.get(PATH).await;
        assert_answer(&answer, 200, "x-cache", "STALE");
        assert_eq!(header(&answer, "docker-content-digest"), digest.as_str());
    }
    hub.heal();
    assert_eq!(header(&mirror.get(PATH).await, "x-cache"), "HIT");
}

/// One hundred clients of a cold tag cost one upstream request.
#[tokio::test]
async fn hundred_clients_of_cold_tag_cost_one_request() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "1", &[b"layer"]);
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.once("GET manifests", Fault::Hold(gate.clone()));
    let clients = futures::future::join_all((0..100).map(|_| mirror.get(PATH)));
    let opened = async {
        while mirror.metrics.requests_active.get() == 0 && hub.count("GET manifests") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.open();
    };
    let (answers, ()) = tokio::join!(clients, opened);
    assert!(answers.iter().all(|answer| answer.status() == 200));
    assert_eq!(hub.count("GET manifests"), 1);
}

/// Without `tagttl` every request for a tag is revalidated upstream.
#[tokio::test]
async fn zero_tagttl_revalidates_every_tag_request() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "1", &[b"layer"]);
    let mut cache = cache();
    cache.tag_ttl = Duration::ZERO;
    let mirror = Mirror::with(&[(&hub, "docker.io")], cache, None).await;
    for _ in 0..3 {
        assert_eq!(mirror.get(PATH).await.status(), 200);
    }
    assert_eq!((hub.count("GET manifests"), hub.count("HEAD manifests")), (1, 2));
}

/// A client that has the manifest receives 304.
#[tokio::test]
async fn matching_etag_is_304() {
    let (_hub, mirror, digest) = Mirror::with_image().await;
    let request = mirror
        .request("GET", PATH)
        .header("if-none-match", format!("W/\"{digest}\""));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 304);
    assert_eq!(header(&answer, "docker-content-digest"), digest.as_str());
}

/// A manifest of schema 1 is refused with the reason.
#[tokio::test]
async fn schema1_is_refused_with_reason() {
    let hub = Hub::start().await;
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    hub.push_manifest("library/app", Some("1"), kind, r#"{"schemaVersion":1}"#);
    let answer = Mirror::of(&hub).await.fetch(PATH).await;
    assert_eq!(answer.0, 404);
    let body = String::from_utf8(answer.1.unwrap().0.to_vec()).unwrap();
    assert!(
        body.contains("MANIFEST_UNKNOWN") && body.contains("schema 1"),
        "{body}"
    );
}

/// The response to HEAD has the length that GET has.
#[tokio::test]
async fn head_has_the_length_of_get() {
    let (_hub, mirror, _) = Mirror::with_image().await;
    let got = mirror.get(PATH).await;
    let reported = mirror.request("HEAD", PATH).send().await.unwrap();
    assert_eq!(
        header(&reported, "content-length"),
        header(&got, "content-length")
    );
    let (base, reported) = (
        mirror.get("/v2/").await,
        mirror.request("HEAD", "/v2/").send().await.unwrap(),
    );
    assert_eq!(
        header(&reported, "content-length"),
        header(&base, "content-length")
    );
}

/// After the clock is set back a tag does not stay fresh for as long as the clock was wrong.
#[tokio::test]
async fn clock_set_back_keeps_no_tag_fresh() {
    let (hub, mirror, _) = Mirror::with_image().await;
    let year = std::time::Duration::from_hours(365 * 24);
    mirror.clock.advance(year);
    mirror.get("/v2/app/manifests/1").await;
    mirror.clock.set_back(year);
    for _ in 0..2 {
        let answer = mirror.get("/v2/app/manifests/1").await;
        assert_eq!(header(&answer, "x-cache"), "HIT");
    }
    assert_eq!(
        hub.count("HEAD manifests"),
        1,
        "asked once more, and fresh from then on"
    );
}

/// HEAD is answered with the headers of GET and without DATA frames, which a client counts as a protocol error.
#[test_case(true; "HTTP/2")]
#[test_case(false; "HTTP/1.1")]
#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body(http2: bool) {
    let hub = Hub::start().await;
    let (digest, layers) = hub.push_image("library/app", "1", &[b"layer"]);
    let mirror = Mirror::of(&hub).await;
    let mut builder = reqwest::Client::builder().no_proxy().timeout(LIMIT);
    if http2 {
        builder = builder.http2_prior_knowledge();
    }
    let client = builder.build().unwrap();
    let paths = [
        PATH.to_owned(),
        format!("/v2/app/manifests/{digest}"),
        format!("/v2/app/blobs/{}", layers[0]),
        format!("/v2/app/referrers/{digest}"),
        "/v2/app/tags/list".to_owned(),
        "/v2/_catalog".to_owned(),
        "/v2/".to_owned(),
        "/".to_owned(),
        "/v2/app/manifests/none".to_owned(),
        "/v2/app/manifests/$".to_owned(),
        "/v2/app/blobs/uploads/".to_owned(),
    ];
    for path in paths {
        let url = format!("{}{path}", mirror.url);
        let get = client.get(&url).send().await.unwrap();
        let head = client.head(&url).send().await.unwrap();
        let of_content = |response: &reqwest::Response| {
            let [length, kind, digest] = ["content-length", "content-type", "docker-content-digest"]
                .map(|name| header(response, name).to_owned());
            (response.status(), length, kind, digest)
        };
        assert_eq!(of_content(&head), of_content(&get), "{path}");
        assert_eq!(head.bytes().await.unwrap().len(), 0, "{path}");
        assert!(get.bytes().await.is_ok(), "{path}");
    }
}
