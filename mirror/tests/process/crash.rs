//! kill -9 at any instant of fills, evictions and expiries: content is whole or absent, and pulls continue.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror::digest::{Algorithm, Digest};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::hub::Hub;
use crate::server::Server;
use crate::{MIB, bytes, until};

const IMAGES: u64 = 6;
/// Two images fit, a third evicts.
const PROXY: &str = "ttl: 1s, cache: {maxsize: 9Mi}";
const ROOM: u64 = 9 << 20;

fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(here) = open.pop() {
        for entry in fs::read_dir(&here).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                // A server that runs may have removed it meanwhile.
                found.extend(fs::read(&path).ok().map(|content| (path, content)));
            }
        }
    }
    found
}

/// Checks the invariants of the files at any instant.
fn assert_whole(root: &Path) {
    let v2 = root.join("docker/registry/v2");
    let mut sum = 0;
    for (path, content) in files(&v2.join("blobs")) {
        let name = path
            .parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let digest = Digest::compute(Algorithm::Sha256, &content);
        assert_eq!(digest.hex(), name, "a partial blob at {}", path.display());
        sum += content.len() as u64;
    }
    assert!(sum <= ROOM, "{sum} bytes in a cache of {ROOM}");
    for (path, link) in files(&v2.join("repositories")) {
        let text = String::from_utf8(link).unwrap();
        assert!(
            text.parse::<Digest>().is_ok(),
            "a partial link at {}",
            path.display()
        );
    }
}

struct Image {
    tag: String,
    manifest: Digest,
    layer: Digest,
}

/// Pulls all of an image; an error where the connection ends.
async fn pull(server: &Server, image: &Image) -> std::io::Result<()> {
    let manifest = server
        .get(&format!("/v2/library/app/manifests/{}", image.tag), "")
        .await?;
    assert_eq!(manifest.status, 200, "{}", manifest.text);
    assert_eq!(manifest.digest().await?, image.manifest);
    let layer = server
        .get(&format!("/v2/library/app/blobs/{}", image.layer), "")
        .await?;
    assert_eq!(layer.status, 200, "{}", layer.text);
    assert_eq!(layer.digest().await?, image.layer);
    Ok(())
}

async fn rounds(rounds: u64, seed: u64) {
    let hub = Hub::start().await;
    let images: Vec<_> = (0..IMAGES)
        .map(|n| {
            let tag = format!("t{n}");
            let (manifest, layers) = hub.push_image("library/app", &tag, &[&bytes(n, 4 * MIB)]);
            Image {
                tag,
                manifest,
                layer: layers[0].clone(),
            }
        })
        .collect();
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("cache");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..rounds {
        let server = Server::start(&root, &hub, PROXY).await;
        // Files that the start itself writes come and go.
        until("the scratch space to be swept", || {
            files(&root.join("_mirror/scratch")).is_empty()
        })
        .await;
        let asked = hub.count("* ");
        let life = Duration::from_micros(random.random_range(0..120_000));
        let clients = async {
            let chosen = [
                random.random_range(0..images.len()),
                random.random_range(0..images.len()),
            ];
            let pulls = chosen.map(|index| pull(&server, &images[index]));
            futures::future::join_all(pulls).await
        };
        let death = async {
            until("a pull to begin", || hub.count("* ") > asked).await;
            tokio::time::sleep(life).await;
        };
        tokio::select! {
            // Done before the end came: then the end comes while the cache writes.
            _ = async { let ended = clients.await; tokio::time::sleep(life / 8).await; ended } => {}
            () = death => {}
        }
        server.kill().await;
        assert_whole(&root);
    }
    let server = Server::start(&root, &hub, PROXY).await;
    for image in &images {
        pull(&server, image).await.unwrap();
    }
    eprintln!("{rounds} rounds, seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_fills_and_expiry_leaves_nothing_partial() {
    rounds(20, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the same 200 times: about a minute and a half"]
async fn two_hundred_kills_leave_nothing_partial() {
    rounds(200, 2).await;
}
