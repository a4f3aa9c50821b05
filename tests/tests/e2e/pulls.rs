//! Pulls, again and again, and for how long they fail.

use std::cell::Cell;
use std::fs;
use std::time::{Duration, Instant};

use testbed::node;

use crate::cluster::Cluster;
use crate::mirror::NAME;
use crate::registry::{USER, user};

/// A pull that takes longer has failed.
const LIMIT: &str = "20";
/// The time after the end of an event after which failing pulls are not tried any more.
const HOPELESS: Duration = Duration::from_mins(2);

/// The counts of pulls of one kind, with their failures.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) pulls: usize,
    pub(crate) failed: usize,
    /// From the start of the first pull that failed to the end of the next that did not.
    pub(crate) longest: Duration,
    /// The duration of the slowest failed pull.
    pub(crate) hung: Duration,
    /// The distinct errors, each with the duration of its first pull.
    pub(crate) failures: Vec<String>,
}

impl Record {
    fn add_failure(&mut self, took: Duration, error: &node::Error) {
        self.failed += 1;
        self.hung = self.hung.max(took);
        let error = error.to_string();
        // Of Go's, the cause is last; what precedes it names the image.
        let way = error.trim_end().rsplit(": ").next().unwrap_or_default();
        if !self.failures.iter().any(|failure| failure.ends_with(way)) {
            self.failures
                .push(format!("after {:.1} s: {way}", took.as_secs_f32()));
        }
    }
}

/// Pulls until what happens is done, and from then until a pull succeeds.
pub(crate) async fn meanwhile(
    done: &Cell<bool>,
    pull: impl AsyncFn(usize) -> Result<(), node::Error>,
) -> Record {
    let mut record = Record::default();
    let mut failing: Option<Instant> = None;
    loop {
        let (begin, last) = (Instant::now(), done.get());
        let outcome = pull(record.pulls).await;
        record.pulls += 1;
        if let Err(error) = &outcome {
            failing.get_or_insert(begin);
            record.add_failure(begin.elapsed(), error);
        }
        record.longest = failing.map_or(record.longest, |since| record.longest.max(since.elapsed()));
        let given_up = last && failing.is_some_and(|since| since.elapsed() > HOPELESS);
        if outcome.is_ok() {
            failing = None;
        }
        if given_up || (last && outcome.is_ok()) {
            return record;
        }
    }
}

impl Cluster {
    /// Pulls a tag through the mirror, as any client would.
    pub(crate) async fn pull(&self, mirror: &str, tag: &str) -> Result<(), node::Error> {
        let (scheme, address) = mirror.split_once("://").unwrap();
        let trust = match scheme {
            "https" => format!("--src-cert-dir={}", self.trusted().display()),
            _ => "--src-tls-verify=false".to_owned(),
        };
        let image = format!("docker://{address}/{NAME}/team/app:{tag}");
        let directory = self
            .scratch
            .path()
            .join(format!("pulled-{}-{tag}", address.replace(':', "-")));
        let to = format!("oci:{}:pulled", directory.display());
        let skopeo = ["timeout", LIMIT, "skopeo", "--insecure-policy", "copy", "-q"];
        let what = ["--src-no-creds", &trust, &image, &to];
        let pulled = self.node.run(&[&skopeo[..], &what].concat()).await;
        // skopeo does not pull existing blobs again.
        let _ = fs::remove_dir_all(directory);
        pulled.map(drop)
    }

    /// The directory with the authority of the mirror's certificate.
    pub(crate) fn trusted(&self) -> std::path::PathBuf {
        self.scratch.path().join("trusted")
    }

    /// containerd pulls by its `hosts.toml`, and has nothing of the image before.
    pub(crate) async fn pull_as_node(&self, tag: &str) -> Result<(), node::Error> {
        let image = format!("{NAME}/team/app:{tag}");
        let hosts = self.node.directory().join("certs.d").display().to_string();
        let user = format!("{}:{}", user(USER.1), USER.1);
        let ctr = ["timeout", LIMIT, "ctr", "--namespace=day", "images"];
        let pull = ["pull", "--hosts-dir", &hosts, "--user", &user, &image];
        let pulled = self.node.run(&[&ctr[..], &pull].concat()).await;
        let _ = self
            .node
            .run(&[&ctr[..], &["rm", "--sync", &image]].concat())
            .await;
        pulled.map(drop)
    }
}
