//! The mirror between real sockets: a misbehaving upstream on one side, HTTP clients on the other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic fails the test")]

#[path = "../fixtures/http2.rs"]
mod http2;
#[path = "../fixtures/hub.rs"]
#[allow(unused_imports, reason = "every test binary uses another part of it")]
mod hub;

mod any_cut;
mod blobs;
mod caching;
mod choice;
mod commits;
mod drops;
mod first_byte;
mod herd;
mod isolation;
mod large;
mod lists;
mod manifests;
mod offline;
mod refusals;
mod revoked;
mod sequences;
mod served;
mod table;
mod tolerance;
mod validators;
mod wrong_bytes;

use std::time::Duration;

/// The longest that a test waits for what has to happen.
const LIMIT: Duration = Duration::from_secs(30);

/// Bytes that differ from place to place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| u8::try_from((i * 7 + i / 251) % 251).unwrap())
        .collect()
}
