//! Validators and conditional requests (RFC 9110, 8.8 and 13).

use reqwest::Response;
use test_case::test_case;

use crate::hub::{Fault, Gate, Hub};
use crate::pattern;
use crate::served::{Mirror, cache, header};

const MIB: usize = 1024 * 1024;

/// A request with these headers; each `DIGEST` in their values is the digest of the content.
async fn ask(mirror: &Mirror, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let digest = path.rsplit('/').next().unwrap();
    let request = headers
        .iter()
        .fold(mirror.request(method, path), |request, (name, value)| {
            request.header(*name, value.replace("DIGEST", digest))
        });
    request.send().await.unwrap()
}

/// Content that is not verified yet has no validator, and conditions on one get the whole: no client combines its bytes
/// with others.
#[tokio::test]
async fn unverified_blob_has_no_validator() {
    const OWN: &str = "\"DIGEST\"";
    let (hub, digest) = Hub::with_blob(pattern(4 * MIB)).await;
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.once("GET blobs", Fault::Wait(2 * MIB, gate.clone()));
    let path = format!("/v2/app/blobs/{digest}");
    let head = ask(&mirror, "HEAD", &path, &[]).await;
    assert_eq!(
        (head.status().as_u16(), header(&head, "etag")),
        (200, ""),
        "cold HEAD"
    );
    let cold = ask(
        &mirror,
        "GET",
        &path,
        &[("range", "bytes=0-1"), ("if-range", OWN)],
    )
    .await;
    assert_eq!((cold.status().as_u16(), header(&cold, "etag")), (200, ""), "cold");
    let range = ("range", "bytes=0-1");
    for (headers, status, etag) in [
        (vec![], 200, ""),
        (vec![range], 206, ""),
        (vec![("range", "bytes=0-1,5-6")], 206, ""),
        (vec![range, ("if-range", OWN)], 200, ""),
        (vec![range, ("if-match", OWN)], 200, ""),
        (vec![range, ("if-match", "*")], 200, ""),
        (vec![range, ("if-match", "\"other\"")], 412, ""),
        (vec![("if-none-match", OWN)], 304, OWN),
        (
            vec![("if-unmodified-since", "Sat, 01 Jan 2000 00:00:00 GMT")],
            200,
            "",
        ),
    ] {
        let answer = ask(&mirror, "GET", &path, &headers).await;
        let etag = etag.replace("DIGEST", digest.as_str());
        let found = (answer.status().as_u16(), header(&answer, "etag"));
        assert_eq!(found, (status, etag.as_str()), "filling, {headers:?}");
        let head = ask(&mirror, "HEAD", &path, &headers).await;
        let status = if status == 206 { 200 } else { status };
        let found = (head.status().as_u16(), header(&head, "etag"));
        assert_eq!(found, (status, etag.as_str()), "HEAD while filling, {headers:?}");
    }
    gate.open();
    assert_eq!(cold.bytes().await.unwrap().len(), 4 * MIB);
}

/// A blob that passes the cache by is verified at its end only.
#[tokio::test]
async fn uncached_blob_has_no_validator() {
    let (hub, digest) = Hub::with_blob(pattern(MIB)).await;
    let mirror = Mirror::with(&[(&hub, "docker.io")], cache(), Some(1000)).await;
    let path = format!("/v2/app/blobs/{digest}");
    for (headers, status) in [
        (vec![], 200),
        (vec![("range", "bytes=5-6")], 206),
        (vec![("range", "bytes=5-6"), ("if-range", "\"DIGEST\"")], 200),
    ] {
        let answer = ask(&mirror, "GET", &path, &headers).await;
        let found = (answer.status().as_u16(), header(&answer, "etag").to_owned());
        assert_eq!(found, (status, String::new()), "{headers:?}");
        answer.bytes().await.unwrap();
    }
}

/// Cached content has its digest as a strong validator, and each condition is evaluated in the order of the RFC.
#[test_case("blobs", &[("if-match", "\"DIGEST\"")], 200; "a match")]
#[test_case("blobs", &[("if-match", "*")], 200; "any")]
#[test_case("blobs", &[("if-match", "\"a\", \"DIGEST\"")], 200; "a match in a list")]
#[test_case("blobs", &[("if-match", "W/\"DIGEST\"")], 412; "a weak validator")]
#[test_case("blobs", &[("if-match", "\"a\""), ("if-none-match", "\"DIGEST\"")], 412; "no match before one that is known")]
#[test_case("blobs", &[("if-match", "\"DIGEST\""), ("if-none-match", "\"DIGEST\"")], 304; "known")]
#[test_case("blobs", &[("if-match", "\"DIGEST\""), ("range", "bytes=1-2")], 206; "a part")]
#[test_case("blobs", &[("if-match", "\"a\""), ("range", "bytes=1-2")], 412; "a part of another")]
#[test_case("blobs", &[("if-range", "\"DIGEST\""), ("range", "bytes=1-2")], 206; "if range")]
#[test_case("blobs", &[("if-range", "W/\"DIGEST\""), ("range", "bytes=1-2")], 200; "if range with a weak validator")]
#[test_case("blobs", &[("if-unmodified-since", "Sat, 01 Jan 2000 00:00:00 GMT")], 200; "a date")]
#[test_case("manifests", &[("if-match", "\"DIGEST\"")], 200; "a match of a manifest")]
#[test_case("manifests", &[("if-match", "\"a\"")], 412; "another manifest")]
#[test_case("manifests", &[("if-match", "\"DIGEST\""), ("if-none-match", "*")], 304; "a known manifest")]
#[tokio::test]
async fn conditions_of_cached_content_are_evaluated(kind: &str, headers: &[(&str, &str)], status: u16) {
    let hub = Hub::start().await;
    let (manifest, layers) = hub.push_image("library/app", "1", &[b"layer of an image"]);
    let digest = if kind == "blobs" { &layers[0] } else { &manifest };
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/{kind}/{digest}");
    assert_eq!(mirror.fetch(&path).await.0, 200);
    mirror.settled().await;
    let answer = ask(&mirror, "GET", &path, headers).await;
    assert_eq!(answer.status(), status);
    if status != 412 {
        assert_eq!(header(&answer, "etag"), format!("\"{digest}\""));
    }
    let head = ask(&mirror, "HEAD", &path, headers).await;
    assert_eq!(head.status(), if status == 206 { 200 } else { status });
}

/// A list has no validator that `If-Match` could name, and content that is not there is 404.
#[tokio::test]
async fn if_match_of_lists_and_missing_content() {
    let (_hub, mirror, _) = Mirror::with_image().await;
    let absent = format!("/v2/app/blobs/sha256:{}", "0".repeat(64));
    for (path, value, status) in [
        ("/v2/app/tags/list", "\"a\"", 412),
        ("/v2/app/tags/list", "*", 200),
        ("/v2/_catalog", "\"a\"", 412),
        ("/v2/app/manifests/none", "\"a\"", 404),
        (absent.as_str(), "\"a\"", 404),
    ] {
        let answer = ask(&mirror, "GET", path, &[("if-match", value)]).await;
        assert_eq!(answer.status(), status, "{path}");
    }
}

/// A number of names that is none is answered as Distribution does.
#[tokio::test]
async fn bad_page_size_is_pagination_number_invalid() {
    let (_hub, mirror, _) = Mirror::with_image().await;
    for path in ["/v2/app/tags/list", "/v2/_catalog"] {
        for n in ["-1", "a", "1.5", "18446744073709551616"] {
            let answer = mirror.get(&format!("{path}?n={n}")).await;
            assert_eq!(answer.status(), 400, "{path} {n}");
            let body = crate::served::json(answer).await;
            assert_eq!(
                body["errors"][0]["code"], "PAGINATION_NUMBER_INVALID",
                "{path} {n}"
            );
        }
        assert_eq!(mirror.get(&format!("{path}?n=")).await.status(), 200, "{path}");
    }
}

/// A query that no page has is refused, and the upstream gets no request that it would fail at.
#[tokio::test]
async fn query_that_names_no_page_is_not_sent_upstream() {
    let (hub, mirror, _) = Mirror::with_image().await;
    let long = format!("last={}", "z".repeat(3000));
    for path in ["/v2/app/tags/list", "/v2/_catalog"] {
        for query in ["n=2&last=%00", "l%61st=a%0A", "next_page=%1b", "last=%FF", &long] {
            let answer = mirror.get(&format!("{path}?{query}")).await;
            assert_eq!(answer.status(), 400, "{path} {query}");
            let body = crate::served::json(answer).await;
            assert_eq!(body["errors"][0]["code"], "NAME_INVALID", "{path} {query}");
        }
    }
    assert_eq!(hub.count("* "), 0);
}
