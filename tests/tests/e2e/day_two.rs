//! The events of a cluster's year, while a client pulls all the time: each test measures the time in which pulls fail,
//! at the mirror's own address and on a node with a fallback, and compares it with the limit stated here. `make
//! e2e-day2`.

use std::cell::Cell;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::binaries::workspace;
use testbed::pki::Authority;
use testbed::{node, wait};

use crate::cluster::{Cluster, SOON};
use crate::ephemeral;
use crate::mirror::{MIRRORS, NAME};
use crate::pulls::{Record, meanwhile};
use crate::registry::Registry;
use crate::volume::CLASS;

/// Of the blob in whose middle the mirror is ended.
const MEBIBYTES: u32 = 512;
const IMAGE: &str = "docker.io/library/registry-mirror";

/// The longest time of failing pulls: a restart of a container, a rollout or a node on a busy machine of two cores.
const BRIEFLY: Duration = Duration::from_secs(10);
/// A pull that fails is to fail sooner: it was refused, and not led to an address that is gone.
const LONG: Duration = Duration::from_secs(10);
const WHILE_A_CONTAINER_STARTS: Duration = Duration::from_secs(30);
const WHILE_A_NODE_STARTS: Duration = Duration::from_mins(1);

/// A cluster in which nodes pull.
pub(crate) struct Day {
    pub(crate) cluster: Cluster,
    registry: Registry,
    pub(crate) mirror: String,
    /// Addresses that are pulled from in turn with the first.
    pub(crate) others: Vec<String>,
    tags: Vec<String>,
    lines: Vec<(String, Duration, Record)>,
}

impl Day {
    pub(crate) async fn begin(spec: Value) -> Self {
        let (cluster, registry) = Cluster::with_chart_and_registry().await;
        Self::with(cluster, registry, spec).await
    }

    pub(crate) async fn with(cluster: Cluster, registry: Registry, spec: Value) -> Self {
        let mirror = cluster.mirror(spec).await;
        println!(
            "{:44} {:>23} {:>23} {:>6}",
            "pulls, failed, longest time in which they failed",
            "by the mirror's address",
            "by a node",
            "bound"
        );
        let (tags, lines) = (Vec::new(), Vec::new());
        Self {
            cluster,
            registry,
            mirror,
            others: Vec::new(),
            tags,
            lines,
        }
    }

    /// Does something during both kinds of pulls: of images that the mirror has, and of others.
    pub(crate) async fn during(&mut self, what: &str, bound: Duration, happens: impl AsyncFnOnce(&Self)) {
        self.push_more().await;
        let done = Cell::new(false);
        let happening = async {
            happens(self).await;
            done.set(true);
        };
        let by_address = meanwhile(&done, async |number| self.pull_by_address(number).await);
        let as_node = meanwhile(&done, async |number| self.pull_as_node(number).await);
        let ((), by_address, as_node) = tokio::join!(happening, by_address, as_node);
        self.record(what, bound, Some(by_address), as_node);
    }

    /// The same where the mirror is not to answer: nodes fall back.
    async fn without_a_mirror(&mut self, what: &str, bound: Duration, happens: impl AsyncFnOnce(&Self)) {
        self.push_more().await;
        let done = Cell::new(false);
        let happening = async {
            happens(self).await;
            done.set(true);
        };
        let as_node = meanwhile(&done, async |number| self.pull_as_node(number).await);
        let ((), as_node) = tokio::join!(happening, as_node);
        self.record(what, bound, None, as_node);
    }

    async fn push_more(&mut self) {
        for _ in 0..3 {
            let tag = format!("day-{}", self.tags.len());
            self.registry.push(&self.cluster.node, &tag).await;
            self.tags.push(tag);
        }
    }

    /// The newest first, and then around.
    pub(crate) fn tag(&self, number: usize) -> &str {
        &self.tags[self.tags.len() - 1 - number % self.tags.len()]
    }

    async fn pull_by_address(&self, number: usize) -> Result<(), node::Error> {
        let all: Vec<_> = [&self.mirror].into_iter().chain(&self.others).collect();
        self.cluster.pull(all[number % all.len()], self.tag(number)).await
    }

    async fn pull_as_node(&self, number: usize) -> Result<(), node::Error> {
        self.cluster.pull_as_node(self.tag(number)).await
    }

    fn record(&mut self, what: &str, bound: Duration, mirror: Option<Record>, node: Record) {
        let columns = |record: &Record| {
            let longest = format!("{:.1} s", record.longest.as_secs_f32());
            format!("{:>6} {:>6} {longest:>9}", record.pulls, record.failed)
        };
        let by_address = mirror.as_ref().map_or(format!("{:>23}", "-"), columns);
        println!(
            "{what:44} {by_address} {} {:>4} s",
            columns(&node),
            bound.as_secs()
        );
        for record in mirror.into_iter().chain([node]) {
            for failure in &record.failures {
                println!("    {failure}");
            }
            self.lines.push((what.to_owned(), bound, record));
        }
    }

    /// A refused client can use another server; a client without an answer waits.
    fn assert_none_hung(&self, what: &str) {
        for (_, _, record) in self.lines.iter().filter(|(line, ..)| line == what) {
            assert!(record.hung < LONG, "{what}: {:#?}", record.failures);
        }
    }

    /// Holds what was measured to what is stated.
    pub(crate) fn end(self) {
        for (what, bound, record) in self.lines {
            assert!(record.longest <= bound, "{what}: {:#?}", record.failures);
        }
    }
}

impl Cluster {
    /// Ends a mirror with a signal that it can't answer while it fetches a blob; the blob's client then asks again.
    async fn kill_in_mid_fill(&self, mirror: &str, blob: &str) {
        let url = format!("{mirror}/v2/{NAME}/team/app/blobs/{blob}");
        let file = self.scratch.path().join("blob");
        let path = file.display().to_string();
        let process = self.run(&["pgrep", "-x", "mirror"]).await;
        let mut curl = self.node.command("curl");
        curl.args(["-sf", "-o", &path, &url]).stdin(Stdio::null());
        let mut curl = curl.spawn().unwrap();
        let begun = async || fs::metadata(&file).is_ok_and(|file| file.len() > 0).then_some(());
        wait::until("first byte", SOON, begun).await.unwrap();
        self.run(&["kill", "-KILL", process.trim()]).await;
        assert!(
            !curl.wait().await.unwrap().success(),
            "the blob was there before the mirror's end"
        );
        let whole = format!("curl -sf {url} | sha256sum");
        let again = async || {
            let sum = self.node.run(&["sh", "-c", &whole]).await.ok()?;
            blob.ends_with(sum.split_whitespace().next()?).then_some(())
        };
        wait::until("whole blob", SOON, again).await.unwrap();
        let pods = self.mirrors_pods().await;
        assert!(pods.trim_end().ends_with(" 1"), "restarted once: {pods}");
        fs::remove_file(file).unwrap();
    }

    /// The kubelet last: it ends where there is no containerd.
    async fn restart_node(&self) {
        self.restart("containerd").await;
        let answers = async || self.node.run(&["ctr", "version"]).await.ok();
        wait::until("containerd", SOON, answers).await.unwrap();
        self.restart("kubelet").await;
    }

    async fn restart(&self, program: &str) {
        let restart = workspace().join("tests/cluster/restart").display().to_string();
        self.run(&[&restart, program]).await;
    }
}

/// No operation stops pulls for longer than documented.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs, and some minutes: make e2e-day2"]
async fn day_two_operations_keep_pull_downtime_bounded() {
    let mut day = Day::begin(ephemeral()).await;
    let blob = day.registry.push_blob(&day.cluster.node, MEBIBYTES).await;
    day.during(
        "mirror killed in mid-fill",
        WHILE_A_CONTAINER_STARTS,
        async |day| {
            day.cluster.kill_in_mid_fill(&day.mirror, &blob).await;
        },
    )
    .await;
    day.during("replicas 1 to 3", BRIEFLY, async |day| {
        day.cluster.scale_mirror(3).await;
    })
    .await;
    day.during(
        "containerd and kubelet restarted",
        WHILE_A_NODE_STARTS,
        async |day| {
            let pods = day.cluster.mirrors_pods().await;
            day.cluster.restart_node().await;
            day.cluster.start_pod("after-restart", day.tag(0)).await;
            assert_eq!(
                day.cluster.mirrors_pods().await,
                pods,
                "a mirror's Pod was replaced or restarted"
            );
        },
    )
    .await;
    day.without_a_mirror("mirror deleted", WHILE_A_CONTAINER_STARTS, async |day| {
        day.cluster.delete_mirror().await;
    })
    .await;
    day.mirror = day.cluster.mirror(ephemeral()).await;

    let (now, next) = (format!("{IMAGE}:0.1.0"), format!("{IMAGE}:next"));
    day.cluster
        .run(&["ctr", "-n", "k8s.io", "images", "tag", &now, &next])
        .await;
    day.during(
        "operator and mirror upgraded",
        WHILE_A_CONTAINER_STARTS,
        async |day| {
            day.cluster.upgrade("--set=image.tag=next").await;
            day.cluster.mirror_runs("registry-mirror:next").await;
        },
    )
    .await;
    day.during(
        "upgraded to an image that is not there",
        WHILE_A_CONTAINER_STARTS,
        async |day| {
            day.cluster
                .upgrade("--set=mirrorImage=registry-mirror:missing")
                .await;
            day.cluster.mirror_lacks_its_image().await;
        },
    )
    .await;
    day.during("rolled back", WHILE_A_CONTAINER_STARTS, async |day| {
        day.cluster.helm(&["rollback", "registry-mirror", "1"]).await;
        day.cluster.mirror_runs("registry-mirror:0.1.0").await;
    })
    .await;
    day.during(
        "its Pod deleted by force",
        WHILE_A_CONTAINER_STARTS,
        async |day| {
            let force = ["delete", "pods", MIRRORS, "--all", "--grace-period=0", "--force"];
            day.cluster.kubectl(&force).await;
            day.cluster.mirror_runs("registry-mirror:0.1.0").await;
        },
    )
    .await;
    day.during("chart uninstalled", BRIEFLY, async |day| {
        let pods = day.cluster.mirrors_pods().await;
        day.cluster.helm(&["uninstall", "registry-mirror"]).await;
        assert_eq!(
            day.cluster.mirrors_pods().await,
            pods,
            "a mirror's Pod went with the operator"
        );
    })
    .await;
    day.during(
        "its Pod deleted, without an operator",
        WHILE_A_CONTAINER_STARTS,
        async |day| {
            day.cluster.kubectl(&["delete", "pods", MIRRORS, "--all"]).await;
            day.cluster.mirror_runs("registry-mirror:0.1.0").await;
        },
    )
    .await;
    day.end();
}

/// The address of the mirror with TLS: its certificate has to name an address.
const ADDRESS: &str = "10.96.77.7";

fn by_tls() -> Value {
    json!({"storage": {"type": "Ephemeral"}, "service": {"clusterIP": ADDRESS},
        "tls": {"mode": "Secret", "secretName": "serving"}})
}

impl Cluster {
    /// Gives the mirror another certificate of this authority, and returns it.
    async fn certify(&self, authority: &Authority) -> String {
        let leaf = authority.serving(&[ADDRESS]).unwrap();
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mirrors"}}),
            json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": {"name": "serving", "namespace": "mirrors"},
                "stringData": {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": authority.certificate()}}),
        ])
        .await;
        leaf.certificate
    }

    /// Waits until the mirror shows this certificate.
    async fn shows(&self, certificate: &str) {
        let served =
            format!("openssl s_client -connect {ADDRESS}:5000 </dev/null 2>/dev/null | openssl x509");
        let shown = async || {
            let now = self.node.run(&["sh", "-c", &served]).await.ok()?;
            (now.replace(['\r', '\n'], "") == certificate.replace(['\r', '\n'], "")).then_some(())
        };
        if let Err(error) = wait::until("new certificate", SOON, shown).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
    }
}

/// The renewal of a certificate fails no pull.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs, and some minutes: make e2e-day2"]
async fn day_two_certificate_renewal_fails_no_pull() {
    let (cluster, registry) = Cluster::with_chart_and_registry().await;
    let authority = Authority::new("of the mirror").unwrap();
    let trusted = cluster.trusted();
    fs::create_dir_all(&trusted).unwrap();
    fs::write(trusted.join("ca.crt"), authority.certificate()).unwrap();
    cluster.certify(&authority).await;
    let mut day = Day::with(cluster, registry, by_tls()).await;
    assert!(day.mirror.starts_with("https://"), "{}", day.mirror);
    let pods = day.cluster.mirrors_pods().await;
    day.during("certificate rotated", Duration::ZERO, async |day| {
        let certificate = day.cluster.certify(&authority).await;
        day.cluster.shows(&certificate).await;
    })
    .await;
    assert_eq!(
        day.cluster.mirrors_pods().await,
        pods,
        "a Pod was replaced or restarted"
    );
    day.end();
}

/// The size of the volume, before and after it grows.
const SMALL: u32 = 64;
const LARGER: u32 = 256;

fn on_a_claim(mebibytes: u32) -> Value {
    json!({"storage": {"type": "PersistentVolumeClaim",
        "persistentVolumeClaim": {"size": format!("{mebibytes}Mi"), "storageClassName": CLASS}}})
}

impl Cluster {
    async fn mirrors_pods_differ_from(&self, before: &str) {
        let differ = async || (self.mirrors_pods().await != before).then_some(());
        wait::until("roll-out", SOON, differ).await.unwrap();
    }

    /// Waits until the mirror says so of its storage.
    async fn storage_is(&self, reason: &str) {
        let there = async || (self.mirrors_reason("StorageReady").await == reason).then_some(());
        if let Err(error) = wait::until(reason, SOON, there).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
    }
}

/// A full volume grows without a failed pull, and the pod is restarted.
#[tokio::test]
#[ignore = "needs root, an image and a node's programs, and some minutes: make e2e-day2"]
async fn day_two_full_volume_grows_without_failed_pull() {
    let (cluster, registry) = Cluster::with_chart_and_registry().await;
    cluster.provide_volume(SMALL).await;
    let mut day = Day::with(cluster, registry, on_a_claim(SMALL)).await;
    let pods = day.cluster.mirrors_pods().await;
    // While the mirror has nothing that it could give up.
    day.cluster.fill_volume().await;
    day.during("volume full", Duration::ZERO, async |day| {
        day.cluster.storage_is("Full").await;
    })
    .await;
    day.during("volume grown", Duration::ZERO, async |day| {
        day.cluster.change_mirror(&on_a_claim(LARGER)).await;
        day.cluster.resize_volume(LARGER).await;
        day.cluster.storage_is("VolumeReady").await;
    })
    .await;
    assert_eq!(
        day.cluster.mirrors_pods().await,
        pods,
        "a Pod was replaced or restarted"
    );
    let rolled = "its only Pod rolled, three times";
    day.during(rolled, WHILE_A_CONTAINER_STARTS, async |day| {
        for format in ["text", "json", "text"] {
            let before = day.cluster.mirrors_pods().await;
            let format = json!({"observability": {"logFormat": format}});
            day.cluster.change_mirror(&format).await;
            day.cluster.mirrors_pods_differ_from(&before).await;
            day.cluster.mirror_runs("registry-mirror:0.1.0").await;
        }
    })
    .await;
    day.assert_none_hung(rolled);
    day.end();
}
