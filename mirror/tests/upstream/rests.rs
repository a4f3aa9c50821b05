//! After a 429 nothing of its class is asked.

use std::time::Duration;

use mirror::clock::Clock;
use mirror::credential::Credential;
use mirror::upstream::{Error, Upstream, UpstreamState};
use test_case::test_case;

use crate::hub::{Auth, Fault, Gate, Hub, Tokens};
use crate::{blob, manifest_head, name, pull};

async fn start() -> (Hub, Clock, Upstream) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let clock = Clock::system();
    let upstream = Upstream::new(&hub.config(), clock.clone()).unwrap();
    (hub, clock, upstream)
}

fn seconds(result: Result<(), Error>) -> u64 {
    match result {
        Err(Error::RateLimited { retry_after, .. }) => {
            retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0)
        }
        other => panic!("{other:?}"),
    }
}

/// During `Retry-After` the upstream receives no request.
#[tokio::test]
async fn retry_after_sends_no_request() {
    let (hub, clock, upstream) = start().await;
    hub.once("GET manifests", Fault::limited(Some("30")));
    assert_eq!(seconds(pull(&upstream).await), 30);
    clock.advance(Duration::from_secs(20));
    assert!((9..=10).contains(&seconds(pull(&upstream).await)));
    assert_eq!(hub.count("GET manifests"), 1);
    assert_eq!(upstream.state(), UpstreamState::RateLimited);
    clock.advance(Duration::from_secs(11));
    pull(&upstream).await.unwrap();
    assert_eq!(upstream.state(), UpstreamState::Reachable);
}

/// Without `Retry-After` the back-off doubles.
#[tokio::test]
async fn backoff_doubles_without_retry_after() {
    let (hub, clock, upstream) = start().await;
    for expected in [10, 20, 40] {
        hub.once("GET manifests", Fault::limited(None));
        assert_eq!(seconds(pull(&upstream).await), expected);
        clock.advance(Duration::from_secs(expected + 1));
    }
}

/// A response to a request that was in flight does not end a back-off.
#[tokio::test]
async fn concurrent_response_keeps_backoff() {
    let (hub, clock, upstream) = start().await;
    let gate = Gate::shut();
    hub.once("GET manifests", Fault::Hold(gate.clone()));
    hub.once("GET manifests", Fault::limited(None));
    let limited = async {
        while hub.count("GET manifests") < 1 {
            tokio::task::yield_now().await;
        }
        let limited = pull(&upstream).await;
        gate.open();
        limited
    };
    let (under_way, limited) = tokio::join!(pull(&upstream), limited);
    under_way.unwrap();
    assert_eq!(seconds(limited), 10);
    assert!(seconds(pull(&upstream).await) > 8);
    assert_eq!(hub.count("GET manifests"), 2);
    clock.advance(Duration::from_secs(11));
    hub.once("GET manifests", Fault::limited(None));
    assert_eq!(seconds(pull(&upstream).await), 20);
}

/// Only a success resets the back-off.
#[tokio::test]
async fn only_success_resets_backoff() {
    let (hub, clock, upstream) = start().await;
    let limited = async || {
        hub.once("GET manifests", Fault::limited(None));
        let rest = seconds(pull(&upstream).await);
        clock.advance(Duration::from_secs(rest + 1));
        rest
    };
    assert_eq!(limited().await, 10);
    for (fault, expected) in [
        (Fault::error(404, "MANIFEST_UNKNOWN"), 20),
        (Fault::status(500), 40),
    ] {
        hub.once("GET manifests", fault);
        pull(&upstream).await.unwrap_err();
        assert_eq!(limited().await, expected);
    }
    pull(&upstream).await.unwrap();
    assert_eq!(limited().await, 10);
}

/// HEAD requests and blobs continue while manifests back off.
#[tokio::test]
async fn heads_and_blobs_continue_during_manifest_backoff() {
    let (hub, _, upstream) = start().await;
    let digest = hub.push_blob("library/app", b"layer");
    hub.always("GET manifests", Fault::limited(None));
    assert!(pull(&upstream).await.is_err());
    manifest_head(&upstream).await.unwrap();
    blob(&upstream, &digest).await.unwrap();
}

/// An exhausted rate limit delays manifests only, and ahead of any 429.
#[tokio::test]
async fn exhausted_limit_delays_manifests_only() {
    let (hub, clock, upstream) = start().await;
    hub.always(
        "HEAD manifests",
        Fault::Header("ratelimit-remaining", "0;w=21600".into()),
    );
    assert_eq!(upstream.rate_limit().remaining, None);
    manifest_head(&upstream).await.unwrap();
    assert_eq!(upstream.rate_limit().remaining, Some(0));
    assert_eq!(seconds(pull(&upstream).await), 10);
    assert_eq!(hub.count("GET manifests"), 0);
    manifest_head(&upstream).await.unwrap();
    hub.heal();
    clock.advance(Duration::from_secs(11));
    pull(&upstream).await.unwrap();
}

/// The storage that signed URLs lead to is not the registry: its 429 stops requests to it alone, for a minute at most.
#[tokio::test]
async fn storage_that_limits_cools_down_alone() {
    let (hub, clock, upstream) = start().await;
    let (app, digest) = (name("library/app"), hub.push_blob("library/app", b"layer"));
    let blob = async || upstream.blob(&app, &digest, 0, None).await.map(drop);
    hub.redirect_blobs(true);
    hub.once("GET signed", Fault::limited(Some("3600")));
    assert_eq!(seconds(blob().await), 60);
    assert!(seconds(blob().await) > 50);
    assert_eq!(hub.count("GET signed"), 1);
    assert_eq!(upstream.state(), UpstreamState::Reachable);
    pull(&upstream).await.unwrap();
    hub.redirect_blobs(false);
    blob().await.unwrap();
    hub.redirect_blobs(true);
    clock.advance(Duration::from_secs(61));
    blob().await.unwrap();
}

#[tokio::test]
async fn rate_limit_of_a_storage_is_not_the_registrys() {
    let (hub, _, upstream) = start().await;
    let digest = hub.push_blob("library/app", b"layer");
    hub.redirect_blobs(true);
    hub.always("GET signed", Fault::Header("ratelimit-remaining", "0".into()));
    for _ in 0..2 {
        blob(&upstream, &digest).await.unwrap();
        pull(&upstream).await.unwrap();
    }
    assert_eq!(upstream.rate_limit().remaining, None);
}

/// So is another registry, and its token server: neither keeps the tokens of others waiting.
#[test_case("GET manifests"; "the registry")]
#[test_case("GET /token"; "its token server")]
#[tokio::test]
async fn another_registry_that_limits_cools_down_alone(limited: &str) {
    let (hub, clock, upstream) = start().await;
    let (one, other) = (Hub::start().await, Hub::start().await);
    for registry in [&one, &other] {
        registry.push_image("library/app", "v1", &[b"layer"]);
        let tokens = Tokens::at(registry);
        *registry.auth() = Auth::Tokens(tokens);
    }
    one.once(limited, Fault::limited(Some("3600")));
    hub.once("GET manifests", Fault::Forward(307, one.url()));
    assert_eq!(seconds(pull(&upstream).await), 60);
    hub.once("GET manifests", Fault::Forward(307, other.url()));
    pull(&upstream).await.unwrap();
    let tokens = Tokens::at(&hub);
    *hub.auth() = Auth::Tokens(tokens);
    pull(&upstream).await.unwrap();
    clock.advance(Duration::from_secs(61));
    *hub.auth() = Auth::Anyone;
    hub.once("GET manifests", Fault::Forward(307, one.url()));
    pull(&upstream).await.unwrap();
}

/// A back-off belongs to its credential, and a new credential starts without one.
#[tokio::test]
async fn backoff_belongs_to_the_credential() {
    let (hub, _, upstream) = start().await;
    hub.once("GET manifests", Fault::limited(Some("300")));
    assert!(pull(&upstream).await.is_err());
    upstream.use_credential(Credential::Anonymous, 2);
    pull(&upstream).await.unwrap();
}
