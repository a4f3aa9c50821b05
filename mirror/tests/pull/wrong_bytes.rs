//! Never a bad 200: wrong bytes are not kept, not completed, and not stitched to right ones.

use std::time::Duration;

use bytes::Bytes;
use http::Version;
use mirror::digest::Digest;
use test_case::test_case;

use crate::hub::{Fault, Gate, Hub};
use crate::pattern;
use crate::served::{Mirror, cache};

const SMALL: usize = 100_000;
const LARGE: usize = 1024 * 1024;
const HELD_BACK: usize = 256 * 1024;

fn path(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}")
}

/// A small wrong blob fails ahead of its response header, with 503.
#[test_case(&Fault::Corrupt; "a flipped bit")]
#[test_case(&Fault::html(200); "a page with 200")]
#[test_case(&Fault::Body(Bytes::from(pattern(SMALL - 1))); "a short body")]
#[test_case(&Fault::Body(Bytes::from(pattern(SMALL + 1))); "a long body")]
#[tokio::test]
async fn small_wrong_blob_is_503(fault: &Fault) {
    let (hub, digest) = Hub::with_blob(pattern(SMALL)).await;
    hub.always("GET blobs", fault.clone());
    let mirror = Mirror::of(&hub).await;
    assert_eq!(mirror.get(&path(&digest)).await.status(), 503);
    mirror.settled().await;
    assert_eq!(mirror.store.usage().blobs, 0);
}

/// A large wrong blob is cut ahead of the bytes that are held back.
#[test_case(None; "kept")]
#[test_case(Some(1000); "passing uncached")]
#[tokio::test]
async fn large_wrong_blob_is_cut_short(room: Option<u64>) {
    let (hub, digest) = Hub::with_blob(pattern(LARGE)).await;
    hub.once("GET blobs", Fault::Corrupt);
    let mirror = Mirror::with(&[(&hub, "docker.io")], cache(), room).await;
    let mut answer = mirror.get(&path(&digest)).await;
    let mut got = 0;
    let cut = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => got += chunk.len(),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(cut && got <= LARGE - HELD_BACK, "{got} bytes, cut: {cut}");
    mirror.settled().await;
    assert_eq!(mirror.store.usage().blobs, 0);
}

/// Of an answer of untold length, HTTP/1.0 shows no end but that of the connection.
#[test_case(true, None, 200; "right bytes, kept")]
#[test_case(true, Some(1000), 503; "right bytes, passing uncached")]
#[test_case(false, None, 503; "wrong bytes")]
#[tokio::test]
async fn http10_client_gets_length_or_error(right: bool, room: Option<u64>, status: u16) {
    let (hub, digest) = Hub::with_blob(pattern(LARGE)).await;
    if !right {
        hub.spoil_blob("library/app", &digest, pattern(LARGE - 1));
    }
    hub.always("GET blobs", Fault::Unsized);
    let mirror = Mirror::with(&[(&hub, "docker.io")], cache(), room).await;
    let request = mirror.request("GET", &path(&digest)).version(Version::HTTP_10);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), status);
    if status == 200 {
        assert_eq!(answer.content_length(), Some(LARGE as u64));
        assert!(answer.bytes().await.unwrap() == pattern(LARGE), "other bytes");
    }
}

#[tokio::test]
async fn range_that_differs_from_fill_is_truncated() {
    let data = pattern(16 * LARGE);
    let (hub, digest) = Hub::with_blob(&data).await;
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.once("GET blobs", Fault::Wait(LARGE, gate.clone()));
    let whole = mirror.get(&path(&digest)).await;
    hub.once("GET blobs", Fault::Corrupt);
    let request = mirror.request("GET", &path(&digest));
    let ahead = request.header("range", "bytes=15728640-").send().await.unwrap();
    assert_eq!(ahead.status(), 206);
    gate.open();
    assert!(ahead.bytes().await.is_err(), "the wrong part was completed");
    assert!(whole.bytes().await.unwrap() == data, "other bytes");
}

#[tokio::test]
async fn range_beyond_wrong_upstream_size_is_no_416() {
    let (hub, digest) = Hub::with_blob(pattern(LARGE)).await;
    hub.once("GET blobs", Fault::Body(pattern(LARGE / 2).into()));
    let mirror = Mirror::of(&hub).await;
    let last = mirror
        .request("GET", &path(&digest))
        .header("range", format!("bytes={}-", LARGE - 1));
    assert_eq!(last.send().await.unwrap().status(), 503);
}

#[tokio::test]
async fn wrong_bytes_start_cooldown_of_digest() {
    let data = pattern(LARGE);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.once("GET blobs", Fault::Corrupt);
    let mirror = Mirror::of(&hub).await;
    assert_eq!(mirror.fetch(&path(&digest)).await.1, None);
    mirror.settled().await;
    // A client resumes where the transfer was cut.
    let resumed = mirror
        .request("GET", &path(&digest))
        .header("range", "bytes=786432-")
        .send()
        .await
        .unwrap();
    assert_eq!(resumed.status(), 503);
    assert!(resumed.headers().contains_key("retry-after"));
    assert_eq!(hub.count("GET blobs"), 1);
    mirror.clock.advance(Duration::from_secs(3));
    assert_eq!(mirror.fetch(&path(&digest)).await, (200, Some(data.into())));
}
