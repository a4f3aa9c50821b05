//! The logs of all three: the node that pulls, the mirror, and the registry upstream.

use std::fs;

use crate::cluster::Cluster;
use crate::mirror::MIRRORS;
use crate::registry::{self, Registry};

/// The log lines about pulls, one for each request.
pub(crate) struct Logs {
    /// containerd's requests, to whomever.
    pub(crate) node: Vec<String>,
    pub(crate) mirror: Vec<String>,
    pub(crate) upstream: Vec<String>,
}

impl Logs {
    pub(crate) async fn read(cluster: &Cluster, registry: &Registry) -> Self {
        let containerd = fs::read_to_string(cluster.node.directory().join("log/containerd.log")).unwrap();
        let instance = "--selector=app.kubernetes.io/instance=hub";
        let mirror = cluster.kubectl(&["logs", MIRRORS, instance, "--tail=-1"]).await;
        Self {
            node: lines(&containerd, &["msg=\"do request\"", "/v2/team/app/"]),
            mirror: lines(&mirror, &["\"outcome\":", "/v2/team/app/"]),
            upstream: registry.pulls(),
        }
    }

    /// Returns the lines that `before` does not have.
    pub(crate) fn since(self, before: &Self) -> Self {
        let rest = |now: Vec<String>, then: &[String]| now.into_iter().skip(then.len()).collect();
        Self {
            node: rest(self.node, &before.node),
            // Another Pod has another log.
            mirror: if self.mirror.starts_with(&before.mirror) {
                rest(self.mirror, &before.mirror)
            } else {
                self.mirror
            },
            upstream: rest(self.upstream, &before.upstream),
        }
    }

    /// The node's requests to the registry itself.
    pub(crate) fn past_the_mirror(&self) -> Vec<&String> {
        let direct = format!("url=\"{}/", registry::url());
        self.node.iter().filter(|line| line.contains(&direct)).collect()
    }

    /// The node's requests to this address.
    pub(crate) fn asked_of(&self, mirror: &str) -> Vec<&String> {
        let through = format!("url=\"{mirror}/");
        self.node.iter().filter(|line| line.contains(&through)).collect()
    }

    /// The mirror's answers with blobs of which it says so.
    pub(crate) fn blobs(&self, outcome: &str) -> Vec<&String> {
        let outcome = format!("\"outcome\":\"{outcome}\"");
        let blob = |line: &&String| line.contains(&outcome) && line.contains("/blobs/");
        self.mirror.iter().filter(blob).collect()
    }

    pub(crate) fn upstream_blobs(&self) -> usize {
        self.upstream
            .iter()
            .filter(|line| line.contains("/blobs/"))
            .count()
    }

    /// The last lines of each.
    pub(crate) fn show(&self, what: &str) {
        println!("-- {what}");
        for (who, lines) in [
            ("node", &self.node),
            ("mirror", &self.mirror),
            ("upstream", &self.upstream),
        ] {
            println!("   {who}: {} requests", lines.len());
            for line in &lines[lines.len().saturating_sub(2)..] {
                println!("      {}", telling(line));
            }
        }
    }
}

/// Returns the line without the prefix that all lines have.
fn telling(line: &str) -> &str {
    let begin = ["\"method\":", "request.method="]
        .iter()
        .find_map(|part| line.find(part));
    &line[begin.unwrap_or(0)..]
}

fn lines(log: &str, all_of: &[&str]) -> Vec<String> {
    let fits = |line: &&str| all_of.iter().all(|part| line.contains(part));
    log.lines().filter(fits).map(str::to_owned).collect()
}
