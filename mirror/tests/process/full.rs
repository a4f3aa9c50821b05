//! A disk that fills up while a blob of untold size comes in.

use crate::hub::{Fault, Hub};
use crate::server::Server;
use crate::{LIMIT, MIB, bytes, small_disk, until};

async fn body(address: &str, path: &str) -> (u16, Option<Vec<u8>>) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(LIMIT)
        .build()
        .unwrap();
    let answer = client
        .get(format!("http://{address}{path}"))
        .send()
        .await
        .unwrap();
    let status = answer.status().as_u16();
    (status, answer.bytes().await.ok().map(Vec::from))
}

/// A disk that fills up within a blob causes evictions; the remainder passes by the cache, and so does the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_mid_blob_evicts_then_passes_through() {
    let Some(how) = small_disk::namespace() else {
        return;
    };
    let hub = Hub::start().await;
    let made = [(1, 7 * MIB), (2, 10 * MIB), (3, 24 * MIB)].map(|(seed, size)| bytes(seed, size));
    let paths = made
        .each_ref()
        .map(|data| format!("/v2/library/app/blobs/{}", hub.push_blob("library/app", data)));
    let [(small, of_small), (larger, of_larger), (largest, of_largest)] =
        [0, 1, 2].map(|n| (&paths[n], &made[n]));
    for path in [larger, largest] {
        hub.always(&format!("GET {path}"), Fault::Unsized);
    }
    let home = tempfile::tempdir().unwrap();
    let limit = "cache: {maxsize: 1Gi}";
    let server = Server::start_on_small_disk(how, "20m", &home.path().join("cache"), &hub, limit).await;
    let get = async |path: &str| body(&server.address, path).await;
    let kept = async |path: &str| {
        let before = hub.count(&format!("GET {path}"));
        get(path).await;
        hub.count(&format!("GET {path}")) == before
    };

    assert!(get(small).await == (200, Some(of_small.clone())), "it fits");
    assert!(kept(small).await);
    assert!(
        get(larger).await == (200, Some(of_larger.clone())),
        "it fits once the other one is gone"
    );
    assert!(kept(larger).await);
    assert!(!kept(small).await, "what gave way is fetched again");

    assert!(
        get(largest).await == (200, Some(of_largest.clone())),
        "its remainder passes by the cache"
    );
    let metrics = body(&server.admin, "/metrics").await.1.unwrap();
    let metrics = String::from_utf8(metrics).unwrap();
    let counted = metrics.lines().find(|line| line.contains("reason=\"noroom\""));
    assert!(counted.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
    for _ in 0..2 {
        assert!(
            get(largest).await == (200, Some(of_largest.clone())),
            "it passes by the cache"
        );
    }
    assert!(
        get(small).await == (200, Some(of_small.clone())),
        "others are kept as before"
    );
    assert!(kept(small).await);
}

/// The kernel sends SIGXFSZ for a write beyond the limit.
#[tokio::test]
async fn blob_beyond_file_size_limit_passes_through() {
    let hub = Hub::start().await;
    let [small, large] = [(1, MIB), (2, 6 * MIB)].map(|(seed, size)| bytes(seed, size));
    let [of_small, of_large] =
        [&small, &large].map(|data| format!("/v2/library/app/blobs/{}", hub.push_blob("library/app", data)));
    let home = tempfile::tempdir().unwrap();
    // In blocks of 512 bytes.
    let server = Server::start_with_limit("-f 8192", &home.path().join("cache"), &hub).await;
    for _ in 0..2 {
        assert!(body(&server.address, &of_large).await == (200, Some(large.clone())));
        assert!(body(&server.address, &of_small).await == (200, Some(small.clone())));
    }
    assert_eq!(hub.count(&format!("GET {of_small}")), 1, "it is cached");
}

/// Without a limit the cache takes all but 5% of its file system; the least recently used content goes for new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_without_limit_evicts_the_oldest() {
    let Some(how) = small_disk::namespace() else {
        return;
    };
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let server = Server::start_on_small_disk(how, "24m", &home.path().join("cache"), &hub, "").await;
    let mut paths = Vec::new();
    for seed in 0..8 {
        let data = bytes(seed, 4 * MIB);
        let path = format!("/v2/library/app/blobs/{}", hub.push_blob("library/app", &data));
        assert!(body(&server.address, &path).await == (200, Some(data)));
        until("the blob to be kept", || {
            server.said("a blob was cached") as u64 == seed + 1
        })
        .await;
        paths.push(path);
    }
    let last = paths.last().unwrap();
    for (path, requests) in [(last, 1), (&paths[0], 2)] {
        body(&server.address, path).await;
        assert_eq!(hub.count(&format!("GET {path}")), requests, "{path}");
    }
    let status = body(&server.admin, "/status").await.1.unwrap();
    assert!(!String::from_utf8(status).unwrap().contains("\"full\":true"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_without_inodes_evicts() {
    let Some(how) = small_disk::namespace() else {
        return;
    };
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("cache");
    let server =
        Server::start_on_small_disk(how, "64m,nr_inodes=200", &root, &hub, "cache: {maxsize: 1Gi}").await;
    for seed in 0..100 {
        let digest = hub.push_blob("library/app", bytes(seed, 1000));
        let head = server
            .get(&format!("/v2/library/app/blobs/{digest}"), "")
            .await
            .unwrap();
        assert_eq!(head.digest().await.unwrap(), digest);
    }
    // Clients wait for the digest, not for the disk.
    until("the last blob to be kept", || {
        server.said("a blob was cached") == 100
    })
    .await;
    assert_eq!(server.said("could not be kept"), 0);
}
