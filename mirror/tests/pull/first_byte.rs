//! The work before the first byte of an uncached blob.

use crate::hub::{Auth, Fault, Gate, Hub, Tokens};
use crate::pattern;
use crate::served::Mirror;

const MIB: usize = 1024 * 1024;

/// A cold blob costs one request on a kept connection, and is streamed to the client.
#[tokio::test]
async fn cold_blob_costs_one_request_and_streams() {
    let hub = Hub::start().await;
    *hub.auth() = Auth::Tokens(Tokens::at(&hub));
    let before = hub.push_blob("library/app", pattern(MIB));
    let cold = hub.push_blob("library/app", pattern(MIB + 1));
    let mirror = Mirror::of(&hub).await;
    let path = |digest| format!("/v2/app/blobs/{digest}");
    assert_eq!(mirror.fetch(&path(before)).await.0, 200);
    mirror.settled().await;
    hub.forget();
    let connections = hub.connections();
    let gate = Gate::shut();
    hub.once("GET blobs", Fault::Wait(MIB / 2, gate.clone()));
    let mut answer = mirror.get(&path(cold)).await;
    // Upstream stands still: what comes now does not wait for more.
    let mut came = answer.chunk().await.unwrap().unwrap().len();
    gate.open();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        came += chunk.len();
    }
    assert_eq!(came, MIB + 1);
    assert_eq!((hub.count("*"), hub.connections()), (1, connections));
}
