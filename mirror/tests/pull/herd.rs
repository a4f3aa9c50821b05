//! Many clients of one cold blob.

use futures::future::join_all;
use mirror::digest::{Algorithm, Digest};

use crate::hub::Hub;
use crate::pattern;
use crate::served::Mirror;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn herd_costs_one_download() {
    let data = pattern(16 * 1024 * 1024);
    let (hub, digest) = Hub::with_blob(&data).await;
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/blobs/{digest}");
    let digests = join_all((0..64).map(|_| async {
        let mut response = mirror.get(&path).await;
        let mut hasher = mirror::digest::Hasher::new(Algorithm::Sha256);
        while let Some(chunk) = response.chunk().await.unwrap() {
            hasher.update(&chunk);
        }
        hasher.finish()
    }))
    .await;
    assert!(digests.iter().all(|found: &Digest| *found == digest));
    assert_eq!(hub.count("GET blobs"), 1);
    assert_eq!(hub.sent("GET blobs"), data.len() as u64);
}

/// The second repository asks at every moment of the first one's download, its end above all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_repositories_share_one_download() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    for round in 0..200_u64 {
        let data = round.to_le_bytes().repeat(100);
        let digest = hub.push_blob("library/one", &data);
        hub.push_blob("library/other", &data);
        let path = |repository| format!("/v2/{repository}/blobs/{digest}");
        let (of_one, of_other) = (path("one"), path("other"));
        let one = mirror.fetch(&of_one);
        let other = async {
            tokio::time::sleep(std::time::Duration::from_micros(round * 100)).await;
            mirror.fetch(&of_other).await
        };
        let (one, other) = tokio::join!(one, other);
        assert_eq!((one.0, other.0), (200, 200));
        let whole = hub.seen(&format!("GET {digest}"));
        assert_eq!(whole.iter().filter(|seen| seen.range().is_none()).count(), 1);
    }
}
