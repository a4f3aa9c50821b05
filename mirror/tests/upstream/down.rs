//! Requests do not wait for an upstream that is known to be down.

use std::time::{Duration, Instant};

use futures::StreamExt;
use mirror::clock::Clock;
use mirror::digest::{Algorithm, Digest};
use mirror::upstream::{Error, Upstream, UpstreamState};

use crate::hub::{Fault, Hub};
use crate::{eventually, impatient, name, pull, tag};

async fn start() -> (Hub, Upstream) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let upstream = Upstream::with_options(&hub.config(), impatient(Clock::system())).unwrap();
    (hub, upstream)
}

#[tokio::test]
async fn closed_port_is_detected_and_recovery_is_probed() {
    let (mut hub, upstream) = start().await;
    assert_eq!(upstream.state(), UpstreamState::Unknown);
    pull(&upstream).await.unwrap();
    hub.stop();
    assert!(matches!(pull(&upstream).await, Err(Error::Unavailable { .. })));
    eventually("down", || upstream.state() == UpstreamState::Unreachable).await;
    hub.restart().await;
    eventually("up again", || upstream.state() == UpstreamState::Reachable).await;
    pull(&upstream).await.unwrap();
}

/// While the upstream hangs requests soon fail at once.
#[tokio::test]
async fn hanging_upstream_fails_requests_fast() {
    let (hub, upstream) = start().await;
    hub.always("*", Fault::Hang);
    let error = pull(&upstream).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    eventually("down", || upstream.state() == UpstreamState::Unreachable).await;
    let asked = hub.count("GET manifests");
    let start = Instant::now();
    for _ in 0..100 {
        assert!(pull(&upstream).await.is_err());
    }
    assert!(start.elapsed() < Duration::from_millis(300));
    assert_eq!(hub.count("GET manifests"), asked);
    hub.heal();
    eventually("up again", || upstream.state() == UpstreamState::Reachable).await;
}

#[tokio::test]
async fn hang_is_detected_after_client_left() {
    let (hub, upstream) = start().await;
    hub.always("*", Fault::Hang);
    let left = tokio::time::timeout(Duration::from_millis(150), pull(&upstream)).await;
    assert!(left.is_err());
    eventually("down", || upstream.state() == UpstreamState::Unreachable).await;
}

/// One slow manifest does not count as an outage of the upstream.
#[tokio::test]
async fn one_slow_manifest_is_no_outage() {
    let (hub, upstream) = start().await;
    hub.once("GET manifests", Fault::Hang);
    assert!(matches!(pull(&upstream).await, Err(Error::Unavailable { .. })));
    pull(&upstream).await.unwrap();
    assert_eq!(upstream.state(), UpstreamState::Reachable);
}

/// Errors of a server that responds do not stop requests.
#[tokio::test]
async fn server_errors_do_not_stop_requests() {
    let (hub, upstream) = start().await;
    hub.once("GET manifests", Fault::status(502));
    assert!(matches!(pull(&upstream).await, Err(Error::Unavailable { .. })));
    pull(&upstream).await.unwrap();
}

/// The error for a name that does not resolve contains it.
#[tokio::test]
async fn unresolvable_name_is_in_the_error() {
    let hub = Hub::start().await;
    let mut config = hub.config();
    config.remote = "http://registry.invalid".parse().unwrap();
    let upstream = Upstream::with_options(&config, impatient(Clock::system())).unwrap();
    let error = pull(&upstream).await.unwrap_err();
    assert!(error.to_string().contains("registry.invalid"), "{error}");
}

/// The last error of an upstream has a time, and an upstream that is down or limits the rate has a time of its next try.
#[tokio::test]
async fn last_error_is_reported_with_its_time() {
    let (mut hub, upstream) = start().await;
    pull(&upstream).await.unwrap();
    assert_eq!((upstream.last_error(), upstream.next_try()), (None, None));

    let missing = upstream.manifest(&name("library/app"), &tag("none")).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    assert_eq!(
        upstream.last_error(),
        None,
        "absent content is no error of the upstream"
    );

    hub.once("GET manifests", Fault::status(502));
    assert!(pull(&upstream).await.is_err());
    let first = upstream.last_error().unwrap();
    assert!(first.message.contains("it answered 502"), "{first:?}");
    pull(&upstream).await.unwrap();
    assert_eq!(
        upstream.last_error(),
        Some(first),
        "an answer keeps the last error"
    );
    assert_eq!(upstream.next_try(), None);

    hub.once("GET manifests", Fault::status(429));
    assert!(pull(&upstream).await.is_err());
    let limited = upstream.last_error().unwrap();
    assert!(limited.message.contains("limits the rate"), "{limited:?}");
    assert!(upstream.next_try().unwrap() > limited.at);
    assert!(pull(&upstream).await.is_err());
    assert_eq!(
        upstream.last_error(),
        Some(limited),
        "a request that is not sent is no error"
    );

    hub.stop();
    assert!(upstream.tags(&name("library/app"), "").await.is_err());
    eventually("down", || upstream.state() == UpstreamState::Unreachable).await;
    assert!(upstream.next_try().is_some());
    let down = upstream.last_error().unwrap();
    assert!(down.message.contains("unavailable"), "{down:?}");
}

/// A body that ends early, and content with another digest, are errors of the upstream.
#[tokio::test]
async fn failed_body_is_the_last_error() {
    let (hub, upstream) = start().await;
    let layer = hub.push_blob("library/app", b"some bytes");
    hub.once("GET blobs", Fault::Cut(3));
    let answer = upstream
        .blob(&name("library/app"), &layer, 0, None)
        .await
        .unwrap();
    assert_eq!(upstream.last_error(), None);
    let chunks: Vec<_> = answer.body.collect().await;
    assert!(chunks.last().unwrap().is_err());
    let cut = upstream.last_error().unwrap();
    assert!(cut.message.contains("unavailable"), "{cut:?}");

    let other = Digest::compute(Algorithm::Sha256, b"other");
    hub.once(
        "GET manifests",
        Fault::Header("docker-content-digest", other.to_string()),
    );
    assert!(pull(&upstream).await.is_err());
    let wrong = upstream.last_error().unwrap();
    assert!(wrong.message.contains(other.as_str()), "{wrong:?}");
}
