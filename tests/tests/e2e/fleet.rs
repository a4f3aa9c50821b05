//! Replicas that share what they pull, found by the names of their Service.

use std::cell::Cell;
use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::{Value, json};
use testbed::wait;

use crate::cluster::{Cluster, SOON};
use crate::mirror::MIRRORS;
use crate::pulls::meanwhile;
use crate::registry::Registry;

const TAGS: [&str; 4] = ["fleet-0", "fleet-1", "fleet-2", "fleet-3"];

impl Cluster {
    /// Waits until each of the replicas reports all others as serving.
    async fn until_peers(&self, replicas: usize) {
        let all_serve = async || {
            let addresses = self.mirrors_addresses().await;
            let peers = join_all(addresses.iter().map(|address| self.serving_peers(address))).await;
            let is_whole = peers.len() == replicas && peers.iter().all(|count| *count == replicas - 1);
            is_whole.then_some(())
        };
        if let Err(error) = wait::until("replicas that found each other", SOON, all_serve).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
    }

    /// Returns the number of other replicas that a replica reports as serving.
    async fn serving_peers(&self, address: &str) -> usize {
        let status = format!("{}/status", address.replace(":5000", ":5001"));
        let Ok(status) = self.node.run(&["curl", "-sf", &status]).await else {
            return 0;
        };
        let status: Value = serde_json::from_str(&status).unwrap();
        let peers = status["peers"].as_array().into_iter().flatten();
        peers.filter(|peer| peer["state"] == "serving").count()
    }
}

/// Returns the number of blobs that the registry sent, and how many of them differ.
fn sent_blobs(registry: &Registry) -> (usize, usize) {
    let lines = registry.pulls();
    let sent: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("\"GET /v2/team/app/blobs/") && line.contains("\" 200 "))
        .filter_map(|line| line.split("/blobs/").nth(1)?.split_whitespace().next())
        .collect();
    (sent.len(), sent.iter().collect::<BTreeSet<_>>().len())
}

/// Three replicas fetch each blob of cold images once. A rolling update and scaling fail no pull.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs: make e2e"]
async fn replicas_share_downloads_while_rolled_and_scaled() {
    let (cluster, registry) = Cluster::with_chart_and_registry().await;
    let spec = json!({"storage": {"type": "Ephemeral"}, "replicas": 3});
    let mirror = cluster.mirror(spec).await;
    cluster.until_peers(3).await;
    let addresses = cluster.mirrors_addresses().await;
    for tag in TAGS {
        registry.push(&cluster.node, tag).await;
        let pulls = addresses.iter().map(|address| cluster.pull(address, tag));
        for pulled in join_all(pulls).await {
            pulled.unwrap_or_else(|error| panic!("{error}"));
        }
    }
    let (sent, blobs) = sent_blobs(&registry);
    println!("3 cold replicas: the registry sent {sent} blobs, {blobs} different ones");
    assert!(blobs > TAGS.len(), "{:?}", registry.pulls());
    assert_eq!(sent, blobs, "a blob was sent twice: {:?}", registry.pulls());

    let done = Cell::new(false);
    let changes = async {
        cluster
            .kubectl(&["rollout", "restart", "deployment/hub", MIRRORS])
            .await;
        let finished = ["rollout", "status", "deployment/hub", MIRRORS, "--timeout=120s"];
        cluster.kubectl(&finished).await;
        for replicas in [5, 1, 2] {
            cluster.scale_mirror(replicas).await;
        }
        cluster.until_peers(2).await;
        done.set(true);
    };
    let pulling = meanwhile(&done, async |number| {
        cluster.pull(&mirror, TAGS[number % TAGS.len()]).await
    });
    let ((), record) = tokio::join!(changes, pulling);
    let (sent_in_all, _) = sent_blobs(&registry);
    println!(
        "rolled, scaled 3 to 5 to 1 to 2 during {} pulls, {} of which failed: the registry sent {sent_in_all} blobs in all",
        record.pulls, record.failed
    );
    assert_eq!(record.failed, 0, "{:#?}", record.failures);
    // A blob is fetched again only if all replicas that had it ended.
    assert!(sent_in_all <= 2 * blobs, "{:?}", registry.pulls());
}
