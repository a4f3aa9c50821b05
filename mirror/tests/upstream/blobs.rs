//! Blobs: whole, in parts, and with everything that can happen to them on the way.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use mirror::clock::Clock;
use mirror::upstream::{BlobAnswer, Error, Options, Upstream};
use test_case::test_case;

use crate::hub::{Auth, Fault, Gate, Hub, Tokens};
use crate::{blob, impatient, name, upstream};

async fn bytes(answer: BlobAnswer) -> Result<Vec<u8>, Error> {
    let chunks: Vec<_> = answer.body.try_collect().await?;
    Ok(chunks.concat())
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// A whole blob is a plain GET request without a range.
#[tokio::test]
async fn whole_blob_is_a_plain_get() {
    let data = pattern(300_000);
    let (hub, digest) = Hub::with_blob(&data).await;
    let answer = upstream(&hub)
        .blob(&name("library/app"), &digest, 0, None)
        .await
        .unwrap();
    assert_eq!((answer.start, answer.total), (0, Some(300_000)));
    assert_eq!(bytes(answer).await.unwrap(), data);
    assert_eq!(hub.seen("GET blobs")[0].range(), None);
}

/// A part of a blob is requested by its range.
#[test_case(10, None, "bytes=10-" ; "to the end")]
#[test_case(10, Some(20), "bytes=10-19" ; "up to a byte")]
#[test_case(0, Some(20), "bytes=0-19" ; "from the start")]
#[test_case(990, Some(5000), "bytes=990-4999" ; "beyond the end")]
#[tokio::test]
async fn blob_part_is_requested_by_range(from: u64, until: Option<u64>, range: &str) {
    let data = pattern(1000);
    let (hub, digest) = Hub::with_blob(&data).await;
    let answer = upstream(&hub)
        .blob(&name("library/app"), &digest, from, until)
        .await
        .unwrap();
    assert_eq!((answer.start, answer.total), (from, Some(1000)));
    let end = usize::try_from(until.unwrap_or(1000).min(1000)).unwrap();
    assert_eq!(
        bytes(answer).await.unwrap(),
        data[usize::try_from(from).unwrap()..end]
    );
    assert_eq!(hub.seen("GET blobs")[0].range(), Some(range));
}

/// If the upstream serves no ranges the whole blob comes from its start.
#[test_case(Fault::IgnoreRange ; "ignored")]
#[test_case(Fault::refuse_range() ; "refused")]
#[tokio::test]
async fn unsupported_range_returns_whole_blob(fault: Fault) {
    let data = pattern(1000);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.once("GET blobs", fault);
    let answer = upstream(&hub)
        .blob(&name("library/app"), &digest, 500, None)
        .await
        .unwrap();
    assert_eq!((answer.start, answer.total), (0, Some(1000)));
    assert_eq!(bytes(answer).await.unwrap(), data);
}

/// A range beyond the end of a blob is an error at once.
#[tokio::test]
async fn range_beyond_end_is_an_error() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let got = upstream(&hub)
        .blob(&name("library/app"), &digest, 1000, None)
        .await;
    assert!(matches!(got, Err(Error::Malformed { .. })), "{got:?}");
    assert_eq!(hub.count("GET blobs"), 1);
}

/// A part whose `Content-Range` is wrong is refused.
#[test_case(Fault::Header("content-range", "bytes 501-999/1000".into()) ; "another start")]
#[test_case(Fault::Header("content-range", "bytes 500-1000/1000".into()) ; "beyond its own total")]
#[test_case(Fault::Header("content-range", "bytes 500-998/1000".into()) ; "not the length of the body")]
#[test_case(Fault::Header("content-range", "pages 500-999/1000".into()) ; "another unit")]
#[test_case(Fault::Header("content-range", String::new()) ; "empty")]
#[tokio::test]
async fn part_with_wrong_range_is_refused(fault: Fault) {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.always("GET blobs", fault);
    let got = upstream(&hub)
        .blob(&name("library/app"), &digest, 500, None)
        .await;
    assert!(matches!(got, Err(Error::Malformed { .. })), "{got:?}");
}

/// A body that ends early returns its bytes and then an error.
#[test_case(Fault::Cut(600_000) ; "cut")]
#[test_case(Fault::Length(2_000_000) ; "shorter than announced")]
#[test_case(Fault::Stall(600_000) ; "stalled")]
#[tokio::test]
async fn truncated_body_ends_with_an_error(fault: Fault) {
    let (hub, digest) = Hub::with_blob(pattern(1_000_000)).await;
    hub.always("GET blobs", fault);
    let upstream = Upstream::with_options(&hub.config(), impatient(Clock::system())).unwrap();
    let mut answer = blob(&upstream, &digest).await.unwrap();
    let mut came = 0;
    let error = loop {
        match answer.body.try_next().await {
            Ok(chunk) => came += chunk.expect("an error ends it").len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(came >= 500_000, "{came}");
    assert_eq!(answer.body.try_next().await, Ok(None), "the error comes once");
}

/// A reader that pauses for longer than the idle timeout is not cut.
#[tokio::test]
async fn paused_reader_is_not_cut() {
    let data = pattern(1_000_000);
    let (hub, digest) = Hub::with_blob(&data).await;
    let gate = Gate::shut();
    hub.always("GET blobs", Fault::Wait(500_000, gate.clone()));
    let options = impatient(Clock::system());
    let pause = options.timeouts.idle + Duration::from_millis(100);
    let upstream = Upstream::with_options(&hub.config(), options).unwrap();
    let answer = upstream.blob(&name("library/app"), &digest, 0, None).await;
    let mut body = answer.unwrap().body;
    let mut came = Vec::new();
    while came.len() < 500_000 {
        came.extend(body.try_next().await.unwrap().unwrap());
    }
    assert!(futures::poll!(body.try_next()).is_pending());
    gate.open();
    // The pause itself is what is tested.
    tokio::time::sleep(pause).await;
    while let Some(chunk) = body.try_next().await.unwrap() {
        came.extend(chunk);
    }
    assert!(came == data);
}

#[tokio::test]
async fn signed_url_gets_no_token_and_is_never_shown() {
    let data = pattern(1000);
    let (hub, digest) = Hub::with_blob(&data).await;
    let tokens = Tokens::at(&hub);
    *hub.auth() = Auth::Tokens(tokens);
    hub.redirect_blobs(true);
    let upstream = upstream(&hub);
    let answer = blob(&upstream, &digest).await.unwrap();
    assert_eq!(bytes(answer).await.unwrap(), data);
    let at_storage = hub.seen("GET /signed");
    assert!(at_storage[0].storage && at_storage[0].authorization().is_empty());
    hub.always("GET /signed", Fault::Reset);
    let error = blob(&upstream, &digest).await.unwrap_err();
    assert!(!format!("{error:?}").contains("sig="), "{error:?}");
}

/// The refusal of a signed URL does not affect the credential.
#[tokio::test]
async fn expired_signed_url_does_not_reject_credential() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.redirect_blobs(true);
    hub.always("GET /signed", Fault::status(403));
    let error = upstream(&hub)
        .blob(&name("library/app"), &digest, 0, None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    hub.heal();
    hub.always("GET /signed", Fault::error(404, "BLOB_UNKNOWN"));
    let error = upstream(&hub)
        .blob(&name("library/app"), &digest, 0, None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::StrangeNotFound { host: Some(_) }),
        "{error:?}"
    );
}

#[tokio::test]
async fn blob_head_accepts_size_or_redirect() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let upstream = upstream(&hub);
    assert_eq!(
        upstream.blob_head(&name("library/app"), &digest).await,
        Ok(Some(1000))
    );
    hub.redirect_blobs(true);
    assert_eq!(upstream.blob_head(&name("library/app"), &digest).await, Ok(None));
    assert_eq!((hub.count("GET"), hub.count("* /signed")), (0, 0));
}

/// A page in response to a HEAD or a range request is neither a blob nor a size.
#[tokio::test]
async fn page_is_no_blob_and_no_size() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let upstream = upstream(&hub);
    let page = |status| {
        let html = vec![("content-type", "text/html; charset=utf-8".to_owned())];
        Fault::Answer(status, html, "<html>Sign in</html>".into())
    };
    hub.always("HEAD blobs", page(http::StatusCode::OK));
    let no = upstream.blob_head(&name("library/app"), &digest).await;
    assert!(matches!(no, Err(Error::Malformed { .. })), "{no:?}");
    hub.always("HEAD blobs", Fault::status(405));
    hub.always("GET blobs", page(http::StatusCode::OK));
    let no = upstream.blob_size(&name("library/app"), &digest).await;
    assert!(matches!(no, Err(Error::Malformed { .. })), "{no:?}");
}

/// The error of a storage that a registry redirects to names its host, and so does a page in place of a blob.
#[test_case(Fault::html(404), "127.0.0.1, which the upstream names, answered 404 or 410"; "no such object")]
#[test_case(Fault::limited(Some("5")), "127.0.0.1, which the upstream names, limits the rate"; "rate limit")]
#[test_case(Fault::status(500), "127.0.0.1, where it redirects to, answered 500"; "failure")]
#[test_case(Fault::html(200), "127.0.0.1, where it redirects to, sent a page (text/html)"; "page")]
#[tokio::test]
async fn error_of_a_storage_names_its_host(fault: Fault, expected: &str) {
    let hub = Hub::start().await;
    let digest = hub.push_blob("library/app", pattern(1000));
    hub.redirect_blobs(true);
    hub.always("GET /signed", fault);
    let error = upstream(&hub)
        .blob(&name("library/app"), &digest, 0, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

/// A blob that a server labels as a page is a blob.
#[tokio::test]
async fn blob_labelled_as_page_is_downloaded() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.always("GET blobs", Fault::Header("content-type", "text/html".to_owned()));
    let answer = upstream(&hub).blob(&name("library/app"), &digest, 0, None).await;
    let chunks: Vec<_> = answer.unwrap().body.try_collect().await.unwrap();
    assert_eq!(chunks.concat(), pattern(1000));
}

/// If HEAD is refused, a request for one byte decides.
#[test_case(401 ; "unauthorized")]
#[test_case(403 ; "forbidden")]
#[test_case(400 ; "a bad request")]
#[test_case(405 ; "not allowed")]
#[tokio::test]
async fn refused_head_is_replaced_by_one_byte(status: u16) {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.always("HEAD blobs", Fault::status(status));
    let upstream = upstream(&hub);
    assert_eq!(
        upstream.blob_head(&name("library/app"), &digest).await,
        Ok(Some(1000))
    );
    assert_eq!(hub.seen("GET blobs")[0].range(), Some("bytes=0-0"));
    hub.redirect_blobs(true);
    assert_eq!(upstream.blob_head(&name("library/app"), &digest).await, Ok(None));
    hub.always("GET blobs", Fault::error(403, "DENIED"));
    let no = upstream.blob_head(&name("library/app"), &digest).await;
    assert!(matches!(no, Err(Error::Denied { status: 403, .. })), "{no:?}");
}

/// An empty blob exists although it has no first byte.
#[tokio::test]
async fn empty_blob_exists_without_first_byte() {
    let (hub, digest) = Hub::with_blob(b"").await;
    hub.always("HEAD blobs", Fault::status(405));
    let upstream = upstream(&hub);
    assert_eq!(
        upstream.blob_head(&name("library/app"), &digest).await,
        Ok(Some(0))
    );
    let answer = blob(&upstream, &digest).await.unwrap();
    assert_eq!(bytes(answer).await.unwrap(), b"");
}

/// HEAD alone gives the size of a blob if nothing redirects.
#[tokio::test]
async fn size_comes_from_head_without_redirect() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let size = upstream(&hub).blob_size(&name("library/app"), &digest).await;
    assert_eq!(size, Ok(Some(1000)));
    assert_eq!((hub.count("HEAD blobs"), hub.count("GET")), (1, 0));
}

/// Behind a redirect one byte gives the size.
#[tokio::test]
async fn redirected_blob_size_costs_one_byte() {
    let (hub, digest) = Hub::with_blob(pattern(300_000)).await;
    hub.redirect_blobs(true);
    let size = upstream(&hub).blob_size(&name("library/app"), &digest).await;
    assert_eq!(size, Ok(Some(300_000)));
    let asked = hub.seen("* /signed");
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (asked[0].method.as_str(), asked[0].range()),
        ("GET", Some("bytes=0-0"))
    );
    assert_eq!(hub.sent("* /signed"), 1);
}

#[tokio::test]
async fn size_behind_redirect_is_length_without_body() {
    let hub = Hub::start().await;
    let length = 64 * 1024 * 1024;
    let digest = hub.push_blob("library/app", vec![0; length]);
    hub.redirect_blobs(true);
    hub.always("GET /signed", Fault::IgnoreRange);
    let size = upstream(&hub).blob_size(&name("library/app"), &digest).await;
    assert_eq!(size, Ok(Some(length as u64)));
    assert!(hub.sent("GET /signed") < length as u64);
}

/// An empty blob behind a redirect has size zero.
#[tokio::test]
async fn redirected_empty_blob_has_size_zero() {
    let (hub, digest) = Hub::with_blob(b"").await;
    hub.redirect_blobs(true);
    let size = upstream(&hub).blob_size(&name("library/app"), &digest).await;
    assert_eq!(size, Ok(Some(0)));
}

#[tokio::test]
async fn bare_416_of_storage_still_gives_size() {
    let hub = Hub::start().await;
    let (length, refused) = (64 * 1024 * 1024, Fault::refuse_range());
    let empty = hub.push_blob("library/app", b"");
    let large = hub.push_blob("library/app", vec![0; length]);
    hub.redirect_blobs(true);
    let upstream = upstream(&hub);
    hub.once("GET /signed", refused.clone());
    let size = upstream.blob_size(&name("library/app"), &empty).await;
    assert_eq!(size, Ok(Some(0)));
    hub.once("GET /signed", refused);
    let size = upstream.blob_size(&name("library/app"), &large).await;
    assert_eq!(size, Ok(Some(length as u64)));
    assert!(hub.sent("GET /signed") < length as u64);
}

#[tokio::test]
async fn size_is_unknown_if_never_sent_error_if_refused() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.redirect_blobs(true);
    let upstream = upstream(&hub);
    hub.once(
        "GET /signed",
        Fault::Header("content-range", "bytes 0-0/*".into()),
    );
    let size = upstream.blob_size(&name("library/app"), &digest).await;
    assert_eq!(size, Ok(None));
    hub.once("GET /signed", Fault::status(403));
    let no = upstream.blob_size(&name("library/app"), &digest).await;
    assert!(matches!(no, Err(Error::Unavailable { .. })), "{no:?}");
}

#[tokio::test]
async fn missing_blob_is_not_found_with_registry_code() {
    let hub = Hub::start().await;
    hub.push_blob("library/app", b"mine");
    let digest = hub.push_blob("library/other", b"others");
    let no = upstream(&hub).blob_head(&name("library/app"), &digest).await;
    assert!(matches!(no, Err(Error::NotFound { code, .. }) if code == "BLOB_UNKNOWN"));
}

#[tokio::test]
async fn full_download_pool_fails_after_queue_time() {
    let (slow, other) = (Hub::start().await, Hub::start().await);
    let data = pattern(1000);
    let digest = slow.push_blob("library/app", &data);
    other.push_blob("library/app", &data);
    slow.always("GET blobs", Fault::Wait(1, Gate::shut()));
    let limited = |hub: &Hub, name: &str| {
        let mut options = Options::default();
        options.limits.blobs = 2;
        options.timeouts.queue = Duration::from_millis(100);
        Upstream::with_options(&hub.config_as(name), options).unwrap()
    };
    let (full, free) = (limited(&slow, "docker.io"), limited(&other, "quay.io"));
    let library = name("library/app");
    let _first = full.blob(&library, &digest, 0, None).await.unwrap();
    let _second = full.blob(&library, &digest, 0, None).await.unwrap();
    let start = Instant::now();
    let refused = full.blob(&library, &digest, 0, None).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(slow.count("GET blobs"), 2, "what waits is not asked");
    full.blob_head(&library, &digest).await.unwrap();
    let answer = free.blob(&library, &digest, 0, None).await.unwrap();
    assert_eq!(bytes(answer).await.unwrap(), data);
}

#[tokio::test]
async fn downloads_beyond_limit_wait() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let mut options = impatient(Clock::system());
    options.limits.blobs = 1;
    options.timeouts.queue = Duration::from_millis(100);
    let upstream = Upstream::with_options(&hub.config(), options).unwrap();
    let library = name("library/app");
    let first = upstream.blob(&library, &digest, 0, None).await.unwrap();
    let second = upstream.blob(&library, &digest, 0, None).await;
    assert!(matches!(second, Err(Error::Unavailable { .. })), "{second:?}");
    drop(first);
    upstream.blob(&library, &digest, 0, None).await.unwrap();
}

#[tokio::test]
async fn pass_through_pool_is_separate_from_fills() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    let mut options = impatient(Clock::system());
    (options.limits.blobs, options.limits.passing) = (1, 1);
    options.timeouts.patience = Duration::from_millis(100);
    let upstream = Upstream::with_options(&hub.config(), options).unwrap();
    let library = name("library/app");
    let past = async || upstream.blob_past_the_cache(&library, &digest, 0, None).await;
    let first = past().await.unwrap();
    assert!(matches!(past().await, Err(Error::Unavailable { .. })));
    let fill = upstream.blob(&library, &digest, 0, None).await.unwrap();
    assert!(
        upstream.past_the_cache(fill).await.is_err(),
        "there is one already"
    );
    drop(first);
    let fill = upstream.blob(&library, &digest, 0, None).await.unwrap();
    let passing = upstream.past_the_cache(fill).await.unwrap();
    upstream.blob(&library, &digest, 0, None).await.unwrap();
    assert!(matches!(past().await, Err(Error::Unavailable { .. })));
    assert_eq!(bytes(passing).await.unwrap(), pattern(1000));
}
