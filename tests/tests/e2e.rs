//! The product as admins and nodes use it: the image, the chart, a mirror of a private registry, and containerd that
//! pulls through it. Run by `make e2e`.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "e2e/day_two.rs"]
mod day_two;
#[path = "e2e/registry.rs"]
mod registry;
#[path = "e2e/rotation.rs"]
mod rotation;

use std::time::{Duration, Instant};

use cluster::{Cluster, NAME};
use registry::Registry;

/// How long a pull may take that the mirror can't serve: longer than a connection that nobody answers.
const FALLBACK: Duration = Duration::from_secs(30);

#[tokio::test]
#[ignore = "needs root, an image and a node's programs: make e2e"]
async fn a_node_pulls_through_a_mirror_that_the_operator_deployed() {
    let cluster = Cluster::up("rmir-e2e").await;
    let registry = Registry::start(&cluster.node).await;
    for tag in ["1", "2", "3"] {
        registry.push(&cluster.node, tag).await;
    }
    cluster.install().await;
    cluster.mirror().await;
    cluster.follow_published_hosts().await;

    // The first Pod: what it needs goes through the mirror, and upstream sees the mirror only.
    let first = cluster.start_pod("first", "1").await;
    let (asked, log) = (registry.blob_requests(), cluster.mirrors_log().await);
    println!("first Pod: running after {first:?}; {asked} blob requests upstream");
    assert!(asked > 0);
    assert!(log.contains("\"outcome\":\"miss\""), "{log}");
    assert!(
        registry.clients().iter().all(|client| client != "10.199.0.1"),
        "{:?}",
        registry.clients()
    );
    assert!(
        cluster.containerds_log().contains(NAME),
        "containerd pulled nothing"
    );

    // The second, with nothing of the image left on the node.
    cluster.forget("first").await;
    let second = cluster.start_pod("second", "1").await;
    println!(
        "second Pod: running after {second:?}; {} further blob requests upstream",
        registry.blob_requests() - asked
    );
    assert_eq!(
        registry.blob_requests(),
        asked,
        "upstream was asked again for a blob"
    );
    let hits = cluster.blob_hits().await;
    println!("the mirror's log: {}", hits[0]);
    assert!(
        hits.len() > 1,
        "the layer or the configuration did not come from the cache: {hits:?}"
    );

    registry.stop(&cluster.node).await;
    cluster.forget("second").await;
    let third = cluster.start_pod("third", "1").await;
    let further = cluster.blob_hits().await.len() - hits.len();
    assert!(further > 1, "the node had not forgotten the image");
    println!("upstream stopped, third Pod: running after {third:?}");
    registry.run(&cluster.node).await;

    // The mirror gone: the node asks the registry itself, with the Pod's own credentials.
    cluster.scale_mirror(0).await;
    let begin = Instant::now();
    let fallback = cluster.start_pod("fallback", "2").await;
    println!("mirror stopped, Pod by fallback: running after {fallback:?}");
    assert!(begin.elapsed() < FALLBACK, "{:?}", begin.elapsed());
    assert!(registry.clients().iter().any(|client| client == "10.199.0.1"));

    // Without a fallback it does not start.
    cluster.never_fall_back().await;
    let asked = registry.requests();
    let why = cluster.refused_pod("never", "3").await;
    println!("no fallback: {why}");
    assert_eq!(registry.requests(), asked, "the node asked the registry itself");

    // And with the mirror back it does.
    cluster.scale_mirror(1).await;
    cluster.wait_for_pod("never").await;
    cluster.deleting_the_namespace_leaves_nothing().await;
}

/// How many passwords in a row; `make e2e ROTATIONS=20` for figures.
fn rotations() -> usize {
    let wanted = std::env::var("ROTATIONS").ok();
    wanted.and_then(|number| number.parse().ok()).unwrap_or(3)
}

#[tokio::test]
#[ignore = "needs root, an image and a node's programs: make e2e"]
async fn passwords_change_while_nodes_pull_and_a_wrong_one_changes_nothing() {
    let cluster = Cluster::up("rmir-e2e").await;
    let mut registry = Registry::start(&cluster.node).await;
    cluster.install().await;
    let mirror = cluster.mirror().await;
    let pods = cluster.pods().await;
    let mut times = Vec::new();
    for number in 0..rotations() {
        let tags: Vec<_> = (0..4).map(|pull| format!("r{number}-{pull}")).collect();
        for tag in &tags {
            registry.push(&cluster.node, tag).await;
        }
        let pulls = async {
            for tag in &tags[..3] {
                cluster
                    .pull(&mirror, tag)
                    .await
                    .unwrap_or_else(|error| panic!("{error}"));
            }
        };
        let password = format!("password-{number}");
        let (took, ()) = tokio::join!(cluster.rotate(&mut registry, &password), pulls);
        times.push(took);
        // The old password is gone upstream.
        cluster
            .pull(&mirror, &tags[3])
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }
    times.sort();
    println!(
        "{} rotations, from kubectl apply to the status: p50 {:?}, longest {:?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(cluster.events().await.contains("CredentialsRotated"));

    registry.push(&cluster.node, "after").await;
    let (version, _) = cluster.credentials().await;
    cluster.set_password("wrong").await;
    cluster
        .credentials_after(&version, "False UpstreamRejected")
        .await;
    cluster
        .pull(&mirror, "after")
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(cluster.events().await.contains("UpstreamRejected"));
    assert_eq!(cluster.pods().await, pods, "a Pod was replaced or restarted");
}
