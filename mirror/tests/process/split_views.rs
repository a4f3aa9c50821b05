//! Members that see different sets of members: they ask the upstream more often, and serve nothing wrong.

use futures::future::join_all;
use test_case::test_case;

use crate::fleet::{Replicas, until_peers};
use crate::hub::Hub;
use crate::{MIB, bytes};

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
    let pull = async |index: usize, digest: &mirror::digest::Digest| {
        let path = format!("/v2/library/app/blobs/{digest}");
        let head = replicas.get(index).get(&path, "").await.unwrap();
        assert_eq!(head.status, 200, "{}", head.text);
        assert_eq!(head.digest().await.unwrap(), *digest);
    };
    let pulls = digests
        .iter()
        .flat_map(|digest| [0, 1, 2].map(|index| pull(index, digest)));
    join_all(pulls).await;
    let requests = hub.count("GET blobs");
    assert!(
        (12..=3 * 12).contains(&requests),
        "{requests} downloads of 12 blobs"
    );
}
