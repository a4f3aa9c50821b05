//! Members that see different sets of members: they ask the upstream more often, and serve nothing wrong.

use std::time::{Duration, Instant};

use futures::future::join_all;
use mirror::digest::{Algorithm, Digest};
use test_case::test_case;

use crate::fleet::{Replicas, hello_of, until_peers, weight};
use crate::hub::Hub;
use crate::{MIB, bytes};

/// Pulls a blob of one replica.
async fn pull(replicas: &Replicas, index: usize, digest: &Digest) {
    let path = format!("/v2/library/app/blobs/{digest}");
    let head = replicas.get(index).get(&path, "").await.unwrap();
    assert_eq!(head.status, 200, "{}", head.text);
    assert_eq!(head.digest().await.unwrap(), *digest);
}

/// Whatever each member sees, each pull is whole, and a blob is downloaded at most once for each view.
#[test_case(&[&[1], &[2], &[0]]; "a circle")]
#[test_case(&[&[1], &[0], &[]]; "one without peers")]
#[test_case(&[&[1, 2], &[], &[1]]; "one way")]
#[test_case(&[&[], &[], &[]]; "all without peers")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split_views_fail_no_pull(seen: &[&[usize]]) {
    let hub = Hub::start().await;
    let mut replicas = Replicas::planned(3, "", &[]);
    for (index, seen) in seen.iter().enumerate() {
        // The own address, so that the list is not empty.
        let view = seen.iter().chain([&index]);
        replicas.views[index] = view.map(|other| replicas.peer_ports[*other].clone()).collect();
    }
    for index in 0..3 {
        replicas.add(index, &hub).await;
    }
    for (index, seen) in seen.iter().enumerate() {
        until_peers(replicas.get(index), "serving", seen.len()).await;
    }
    let digests: Vec<_> = (0..12)
        .map(|seed| {
            hub.push_blob(
                "library/app",
                bytes(seed, 1 + usize::try_from(seed).unwrap() * MIB / 4),
            )
        })
        .collect();
    let pulls = digests
        .iter()
        .flat_map(|digest| [0, 1, 2].map(|index| pull(&replicas, index, digest)));
    join_all(pulls).await;
    let requests = hub.count("GET blobs");
    assert!(
        (12..=3 * 12).contains(&requests),
        "{requests} downloads of 12 blobs"
    );
}

/// A replica that restarts is asked again once it says hello, also by one that found nothing at its address meanwhile: two
/// that see it differently would both ask the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_owner_is_asked_again_after_hello() {
    const SUSPECTED: Duration = Duration::from_secs(5);
    let hub = Hub::start().await;
    let mut replicas = Replicas::start(2, &hub, "").await;
    let ids = [
        hello_of(&replicas, 0, "id").await,
        hello_of(&replicas, 1, "id").await,
    ];
    let mut seeds = (100..).filter(|seed| {
        let digest = Digest::compute(Algorithm::Sha256, &bytes(*seed, 10_000));
        weight(&ids[1], &digest) > weight(&ids[0], &digest)
    });
    // The time depends on the load of the machine; a member that is suspect for 5 s never serves earlier.
    for _ in 0..12 {
        replicas.servers[1].take().unwrap().kill().await;
        let digest = hub.push_blob("library/app", bytes(seeds.next().unwrap(), 10_000));
        let asked = Instant::now();
        pull(&replicas, 0, &digest).await;
        replicas.add(1, &hub).await;
        until_peers(replicas.get(0), "serving", 1).await;
        if asked.elapsed() < SUSPECTED {
            return;
        }
    }
    panic!("the replica was suspect for {SUSPECTED:?} each time");
}
