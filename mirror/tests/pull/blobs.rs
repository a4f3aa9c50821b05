//! Blobs: ranges, resumption, ranges ahead of a fill, no room.

use std::time::Duration;

use mirror::digest::Digest;
use test_case::test_case;

use crate::hub::{Fault, Gate, Hub};
use crate::pattern;
use crate::served::{Mirror, assert_answer, cache, header};

const MIB: usize = 1024 * 1024;

fn path(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}")
}

/// A blob is fetched once, and served whole and in parts.
#[tokio::test]
async fn blob_is_fetched_once_and_served_in_parts() {
    let data = pattern(MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    let mirror = Mirror::of(&hub).await;
    assert_eq!(
        mirror.fetch(&path(&digest)).await,
        (200, Some(data.clone().into()))
    );
    mirror.settled().await;
    let request = mirror
        .request("GET", &path(&digest))
        .header("range", "bytes=1000-1999");
    let part = request.send().await.unwrap();
    assert_eq!((part.status().as_u16(), header(&part, "x-cache")), (206, "HIT"));
    assert_eq!(header(&part, "content-range"), format!("bytes 1000-1999/{MIB}"));
    assert!(part.bytes().await.unwrap() == data[1000..2000], "other bytes");
    assert_eq!(hub.count("GET blobs"), 1);
}

/// Several ranges are served as a multipart body of the announced length.
#[tokio::test]
async fn multiple_ranges_are_multipart_with_length() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let mirror = Mirror::of(&hub).await;
    let request = mirror
        .request("GET", &path(&digest))
        .header("range", "bytes=0-1,500-503,-2");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 206);
    assert!(header(&answer, "content-type").starts_with("multipart/byteranges; boundary="));
    let announced: usize = header(&answer, "content-length").parse().unwrap();
    let body = answer.bytes().await.unwrap();
    assert_eq!(body.len(), announced);
    let text = String::from_utf8_lossy(&body).into_owned();
    for range in ["bytes 0-1/1000", "bytes 500-503/1000", "bytes 998-999/1000"] {
        assert!(text.contains(range), "{text}");
    }
}

/// A range beyond the end is answered with 416, and a HEAD request ignores ranges.
#[tokio::test]
async fn range_beyond_end_is_416_except_for_head() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let mirror = Mirror::of(&hub).await;
    let ranged = |method| {
        mirror
            .request(method, &path(&digest))
            .header("range", "bytes=1000-")
            .send()
    };
    let answer = ranged("GET").await.unwrap();
    assert_answer(&answer, 416, "content-range", "bytes */1000");
    let answer = ranged("HEAD").await.unwrap();
    assert_answer(&answer, 200, "content-length", "1000");
}

/// The HEAD request of a cold blob downloads nothing.
#[tokio::test]
async fn head_of_cold_blob_downloads_nothing() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let mirror = Mirror::of(&hub).await;
    let answer = mirror.request("HEAD", &path(&digest)).send().await.unwrap();
    assert_answer(&answer, 200, "content-length", "1000");
    assert_eq!((hub.count("GET blobs"), mirror.store.usage().blobs), (0, 0));
}

/// A broken upstream connection is resumed at the offset where it broke.
#[test_case(MIB / 4; "at a quarter")]
#[test_case(MIB / 2; "half-way")]
#[test_case(MIB - 1; "before the last byte")]
#[tokio::test]
async fn broken_connection_resumes_at_its_offset(at: usize) {
    let data = pattern(MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.once("GET blobs", Fault::Cut(at));
    let mirror = Mirror::of(&hub).await;
    assert_eq!(mirror.fetch(&path(&digest)).await, (200, Some(data.into())));
    let asked = hub.seen("GET blobs");
    assert_eq!(asked.len(), 2);
    assert!(asked[1].range().unwrap().starts_with("bytes="));
}

#[test_case(&Fault::IgnoreRange; "ignored")]
#[test_case(&Fault::refuse_range(); "refused")]
#[tokio::test]
async fn broken_blob_restarts_without_range_support(second: &Fault) {
    let data = pattern(MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.once("GET blobs", Fault::Cut(MIB / 2));
    hub.once("GET blobs", second.clone());
    let mirror = Mirror::of(&hub).await;
    assert_eq!(mirror.fetch(&path(&digest)).await, (200, Some(data.into())));
}

/// A stalled upstream connection is closed, and the fill resumes.
#[tokio::test]
async fn stalled_upstream_is_closed_and_resumed() {
    let data = pattern(MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.once("GET blobs", Fault::Stall(MIB / 2));
    let mirror = Mirror::of(&hub).await;
    assert_eq!(mirror.fetch(&path(&digest)).await, (200, Some(data.into())));
}

#[tokio::test]
async fn stalled_upstream_ends_fill_and_truncates_client() {
    let (hub, digest) = Hub::with_blob(pattern(2 * MIB)).await;
    hub.once("GET blobs", Fault::Cut(MIB));
    hub.always("GET blobs", Fault::Reset);
    let mirror = Mirror::of(&hub).await;
    assert_eq!(mirror.fetch(&path(&digest)).await, (200, None));
    mirror.settled().await;
    assert_eq!(mirror.store.usage().blobs, 0);
}

/// A range far ahead of the fill does not wait for it.
#[test_case("bytes=15728640-", 15 * MIB..16 * MIB; "up to the end, once the whole is verified")]
#[test_case("bytes=12582912-12583911", 12 * MIB..12 * MIB + 1000; "closed, at once")]
#[tokio::test]
async fn range_far_ahead_does_not_wait_for_fill(range: &str, part: std::ops::Range<usize>) {
    let data = pattern(16 * MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.once("GET blobs", Fault::Wait(MIB, gate.clone()));
    let whole = mirror.get(&path(&digest)).await;
    let mut ahead = mirror
        .request("GET", &path(&digest))
        .header("range", range)
        .send()
        .await
        .unwrap();
    assert_eq!(ahead.status(), 206);
    let first = ahead.chunk().await.unwrap().unwrap();
    gate.open();
    let rest = ahead.bytes().await.unwrap();
    assert!([first, rest].concat() == data[part], "other bytes");
    assert!(whole.bytes().await.unwrap() == data, "other bytes");
    assert_eq!(
        hub.seen("GET blobs")
            .iter()
            .filter(|seen| seen.range().is_none())
            .count(),
        1
    );
}

/// A blob that does not fit into the cache passes through.
#[test_case(100_000; "small")]
#[test_case(2 * MIB; "large")]
#[tokio::test]
async fn oversized_blob_passes_through(size: usize) {
    let data = pattern(size);
    let (hub, digest) = Hub::with_blob(&data).await;
    let mirror = Mirror::with(&[(&hub, "docker.io")], cache(), Some(50_000)).await;
    assert_eq!(
        mirror.fetch(&path(&digest)).await,
        (200, Some(data.clone().into()))
    );
    assert_eq!(hub.count("GET blobs"), 1);
    let request = mirror
        .request("GET", &path(&digest))
        .header("range", "bytes=50000-");
    assert_eq!(
        request.send().await.unwrap().bytes().await.unwrap(),
        data[50_000..]
    );
    assert_eq!(mirror.store.usage().blobs, 0);
}

#[tokio::test]
async fn cross_repository_blob_needs_permission_no_download() {
    let data = pattern(1000);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.push_blob("org/allowed", &data);
    let mirror = Mirror::of(&hub).await;
    mirror.fetch(&path(&digest)).await;
    mirror.settled().await;
    assert_eq!(
        mirror.fetch(&format!("/v2/org/allowed/blobs/{digest}")).await,
        (200, Some(data.into()))
    );
    assert_eq!(
        mirror.fetch(&format!("/v2/org/denied/blobs/{digest}")).await.0,
        404
    );
    let whole = |seen: &&crate::hub::Seen| seen.range().is_none();
    assert_eq!(hub.seen("GET blobs").iter().filter(whole).count(), 1);
}

/// A fill that all clients left is kept.
#[tokio::test]
async fn abandoned_fill_is_kept() {
    let data = pattern(4 * MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.once("GET blobs", Fault::Wait(MIB, gate.clone()));
    let mut client = mirror.get(&path(&digest)).await;
    client.chunk().await.unwrap();
    drop(client);
    gate.open();
    mirror.settled().await;
    let again = mirror.get(&path(&digest)).await;
    assert_eq!(header(&again, "x-cache"), "HIT");
    assert!(again.bytes().await.unwrap() == data, "other bytes");
    assert_eq!(hub.count("GET blobs"), 1);
}

/// A client that joins a fill halfway receives its first byte at once.
#[tokio::test]
async fn joining_client_gets_first_byte_at_once() {
    let data = pattern(4 * MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.once("GET blobs", Fault::Wait(2 * MIB, gate.clone()));
    let mut first = mirror.get(&path(&digest)).await;
    first.chunk().await.unwrap();
    let mut second = mirror.get(&path(&digest)).await;
    assert_eq!(header(&second, "x-cache"), "COALESCED");
    let early = tokio::time::timeout(Duration::from_secs(10), second.chunk())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    gate.open();
    assert!(
        [early, second.bytes().await.unwrap()].concat() == data,
        "other bytes"
    );
}

/// A fill that fails for one upstream does not fail for the clients of another.
#[tokio::test]
async fn fill_failure_of_other_upstream_is_not_shared() {
    let (hub, quay) = (Hub::start().await, Hub::start().await);
    let data = pattern(1000);
    let digest = hub.push_blob("library/app", &data);
    quay.push_blob("org/app", &data);
    let mirror = Mirror::with(&[(&hub, "docker.io"), (&quay, "quay.io")], cache(), None).await;
    let gate = Gate::shut();
    hub.once("GET blobs", Fault::Hold(gate.clone()));
    let (theirs, ours) = (path(&digest), format!("/v2/quay.io/org/app/blobs/{digest}"));
    let fail = async {
        while quay.count("GET blobs") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        hub.content().remove("library/app");
        gate.open();
    };
    let second = async {
        while hub.count("GET blobs") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        mirror.fetch(&ours).await
    };
    let (first, second, ()) = tokio::join!(mirror.fetch(&theirs), second, fail);
    assert_eq!(first.0, 404);
    assert_eq!(second, (200, Some(data.into())));
}

#[tokio::test]
async fn head_of_blob_without_length_omits_it_until_cached() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.push_blob("library/other", pattern(1000));
    let mirror = Mirror::of(&hub).await;
    hub.always("HEAD app/blobs", Fault::Unsized);
    hub.always(
        "GET app/blobs",
        Fault::Header("content-range", "bytes 0-0/*".into()),
    );
    let head = async || {
        let answer = mirror.request("HEAD", &path(&digest)).send().await.unwrap();
        (
            answer.status().as_u16(),
            header(&answer, "content-length").to_owned(),
        )
    };
    assert_eq!(head().await, (200, String::new()));
    mirror.fetch(&format!("/v2/other/blobs/{digest}")).await;
    mirror.settled().await;
    assert_eq!(head().await, (200, "1000".to_owned()));
}

/// The HEAD of a blob that the upstream redirects has its size.
#[tokio::test]
async fn head_of_redirected_blob_has_its_size() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.redirect_blobs(true);
    let mirror = Mirror::of(&hub).await;
    let answer = mirror.request("HEAD", &path(&digest)).send().await.unwrap();
    assert_answer(&answer, 200, "content-length", "1000");
}

#[tokio::test]
async fn head_of_blob_named_by_manifest_asks_no_upstream() {
    let hub = Hub::start().await;
    let data = pattern(1000);
    let (_, layers) = hub.push_image("library/app", "1", &[&data]);
    let mirror = Mirror::of(&hub).await;
    mirror.get("/v2/app/manifests/1").await;
    let answer = mirror.request("HEAD", &path(&layers[0])).send().await.unwrap();
    assert_answer(&answer, 200, "content-length", "1000");
    assert_eq!(hub.count("* blobs"), 0);
    hub.push_blob("library/other", &data);
    let other = format!("/v2/library/other/blobs/{}", layers[0]);
    mirror.request("HEAD", &other).send().await.unwrap();
    assert_eq!(
        hub.count("HEAD library/other/blobs"),
        1,
        "another repository needs its own yes"
    );
}

#[tokio::test]
async fn expired_signed_url_is_renewed_mid_blob() {
    let data = pattern(4 * MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.redirect_blobs(true);
    hub.once("GET /signed", Fault::Cut(MIB));
    let mirror = Mirror::of(&hub).await;
    let ends = async {
        while hub.count("GET /signed") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        hub.expire_signatures();
    };
    let path = path(&digest);
    let (fetched, ()) = tokio::join!(mirror.fetch(&path), ends);
    assert_eq!(fetched, (200, Some(data.into())));
    assert_eq!(hub.count("GET library/app/blobs"), 2);
    assert!(
        hub.seen("GET /signed")
            .iter()
            .all(|seen| seen.authorization().is_empty())
    );
}

/// A range request ahead of the fill that fails waits for the fill.
#[tokio::test]
async fn failed_range_request_waits_for_fill() {
    let data = pattern(16 * MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.once("GET blobs", Fault::Wait(MIB, gate.clone()));
    hub.once("GET blobs", Fault::status(500));
    let whole = mirror.get(&path(&digest)).await;
    let range = "bytes=12582912-12583911";
    let ahead = mirror
        .request("GET", &path(&digest))
        .header("range", range)
        .send()
        .await
        .unwrap();
    gate.open();
    assert!(
        ahead.bytes().await.unwrap() == data[12 * MIB..12 * MIB + 1000],
        "other bytes"
    );
    assert!(whole.bytes().await.unwrap() == data, "other bytes");
}

#[tokio::test]
async fn overlapping_or_empty_ranges_get_whole_blob() {
    let hub = Hub::start().await;
    let (data, nothing) = (pattern(1000), hub.push_blob("library/app", b""));
    let digest = hub.push_blob("library/app", &data);
    let mirror = Mirror::of(&hub).await;
    for (digest, range, length) in [(&digest, "bytes=0-,0-,0-", "1000"), (&nothing, "bytes=0-", "0")] {
        let ranged = mirror.request("GET", &path(digest)).header("range", range);
        let answer = ranged.send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), header(&answer, "content-length")),
            (200, length)
        );
    }
}
