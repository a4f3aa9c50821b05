//! Nobody waits for an upstream that is known to be down.

use std::time::{Duration, Instant};

use mirror::clock::Clock;
use mirror::upstream::{Error, Upstream, UpstreamState};

use crate::hub::{Fault, Hub};
use crate::{eventually, impatient, name, tag};

async fn pull(upstream: &Upstream) -> Result<(), Error> {
    upstream
        .manifest(&name("library/app"), &tag("v1"))
        .await
        .map(drop)
}

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
