//! An upstream that never stops sending, and never gets on.

use std::time::Duration;

use crate::hub::{Fault, Hub};
use crate::pattern;
use crate::served::Mirror;

/// Shorter than the second after which a body has stopped.
const PAUSE: Duration = Duration::from_millis(200);

/// A body that arrives drop by drop is closed and resumed.
#[tokio::test]
async fn dripping_body_is_closed_and_resumed() {
    let data = pattern(600_000);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.once("GET blobs", Fault::Drops(PAUSE));
    let mirror = Mirror::of(&hub).await;
    let found = mirror.fetch(&format!("/v2/app/blobs/{digest}")).await;
    assert!(found == (200, Some(data.into())), "{:?}", found.0);
    let asked = hub.seen("GET blobs");
    assert_eq!(asked.len(), 2);
    assert!(
        asked[1].range().is_some_and(|range| range != "bytes=0-"),
        "{asked:?}"
    );
}

/// The mirror gives up an upstream that sends only drops.
#[tokio::test]
async fn dripping_upstream_is_given_up() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.always("GET blobs", Fault::Drops(PAUSE));
    let mirror = Mirror::of(&hub).await;
    let (status, _) = mirror.fetch(&format!("/v2/app/blobs/{digest}")).await;
    assert_eq!(status, 503);
    mirror.settled().await;
    assert_eq!(mirror.store.usage().blobs, 0);
}

/// The mirror gives up an upstream that closes the connection after each byte.
#[tokio::test]
async fn upstream_closing_after_each_byte_is_given_up() {
    let (hub, digest) = Hub::with_blob(pattern(1000)).await;
    hub.always("GET blobs", Fault::Cut(1));
    let mirror = Mirror::of(&hub).await;
    let (status, _) = mirror.fetch(&format!("/v2/app/blobs/{digest}")).await;
    assert_eq!(status, 503);
}
