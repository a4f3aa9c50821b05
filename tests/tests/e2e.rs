//! The product as admins and nodes use it: the image, the chart, a mirror of a private registry, and containerd that
//! pulls through it. Run by `make e2e`.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

#[path = "e2e/agent.rs"]
mod agent;
#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "e2e/day_two.rs"]
mod day_two;
#[path = "e2e/fleet.rs"]
mod fleet;
#[path = "e2e/logs.rs"]
mod logs;
#[path = "e2e/metrics.rs"]
mod metrics;
#[path = "e2e/mirror.rs"]
mod mirror;
#[path = "e2e/plugin.rs"]
mod plugin;
#[path = "e2e/pods.rs"]
mod pods;
#[path = "e2e/pulls.rs"]
mod pulls;
#[path = "e2e/registry.rs"]
mod registry;
#[path = "e2e/rotation.rs"]
mod rotation;
#[path = "e2e/several.rs"]
mod several;
#[path = "e2e/volume.rs"]
mod volume;

use std::cell::Cell;
use std::time::Duration;

use cluster::Cluster;
use logs::Logs;
use registry::{Registry, USER};
use serde_json::{Value, json};

/// The longest time of a pull that the mirror can't serve: longer than a connection without an answer.
const FALLBACK: Duration = Duration::from_secs(30);

fn ephemeral() -> Value {
    json!({"storage": {"type": "Ephemeral"}})
}

/// A node pulls through a mirror that the operator deployed.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs: make e2e"]
async fn node_pulls_through_a_deployed_mirror() {
    let (cluster, registry) = Cluster::with_chart_and_registry().await;
    for tag in ["1", "2", "3"] {
        registry.push(&cluster.node, tag).await;
    }
    let mirror = cluster.mirror(ephemeral()).await;

    // The node pulls the first Pod's image through the mirror, and only the mirror asks the upstream.
    let before = Logs::read(&cluster, &registry).await;
    let first = cluster.start_pod("first", "1").await;
    let logs = Logs::read(&cluster, &registry).await.since(&before);
    logs.show(&format!("first Pod: running after {first:?}"));
    assert!(
        !logs.asked_of(&mirror).is_empty(),
        "the node asked the mirror nothing"
    );
    assert_eq!(logs.past_the_mirror(), Vec::<&String>::new());
    assert!(logs.blobs("miss").len() > 1, "{:?}", logs.mirror);
    assert!(logs.upstream_blobs() > 1, "{:?}", logs.upstream);
    assert!(
        !logs.upstream.iter().any(|line| line.starts_with(NODE)),
        "{:?}",
        logs.upstream
    );

    // The second, with nothing of the image left on the node.
    cluster.forget("first").await;
    let logs = with_pod(&cluster, &registry, "second", "1").await;
    assert_eq!(logs.upstream_blobs(), 0, "upstream was asked again for a blob");
    assert_eq!(logs.past_the_mirror(), Vec::<&String>::new());
    assert!(logs.blobs("hit").len() > 1, "{:?}", logs.mirror);

    cluster.programs_tell_what_alerts_and_dashboard_ask_for().await;
    cluster.plugin_reaches_pods_by_port_forward().await;

    registry.stop(&cluster.node).await;
    cluster.forget("second").await;
    let logs = with_pod(&cluster, &registry, "third, upstream stopped", "1").await;
    assert_eq!(logs.upstream, Vec::<String>::new());
    assert!(
        logs.blobs("hit").len() > 1,
        "the node had not forgotten the image: {:?}",
        logs.mirror
    );
    registry.run(&cluster.node).await;

    // The mirror gone: the node asks the registry itself, with the Pod's own credentials.
    cluster.scale_mirror(0).await;
    let before = Logs::read(&cluster, &registry).await;
    let fallback = cluster.start_pod("fallback", "2").await;
    let logs = Logs::read(&cluster, &registry).await.since(&before);
    logs.show(&format!("mirror stopped: running after {fallback:?}"));
    assert!(fallback < FALLBACK, "{fallback:?}");
    assert!(!logs.past_the_mirror().is_empty());
    assert!(
        logs.upstream.iter().any(|line| line.starts_with(NODE)),
        "{:?}",
        logs.upstream
    );

    // Without a fallback it does not start.
    cluster.never_fall_back().await;
    let before = Logs::read(&cluster, &registry).await;
    let why = cluster.refused_pod("never", "3").await;
    let logs = Logs::read(&cluster, &registry).await.since(&before);
    logs.show(&format!("mirror stopped, no fallback: {why}"));
    assert!(!logs.asked_of(&mirror).is_empty());
    assert_eq!(logs.past_the_mirror(), Vec::<&String>::new());
    assert_eq!(logs.upstream, Vec::<String>::new());

    // And with the mirror back it does.
    cluster.scale_mirror(1).await;
    cluster.wait_for_pod("never").await;
    cluster.deleting_the_namespace_leaves_nothing().await;
}

/// The address of the node's own requests; those of Pods come from Pod addresses.
const NODE: &str = "10.199.0.1 ";

/// Returns the log lines of node, mirror and registry while a Pod starts.
async fn with_pod(cluster: &Cluster, registry: &Registry, what: &str, tag: &str) -> Logs {
    let before = Logs::read(cluster, registry).await;
    let name = what.split(',').next().unwrap_or(what);
    let took = cluster.start_pod(name, tag).await;
    let logs = Logs::read(cluster, registry).await.since(&before);
    logs.show(&format!("{what}: running after {took:?}"));
    logs
}

/// Returns the number of passwords in a row; `make e2e ROTATIONS=20` for figures.
fn rotations() -> usize {
    let wanted = std::env::var("ROTATIONS").ok();
    wanted.and_then(|number| number.parse().ok()).unwrap_or(3)
}

/// Starts Pods, one after the other, of images that were never pulled, until it is done.
async fn start_pods(cluster: &Cluster, registry: &Registry, done: &Cell<bool>) -> usize {
    let mut number = 0;
    while !done.get() {
        let name = format!("pod-{number}");
        registry.push(&cluster.node, &name).await;
        cluster.passing_pod(&name, &name).await;
        number += 1;
    }
    number
}

/// Passwords change while pods pull, and a wrong one changes nothing.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs: make e2e"]
async fn password_rotation_fails_no_pull() {
    let (cluster, registry) = Cluster::with_chart_and_registry().await;
    cluster.mirror(ephemeral()).await;
    // So that a pull that fails is not made up for by another way.
    cluster.never_fall_back().await;
    let (pods, done) = (cluster.mirrors_pods().await, Cell::new(false));
    let passwords: Vec<_> = (0..rotations())
        .map(|number| format!("password-{number}"))
        .collect();
    let rotate_all = async {
        let mut times = Vec::new();
        let mut old = USER.1;
        for new in &passwords {
            times.push(cluster.rotate(&registry, old, new).await);
            old = new;
        }
        done.set(true);
        times
    };
    let (mut times, started) = tokio::join!(rotate_all, start_pods(&cluster, &registry, &done));
    times.sort();
    println!(
        "{} rotations while {started} Pods pulled, from kubectl apply to the status: p50 {:?}, p99 (longest) {:?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(cluster.mirrors_events().await.contains("CredentialsRotated"));

    let (version, _) = cluster.credentials().await;
    cluster.set_password("wrong").await;
    cluster
        .credentials_after(&version, "False UpstreamRejected")
        .await;
    registry.push(&cluster.node, "after").await;
    cluster.passing_pod("after", "after").await;
    assert!(cluster.mirrors_events().await.contains("UpstreamRejected"));
    assert_eq!(cluster.failed_pulls().await, "");
    assert_eq!(
        cluster.mirrors_pods().await,
        pods,
        "a Pod was replaced or restarted"
    );
}
