//! The binary in front of a misbehaving upstream, while what it was configured with changes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic fails the test")]

#[path = "../fixtures/hub.rs"]
#[allow(unused_imports, reason = "every test binary uses another part of it")]
mod hub;
#[path = "../fixtures/openssl.rs"]
mod openssl;

mod actions;
mod browsers;
mod credentials;
mod failures;
mod files;
mod listening;
mod operations;
mod protocols;
mod proxies;
mod served;
mod upstreams;
