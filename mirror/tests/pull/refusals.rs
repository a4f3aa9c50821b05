//! The answer table where nothing is cached, and requests that no pull-through answers.

use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::hub::{Fault, Hub};
use crate::served::{Mirror, assert_answer, cache, header, json as body_of, live};

/// With nothing cached, each failure of the upstream has the response of the table.
#[test_case(&Fault::error(404, "MANIFEST_UNKNOWN"), 404, "MANIFEST_UNKNOWN"; "a registry's 404")]
#[test_case(&Fault::html(404), 503, "TOOMANYREQUESTS"; "any other 404")]
#[test_case(&Fault::status(401), 403, "DENIED"; "401 becomes 403")]
#[test_case(&Fault::status(403), 403, "DENIED"; "403")]
#[test_case(&Fault::limited(Some("7")), 429, "TOOMANYREQUESTS"; "429")]
#[test_case(&Fault::status(500), 503, "TOOMANYREQUESTS"; "500")]
#[test_case(&Fault::Reset, 503, "TOOMANYREQUESTS"; "a reset")]
#[tokio::test]
async fn uncached_failures_match_the_table(fault: &Fault, status: u16, code: &str) {
    let hub = Hub::start().await;
    hub.always("* manifests", fault.clone());
    let mirror = Mirror::of(&hub).await;
    let answer = mirror.get("/v2/app/manifests/1").await;
    assert_eq!(answer.status(), status);
    assert_eq!(
        answer.headers().contains_key("retry-after"),
        status == 429 || status == 503
    );
    assert!(!answer.headers().contains_key("www-authenticate"));
    let body = body_of(answer).await;
    assert_eq!(body["errors"][0]["code"], code);
}

/// The `Retry-After` of the upstream is passed on.
#[tokio::test]
async fn upstream_retry_after_is_passed_on() {
    let hub = Hub::start().await;
    hub.always("* manifests", Fault::limited(Some("7")));
    let answer = Mirror::of(&hub).await.get("/v2/app/manifests/1").await;
    let wait: u64 = header(&answer, "retry-after").parse().unwrap();
    assert!((1..=7).contains(&wait), "{wait}");
}

/// Content that does not exist is requested once in a burst.
#[tokio::test]
async fn missing_content_is_requested_once_in_a_burst() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    for _ in 0..5 {
        assert_eq!(mirror.get("/v2/app/manifests/none").await.status(), 404);
    }
    assert_eq!(hub.count("* manifests"), 1);
}

/// A reload clears the negative cache.
#[tokio::test]
async fn reload_clears_the_negative_cache() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    assert_eq!(mirror.get("/v2/app/manifests/1").await.status(), 404);
    hub.push_image("library/app", "1", &[b"layer"]);
    mirror
        .pull
        .reload(live(&[(&hub, "docker.io")], cache(), &mirror.clock));
    assert_eq!(mirror.get("/v2/app/manifests/1").await.status(), 200);
}

/// Requests for changes are answered with 405, and no upstream receives one.
#[test_case("POST", "/v2/app/blobs/uploads/"; "an upload")]
#[test_case("PUT", "/v2/app/manifests/1"; "a push")]
#[test_case("DELETE", "/v2/app/manifests/1"; "a delete")]
#[tokio::test]
async fn changes_are_405_without_upstream_requests(method: &str, path: &str) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    let answer = mirror.request(method, path).send().await.unwrap();
    assert_answer(&answer, 405, "allow", "GET, HEAD, OPTIONS");
    assert_eq!(hub.count("* "), 0);
}

#[test_case("PUT", "/v2/app/manifests/sha256:abc", 400; "a push by a broken digest")]
#[test_case("DELETE", "/v2/app/blobs/sha256:abc", 400; "a delete by a broken digest")]
#[test_case("PUT", "/v2/app/manifests/.INVALID", 404; "a push under a tag that can't be")]
#[tokio::test]
async fn write_to_malformed_reference_is_400_before_405(method: &str, path: &str, status: u16) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    let answer = mirror.request(method, path).send().await.unwrap();
    assert_eq!(answer.status(), status);
    assert_eq!(hub.count("* "), 0);
}

/// An invalid request is refused without an upstream request.
#[test_case("/v2/app/blobs/sha256:abc", 400; "a broken digest")]
#[test_case("/v2/app/manifests/sha256:abc", 400; "a broken digest of a manifest")]
#[test_case("/v2/app/manifests/.INVALID", 404; "a tag that can't be")]
#[test_case("/v2/App/manifests/1", 400; "a name that can't be")]
#[test_case("/v2/../../etc/passwd", 404; "a path that leads out")]
#[test_case("/v2/app%2F%2Fb/manifests/1", 400; "an encoded empty component")]
#[test_case("/v2/..%2f..%2fetc/manifests/1", 400; "an encoded path that leads out")]
#[test_case("/v2/app/tags/list?n=x", 400; "a page size that is no number")]
#[tokio::test]
async fn invalid_request_sends_no_upstream_request(path: &str, status: u16) {
    let hub = Hub::start().await;
    assert_eq!(Mirror::of(&hub).await.get(path).await.status(), status);
    assert_eq!(hub.count("* "), 0);
}

/// The base path says that the server is a registry.
#[tokio::test]
async fn base_path_identifies_a_registry() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    for path in ["/", "/v2", "/v2/"] {
        let answer = mirror.get(path).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "docker-distribution-api-version"), "registry/2.0");
    }
}

/// Paths with empty or dot segments are redirected to the clean path, whatever the method.
#[test_case("GET", "//v2/", "/v2/"; "before the version")]
#[test_case("HEAD", "/v2//app/manifests/1", "/v2/app/manifests/1"; "before the name")]
#[test_case("GET", "/v2/app/manifests//1?ns=docker.io&x=a//b", "/v2/app/manifests/1?ns=docker.io&x=a//b"; "with a query")]
#[test_case("GET", "/v2/app/blobs//sha256:abc", "/v2/app/blobs/sha256:abc"; "before a digest")]
#[test_case("GET", "/v2/a/./b/../tags/list", "/v2/a/tags/list"; "dot segments")]
#[test_case("POST", "/v2/app//blobs/uploads/", "/v2/app/blobs/uploads/"; "a push")]
#[test_case("GET", "/v2/app/tags/list/", "/v2/app/tags/list"; "a slash at the end")]
#[test_case("GET", "//evil.example/v2/", "/evil.example/v2/"; "never to another host")]
#[tokio::test]
async fn unclean_path_is_redirected(method: &str, path: &str, location: &str) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    let address = mirror.url.strip_prefix("http://").unwrap();
    let answer = raw(
        address,
        &format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
    assert!(
        answer.contains(&format!("\r\nlocation: {location}\r\n")),
        "{answer}"
    );
    assert_eq!(hub.count("* "), 0);
}

/// Sends these bytes, which no client library would, and returns the whole answer with header names in lower case.
async fn raw(address: &str, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.replace("Location:", "location:")
}

/// `OPTIONS` is answered on every path without a question to upstream.
#[test_case("/v2/")]
#[test_case("/v2/_catalog")]
#[test_case("/v2/app/tags/list")]
#[test_case("/v2/app/manifests/1?ns=docker.io")]
#[test_case("/v2/app/blobs/sha256:abc")]
#[test_case("/v2/app/referrers/sha256:abc")]
#[test_case("/v2/app/blobs/uploads/")]
#[tokio::test]
async fn options_is_204_with_allow(path: &str) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    let answer = mirror.request("OPTIONS", path).send().await.unwrap();
    assert_answer(&answer, 204, "allow", "GET, HEAD, OPTIONS");
    assert!(answer.bytes().await.unwrap().is_empty());
    assert_eq!(hub.count("* "), 0);
}
