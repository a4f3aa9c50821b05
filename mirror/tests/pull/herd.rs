//! Many clients of one cold blob.

use futures::future::join_all;
use mirror::digest::{Algorithm, Digest};

use crate::hub::Hub;
use crate::pattern;
use crate::served::Mirror;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_cold_clients_cost_one_full_download_and_all_get_the_right_bytes() {
    let hub = Hub::start().await;
    let data = pattern(16 * 1024 * 1024);
    let digest = hub.push_blob("library/app", &data);
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
