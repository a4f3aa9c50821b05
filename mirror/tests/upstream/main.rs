//! An upstream over real sockets: every rule about what it is asked, shown and believed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

#[path = "../fixtures/hub.rs"]
mod hub;
#[path = "../fixtures/openssl.rs"]
mod openssl;

mod answers;
mod authorization;
mod blobs;
mod down;
mod encodings;
mod headers;
mod named_hosts;
mod redirects;
mod registries;
mod rests;
mod tls;
mod verdicts;

use std::time::{Duration, Instant};

use mirror::clock::Clock;
use mirror::credential::Credential;
use mirror::digest::Digest;
use mirror::name::{Reference, RepositoryName};
use mirror::secret::Secret;
use mirror::upstream::{Accept, BlobAnswer, Error, ManifestHead, Options, Timeouts, Upstream};

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn tag(text: &str) -> Reference {
    text.parse().unwrap()
}

fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic {
        username: username.into(),
        password: Secret::new(password),
    }
}

/// Returns options with timeouts that a test can wait for.
fn impatient(clock: Clock) -> Options {
    Options {
        clock,
        timeouts: Timeouts {
            header: Duration::from_millis(400),
            idle: Duration::from_millis(300),
            suspect: Duration::from_millis(50),
            probe: Duration::from_millis(200),
            probe_first: Duration::from_millis(20),
            probe_most: Duration::from_millis(50),
            ..Timeouts::default()
        },
        ..Options::default()
    }
}

fn upstream(hub: &hub::Hub) -> Upstream {
    Upstream::new(&hub.config(), Clock::system()).unwrap()
}

fn upstream_as(hub: &hub::Hub, credential: Credential) -> Upstream {
    let mut config = hub.config();
    config.credential = credential;
    Upstream::new(&config, Clock::system()).unwrap()
}

/// Pulls the manifest of the image `library/app:v1`.
async fn pull(upstream: &Upstream) -> Result<(), Error> {
    upstream
        .manifest(&name("library/app"), &tag("v1"))
        .await
        .map(drop)
}

/// Requests a blob of `library/app`.
async fn blob(upstream: &Upstream, digest: &Digest) -> Result<BlobAnswer, Error> {
    upstream.blob(&name("library/app"), digest, 0, None).await
}

/// Requests the digest of `library/app:v1`.
async fn manifest_head(upstream: &Upstream) -> Result<ManifestHead, Error> {
    let (name, tag) = (name("library/app"), tag("v1"));
    upstream.manifest_head(&name, &tag, &Accept::default()).await
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "never {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
