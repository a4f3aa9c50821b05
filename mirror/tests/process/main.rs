//! The program as a process of its own, under load, killed, and spoken to by clients that mean no good.
//!
//! The long versions: `cargo test -p mirror --test process -- --ignored`.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../fixtures/http2.rs"]
mod http2;
#[path = "../fixtures/hub.rs"]
#[allow(unused_imports, reason = "every test binary uses another part of it")]
mod hub;
#[path = "../fixtures/small_disk.rs"]
mod small_disk;

mod bounds;
mod crash;
mod crowd;
mod descriptors;
mod fleet;
mod floods;
mod full;
mod herd;
mod hostile;
mod liars;
mod logins;
mod mutual_peers;
mod peer_names;
mod peer_places;
mod peers;
mod rebind;
mod request_bodies;
mod server;
mod split_views;
mod traces;

use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
/// The longest that a test waits for what has to happen.
const LIMIT: Duration = Duration::from_mins(1);

/// Bytes that look random, the same ones for the same seed, of which no part repeats.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut made = Vec::with_capacity(length + 8);
    while made.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        made.extend(state.to_le_bytes());
    }
    made.truncate(length);
    made
}

/// Waits for a condition.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
