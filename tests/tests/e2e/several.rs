//! More than one: mirrors that are upgraded one after the other, replicas with a claim each.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::wait;

use crate::cluster::{Cluster, SOON};
use crate::day_two::Day;
use crate::ephemeral;
use crate::mirror::{MIRRORS, NAME};
use crate::registry::{self, Registry};

const OTHERS: [&str; 2] = ["second", "third"];
/// A class of volumes that are there before.
const CLASS: &str = "several";

impl Cluster {
    /// Makes another mirror of the same upstream, and returns its address.
    async fn another_mirror(&self, name: &str) -> String {
        self.apply(&[
            json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": name, "namespace": "mirrors"}, "spec": {
                "storage": {"type": "Ephemeral"},
                "upstreams": [{"host": NAME, "remoteURL": registry::url(),
                    "credentialsSecretRef": {"name": "upstream"}, "insecureAllowHTTPCredentials": true}]}}),
        ])
        .await;
        let mirror = format!("rmir/{name}");
        self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &mirror,
            MIRRORS,
            "--timeout=120s",
        ])
        .await;
        let path = "jsonpath={.status.endpoint.url}";
        self.kubectl(&["get", &mirror, MIRRORS, "-o", path]).await
    }

    /// Returns the number of mirrors with each of these as the reason of `Progressing`.
    async fn progressing(&self, reasons: [&str; 2]) -> [usize; 2] {
        let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Progressing\")].reason}";
        let all = self.kubectl(&["get", "rmir", MIRRORS, "-o", path]).await;
        reasons.map(|wanted| all.split_whitespace().filter(|reason| *reason == wanted).count())
    }

    /// The image of each mirror's Deployment.
    async fn mirrors_images(&self) -> Vec<String> {
        let path = "jsonpath={.items[*].spec.template.spec.containers[0].image}";
        let all = self.kubectl(&["get", "deployments", MIRRORS, "-o", path]).await;
        all.split_whitespace().map(str::to_owned).collect()
    }

    async fn until_progressing(&self, reasons: [&str; 2], counts: [usize; 2]) {
        let so = async || (self.progressing(reasons).await == counts).then_some(());
        if let Err(error) = wait::until(reasons[0], SOON, so).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
    }

    /// Returns the directories of the volumes.
    fn volumes(&self, count: usize) -> Vec<PathBuf> {
        let one = |number| self.node.directory().join(format!("several-{number}"));
        (0..count).map(one).collect()
    }

    async fn provide_volumes(&self, count: usize) {
        let mut objects = vec![
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
            "provisioner": "test.invalid/none"}),
        ];
        for path in self.volumes(count) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let path = path.display().to_string();
            self.run(&["mkdir", "-m", "777", &path]).await;
            objects.push(
                json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
                "capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": path}}}),
            );
        }
        self.apply(&objects).await;
    }

    /// Returns the addresses of the mirror's Pods.
    pub(crate) async fn mirrors_addresses(&self) -> Vec<String> {
        let path = "jsonpath={.items[*].status.podIP}";
        let all = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
        all.split_whitespace()
            .map(|ip| format!("http://{ip}:5000"))
            .collect()
    }
}

/// An upgrade of three mirrors stops at the first that fails, and no pull fails.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs, and some minutes: make e2e-day2"]
async fn day_two_failed_upgrade_stops_at_first_mirror() {
    let mut day = Day::begin(ephemeral()).await;
    for name in OTHERS {
        let address = day.cluster.another_mirror(name).await;
        day.others.push(address);
    }
    let pods = day.cluster.mirrors_pods().await;
    let missing = "registry-mirror:missing";
    day.during(
        "three mirrors upgraded to no image",
        Duration::ZERO,
        async |day| {
            let values =
                format!("--set=mirrorImage={missing},upgrades.maxConcurrent=1,upgrades.progressDeadline=15s");
            day.cluster.upgrade(&values).await;
            day.cluster
                .until_progressing(["UpgradeFailed", "UpgradeWaiting"], [1, 2])
                .await;
            let images = day.cluster.mirrors_images().await;
            let broken = images.iter().filter(|image| *image == missing).count();
            assert_eq!((broken, images.len()), (1, 3), "{images:?}");
        },
    )
    .await;
    day.during("rolled back", Duration::ZERO, async |day| {
        day.cluster.helm(&["rollback", "registry-mirror", "1"]).await;
        day.cluster.mirror_runs("registry-mirror:0.1.0").await;
        day.cluster
            .until_progressing(["UpgradeFailed", "UpgradeWaiting"], [0, 0])
            .await;
    })
    .await;
    assert_eq!(
        day.cluster.mirrors_pods().await,
        pods,
        "a Pod that served was replaced or restarted"
    );
    day.end();
}

fn on_claims() -> Value {
    json!({"storage": {"type": "PersistentVolumeClaim",
        "persistentVolumeClaim": {"size": "64Mi", "storageClassName": CLASS}}})
}

/// Each of three replicas has a PersistentVolumeClaim that it fills.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs, and some minutes: make e2e-day2"]
async fn day_two_each_replica_fills_its_own_pvc() {
    let (cluster, registry): (_, Registry) = Cluster::with_chart_and_registry().await;
    cluster.provide_volumes(3).await;
    let mut day = Day::with(cluster, registry, on_claims()).await;
    let first = day.cluster.mirrors_pods().await;
    day.during("replicas 1 to 3, on claims", Duration::ZERO, async |day| {
        day.cluster.scale_mirror(3).await;
    })
    .await;
    assert!(
        day.cluster.mirrors_pods().await.contains(first.trim()),
        "the first was replaced"
    );
    let path = "jsonpath={.items[*].status.phase}";
    let claims = day.cluster.kubectl(&["get", "pvc", MIRRORS, "-o", path]).await;
    assert_eq!(claims, "Bound Bound Bound");
    let addresses = day.cluster.mirrors_addresses().await;
    assert_eq!(addresses.len(), 3);
    for address in addresses {
        day.cluster.pull(&address, day.tag(0)).await.unwrap();
    }
    for volume in day.cluster.volumes(3) {
        let blobs = volume.join("docker/registry/v2/blobs/sha256");
        assert!(
            fs::read_dir(&blobs).is_ok_and(|mut blobs| blobs.next().is_some()),
            "{}",
            blobs.display()
        );
    }
    day.end();
}
