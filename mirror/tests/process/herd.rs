//! Many clients of one cold blob: one download, little memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;

use crate::hub::{Fault, Gate, Hub};
use crate::server::Server;
use crate::{LIMIT, MIB, bytes, until};

const CLIENTS: usize = 64;

async fn herd(size: usize) {
    let data = bytes(1, size);
    let (hub, digest) = Hub::with_blob(&data).await;
    drop(data);
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    server.get("/v2/", "").await.unwrap();
    let (before, most) = (server.memory(), AtomicU64::new(0));
    let path = format!("/v2/library/app/blobs/{digest}");
    let watch = async {
        loop {
            most.fetch_max(server.memory(), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let pulls = join_all((0..CLIENTS).map(|_| async {
        let head = server.get(&path, "").await.unwrap();
        assert_eq!(head.status, 200);
        head.digest().await.unwrap()
    }));
    let digests = tokio::select! {
        digests = pulls => digests,
        () = watch => unreachable!(),
    };
    assert!(digests.iter().all(|found| *found == digest));
    assert_eq!(hub.count("GET blobs"), 1);
    let (sent, size) = (hub.sent("GET blobs"), size as u64);
    assert!(
        sent >= size && sent <= size + size / 100,
        "{sent} bytes from upstream"
    );
    let growth = most.into_inner().saturating_sub(before);
    eprintln!("{CLIENTS} clients of {size} bytes: {sent} bytes from upstream, memory grew by {growth} bytes");
    assert!(growth < 40 << 20, "memory grew by {growth} bytes");
}

/// Sixty-four cold clients cost one download and little memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_herd_costs_one_download() {
    herd(32 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "16 GiB through one process: about a minute"]
async fn herd_of_large_blob_costs_one_download_and_little_memory() {
    herd(256 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_joiner_reads_at_once_abandoned_fill_completes() {
    let (hub, digest) = Hub::with_blob(bytes(2, 8 * MIB)).await;
    let gate = Gate::shut();
    hub.once("GET blobs", Fault::Wait(4 * MIB, gate.clone()));
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let path = format!("/v2/library/app/blobs/{digest}");
    for _ in 0..2 {
        let mut client = server.get(&path, "").await.unwrap();
        // Upstream stands still: what comes now was there already.
        tokio::time::timeout(LIMIT, client.first_byte())
            .await
            .unwrap()
            .unwrap();
    }
    gate.open();
    until("the fill's end", || hub.sent("GET blobs") == 8 * MIB as u64).await;
    let again = server.get(&path, "").await.unwrap();
    assert!(
        matches!(again.header("x-cache"), Some("hit" | "coalesced")),
        "{}",
        again.text
    );
    assert_eq!(again.digest().await.unwrap(), digest);
    assert_eq!(hub.count("GET blobs"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn herd_without_cache_space_passes_through() {
    let (hub, digest) = Hub::with_blob(bytes(2, 600 * 1024)).await;
    let home = tempfile::tempdir().unwrap();
    let limit = "cache: {maxsize: 300Ki}";
    let server = Server::start(&home.path().join("cache"), &hub, limit).await;
    let path = format!("/v2/library/app/blobs/{digest}");
    let pulls = join_all((0..200).map(|_| async {
        let head = server.get(&path, "").await.unwrap();
        assert_eq!(head.status, 200);
        head.digest().await.unwrap()
    }));
    assert!(pulls.await.iter().all(|found| *found == digest));
    assert_eq!(hub.count("GET blobs"), 200);
}
