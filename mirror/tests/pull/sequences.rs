//! Any sequence of requests, faults, damage, expiry and restarts: no wrong byte is served, and the cache stays whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror::config::TtlFrom;
use mirror::digest::{Algorithm, Digest};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::hub::{Fault, Hub};
use crate::pattern;
use crate::served::{Mirror, cache};

const BLOBS: usize = 5;
/// Three of the five fit.
const ROOM: u64 = 1 << 20;

fn data(root: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    root.join("docker/registry/v2/blobs/sha256")
        .join(&hex[..2])
        .join(hex)
        .join("data")
}

fn fault(random: &mut StdRng, size: usize) -> Fault {
    let at = random.random_range(0..size);
    match random.random_range(0..10) {
        0 | 1 => Fault::Cut(at),
        2 => Fault::Corrupt,
        3 => Fault::html(200),
        4 => Fault::status(500),
        5 => Fault::Reset,
        6 => Fault::Gzip,
        7 => Fault::Body(pattern(at).into()),
        8 => Fault::IgnoreRange,
        _ => Fault::Length(at as u64),
    }
}

/// Damages a file visibly: only the background looks for a changed bit of verified content.
fn damage(random: &mut StdRng, path: &Path) {
    let Some(found) = path.metadata().ok().filter(fs::Metadata::is_file) else {
        return;
    };
    match random.random_range(0..4) {
        0 => fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(found.len() / 2)
            .unwrap(),
        1 => fs::write(path, "").unwrap(),
        2 => fs::remove_file(path).unwrap(),
        _ => {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }
    }
}

/// Pulls a blob as one client, whole or from an offset on. A complete body must not be wrong.
async fn request(mirror: &Mirror, random: &mut StdRng, digest: &Digest, bytes: &[u8]) {
    // A connection of its own: on a slow machine the server may just now close the last one, which was idle for so long.
    let mut request = mirror
        .request("GET", &format!("/v2/app/blobs/{digest}"))
        .header("connection", "close");
    let mut start = 0;
    if random.random_bool(0.5) {
        start = random.random_range(0..bytes.len());
        request = request.header("range", format!("bytes={start}-"));
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    match (status, answer.bytes().await) {
        (200 | 206, Ok(body)) => assert!(body == bytes[start..], "wrong bytes were completed"),
        // Cut, as it has to be where bytes were wrong.
        (200 | 206, Err(_)) | (404 | 429 | 503, _) => {}
        other => panic!("{other:?}"),
    }
}

fn assert_whole(mirror: &Mirror, known: &[(Digest, Vec<u8>)]) {
    let mut sum = 0;
    for (digest, bytes) in known {
        if let Ok(found) = fs::read(data(mirror.root(), digest)) {
            assert!(found == *bytes, "wrong bytes are kept");
            sum += found.len() as u64;
        }
    }
    assert!(sum <= ROOM, "{sum} bytes in a cache of {ROOM}");
    assert_eq!(
        mirror.store.usage().bytes,
        sum,
        "what is counted is not what is there"
    );
}

async fn sequence(seed: u64, steps: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let hub = Hub::start().await;
    let known: Vec<_> = (0..BLOBS)
        .map(|number| {
            let mut bytes = pattern(200_000 + 40_000 * number);
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            (hub.push_blob("library/app", &bytes), bytes)
        })
        .collect();
    let mut mirror = Mirror::with(&[(&hub, "docker.io")], cache(), Some(ROOM)).await;
    for _ in 0..steps {
        let (digest, bytes) = &known[random.random_range(0..BLOBS)];
        match random.random_range(0..12) {
            0..6 => request(&mirror, &mut random, digest, bytes).await,
            6..9 => hub.once(&format!("GET {digest}"), fault(&mut random, bytes.len())),
            9 => {
                mirror.settled().await;
                damage(&mut random, &data(mirror.root(), digest));
            }
            10 => {
                mirror.clock.advance(Duration::from_hours(100));
                mirror.store.expire(cache().ttl, TtlFrom::LastUse).await.unwrap();
            }
            _ => mirror = mirror.restarted(&[(&hub, "docker.io")], Some(ROOM)).await,
        }
    }
    hub.heal();
    mirror.settled().await;
    mirror.clock.advance(Duration::from_hours(1));
    for (digest, bytes) in &known {
        assert_eq!(Digest::compute(Algorithm::Sha256, bytes), *digest);
        let found = mirror.fetch(&format!("/v2/app/blobs/{digest}")).await;
        assert!(
            found == (200, Some(bytes.clone().into())),
            "seed {seed}: {found:?}"
        );
        mirror.settled().await;
    }
    assert_whole(&mirror, &known);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_fault_sequence_never_spoils_cache() {
    for seed in 0..8 {
        sequence(seed, 40).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the same for 200 sequences: a few minutes"]
async fn long_fault_sequence_never_spoils_cache() {
    for seed in 100..300 {
        sequence(seed, 100).await;
    }
}
