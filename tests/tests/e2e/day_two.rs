//! What happens to a cluster in a year, done to one that pulls all the time: how long pulls fail, by the mirror's own
//! address and as a node pulls that may fall back, and that it is never longer than stated here. `make e2e-day2`.

use std::cell::Cell;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use testbed::binaries::workspace;
use testbed::{node, wait};

use crate::cluster::{Cluster, MIRRORS, NAME, SOON};
use crate::registry::{Registry, USER, user};

/// A pull that takes longer has failed.
const PULL: &str = "20";
/// Of the blob in whose middle the mirror is ended.
const MEBIBYTES: u32 = 512;
const IMAGE: &str = "docker.io/library/registry-mirror";

/// How long pulls may fail: while a container, a roll-out or a node comes back on a busy machine of two cores.
const BRIEFLY: Duration = Duration::from_secs(10);
const WHILE_A_CONTAINER_STARTS: Duration = Duration::from_secs(30);
const WHILE_A_NODE_STARTS: Duration = Duration::from_mins(1);

/// How pulls of one kind went.
#[derive(Default)]
struct Record {
    pulls: usize,
    failed: usize,
    /// From the start of the first pull that failed to the end of the next that did not.
    longest: Duration,
    first_failure: String,
}

/// Pulls again and again until what happens is done, and from then until a pull succeeds.
async fn pulls(done: &Cell<bool>, pull: impl AsyncFn(usize) -> Result<(), node::Error>) -> Record {
    let mut record = Record::default();
    let mut failing: Option<Instant> = None;
    loop {
        let (begin, last) = (Instant::now(), done.get());
        let outcome = pull(record.pulls).await;
        record.pulls += 1;
        if let Err(error) = &outcome {
            record.failed += 1;
            failing.get_or_insert(begin);
            if record.first_failure.is_empty() {
                record.first_failure = error.to_string();
            }
        }
        record.longest = failing.map_or(record.longest, |since| record.longest.max(since.elapsed()));
        let given_up = last && record.longest > WHILE_A_NODE_STARTS;
        if outcome.is_ok() {
            failing = None;
        }
        if given_up || (last && outcome.is_ok()) {
            return record;
        }
    }
}

/// A cluster in which nodes pull.
struct Day {
    cluster: Cluster,
    registry: Registry,
    mirror: String,
    tags: Vec<String>,
    lines: Vec<(String, Duration, Record)>,
}

impl Day {
    async fn begin() -> Self {
        let cluster = Cluster::up("rmir-e2e").await;
        let registry = Registry::start(&cluster.node).await;
        cluster.install().await;
        let mirror = cluster.mirror().await;
        cluster.follow_published_hosts().await;
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
            tags,
            lines,
        }
    }

    /// Does something while both kinds of pulls go on, of images that the mirror has and such as it hasn't.
    async fn during(&mut self, what: &str, bound: Duration, happens: impl AsyncFnOnce(&Self)) {
        self.push_more().await;
        let done = Cell::new(false);
        let happening = async {
            happens(self).await;
            done.set(true);
        };
        let by_address = pulls(&done, async |number| self.pull_by_address(number).await);
        let as_node = pulls(&done, async |number| self.pull_as_node(number).await);
        let ((), by_address, as_node) = tokio::join!(happening, by_address, as_node);
        self.note(what, bound, Some(by_address), as_node);
    }

    /// The same where the mirror is not to answer: nodes fall back.
    async fn without_a_mirror(&mut self, what: &str, bound: Duration, happens: impl AsyncFnOnce(&Self)) {
        self.push_more().await;
        let done = Cell::new(false);
        let happening = async {
            happens(self).await;
            done.set(true);
        };
        let as_node = pulls(&done, async |number| self.pull_as_node(number).await);
        let ((), as_node) = tokio::join!(happening, as_node);
        self.note(what, bound, None, as_node);
    }

    async fn push_more(&mut self) {
        for _ in 0..3 {
            let tag = format!("day-{}", self.tags.len());
            self.registry.push(&self.cluster.node, &tag).await;
            self.tags.push(tag);
        }
    }

    /// The newest first, and then around.
    fn tag(&self, number: usize) -> &str {
        &self.tags[self.tags.len() - 1 - number % self.tags.len()]
    }

    async fn pull_by_address(&self, number: usize) -> Result<(), node::Error> {
        let image = format!(
            "{}/{NAME}/team/app:{}",
            self.mirror.replace("http://", "docker://"),
            self.tag(number)
        );
        let directory = self.cluster.scratch.path().join("day");
        let to = format!("oci:{}:pulled", directory.display());
        let pulled = self
            .cluster
            .node
            .run(&[
                "timeout",
                PULL,
                "skopeo",
                "--insecure-policy",
                "copy",
                "-q",
                "--src-no-creds",
                "--src-tls-verify=false",
                &image,
                &to,
            ])
            .await;
        // What is there is not pulled again.
        let _ = fs::remove_dir_all(directory);
        pulled.map(drop)
    }

    /// containerd pulls by its `hosts.toml`, and has nothing of the image before.
    async fn pull_as_node(&self, number: usize) -> Result<(), node::Error> {
        let image = format!("{NAME}/team/app:{}", self.tag(number));
        let hosts = self
            .cluster
            .node
            .directory()
            .join("certs.d")
            .display()
            .to_string();
        let user = format!("{}:{}", user(USER.1), USER.1);
        let ctr = ["timeout", PULL, "ctr", "--namespace=day", "images"];
        let pull = [
            &ctr[..],
            &["pull", "--hosts-dir", &hosts, "--user", &user, &image],
        ]
        .concat();
        let forget = [&ctr[..], &["rm", "--sync", &image]].concat();
        let pulled = self.cluster.node.run(&pull).await;
        let _ = self.cluster.node.run(&forget).await;
        pulled.map(drop)
    }

    fn note(&mut self, what: &str, bound: Duration, mirror: Option<Record>, node: Record) {
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
            self.lines.push((what.to_owned(), bound, record));
        }
    }

    /// Holds what was measured to what is stated.
    fn end(self) {
        for (what, bound, record) in self.lines {
            assert!(record.longest <= bound, "{what}: {}", record.first_failure);
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
        assert!(
            self.pods().await.trim_end().ends_with(" 1"),
            "restarted once: {}",
            self.pods().await
        );
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
        let name = "CLUSTER_NAME=rmir-e2e";
        let state = format!("CLUSTER_RUN={}", self.node.directory().display());
        self.run(&["env", name, &state, &restart, program]).await;
    }

    /// Deletes the mirror and waits until nothing answers for it.
    async fn delete_mirror(&self) {
        self.kubectl(&["delete", "rmir", "hub", MIRRORS]).await;
        let gone = async || {
            let left = self
                .kubectl(&["get", "pods,services,configmaps", MIRRORS, "-o", "name"])
                .await;
            (!left.contains("hub")).then_some(())
        };
        wait::until("end of the mirror's Pods", SOON, gone).await.unwrap();
    }

    async fn upgrade(&self, values: &str) {
        self.helm(&["upgrade", "registry-mirror", "CHART", values]).await;
    }

    /// Waits until the mirror's Pods are of this image, all of them, and ready.
    async fn mirror_runs(&self, image: &str) {
        let path = "jsonpath={range .items[*]}{.spec.containers[0].image} {.status.containerStatuses[0].ready}{\"\\n\"}{end}";
        let all = async || {
            let pods = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
            let fits = |line: &str| line == format!("{image} true");
            (!pods.is_empty() && pods.lines().all(fits)).then_some(())
        };
        if let Err(error) = wait::until(image, SOON, all).await {
            panic!(
                "{error}\n{}",
                self.kubectl(&["describe", "rmir,pods", MIRRORS]).await
            );
        }
    }

    /// Waits until a Pod of the mirror can't start for want of its image.
    async fn mirror_lacks_its_image(&self) {
        let path = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
        let lacks = async || {
            let waiting = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
            waiting.contains("Image").then_some(())
        };
        wait::until("Pod without an image", SOON, lacks).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root, an image and a node's programs, and some minutes: make e2e-day2"]
async fn day_two_never_stops_pulls_for_longer_than_stated() {
    let mut day = Day::begin().await;
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
            day.cluster.restart_node().await;
            day.cluster.start_pod("after-restart", day.tag(0)).await;
        },
    )
    .await;
    day.without_a_mirror("mirror deleted", WHILE_A_CONTAINER_STARTS, async |day| {
        day.cluster.delete_mirror().await;
    })
    .await;
    day.mirror = day.cluster.mirror().await;
    day.cluster.follow_published_hosts().await;

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
    day.during("chart uninstalled", BRIEFLY, async |day| {
        let pods = day.cluster.pods().await;
        day.cluster.helm(&["uninstall", "registry-mirror"]).await;
        assert_eq!(
            day.cluster.pods().await,
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
