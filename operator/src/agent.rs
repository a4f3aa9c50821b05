//! The agent of one node: it writes the files by which the container runtime pulls through mirrors, and takes them away
//! while a mirror does not answer.
//!
//! [`watch`](mod@watch) reads mirrors from the API server, `probe` asks each mirror from this node, `breaker` decides, and
//! `hosts_directory` changes files. The agent writes nothing to the API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use kube::Client;
use tokio::{net::TcpListener, sync::watch::Receiver, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{mirror_key::MirrorKey, node_config::NodeRoot};

mod addresses;
mod breaker;
mod detect;
mod hosts_directory;
mod probe;
mod report;
mod watch;

pub use detect::RuntimeKind;
pub use report::{MirrorReport, NodeReport, NodeState};

use breaker::CircuitBreaker;
use detect::{Detection, Obstacle};
use hosts_directory::{HostsDirectory, WriteError};
use probe::Probe;
use report::Reporter;
use watch::{Target, TargetSet};

/// The interval of probes.
const INTERVAL: Duration = Duration::from_secs(2);
/// The maximum number of mirrors that are probed at the same time.
const MAX_PROBES: usize = 16;

/// The settings of an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The name of the node, for the report.
    pub node: String,
    /// The namespaces whose mirrors the node trusts.
    pub namespaces: Vec<String>,
    /// The directory with `HOST/hosts.toml`, below the root directory. Absent: detected.
    pub certs_dir: Option<String>,
}

/// The agent of one node.
struct NodeAgent {
    root: NodeRoot,
    certs_dir: Option<String>,
    mirrors: BTreeMap<MirrorKey, Tracked>,
    reporter: Reporter,
}

/// A mirror, as the node sees it.
struct Tracked {
    target: Arc<Target>,
    probe: Probe,
    breaker: CircuitBreaker,
}

/// Keeps the files of a node up to date until `shutdown`. The files stay when the agent ends.
///
/// # Errors
/// Those of the listener.
pub async fn run(
    client: Client,
    root: NodeRoot,
    options: AgentOptions,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let reporter = Reporter::new(options.node);
    let (sender, targets) = tokio::sync::watch::channel(None);
    let watching = tokio::spawn(watch::run(client, options.namespaces, sender));
    let serving = tokio::spawn(report::serve(listener, reporter.clone(), shutdown.clone()));
    let mut agent = NodeAgent {
        root,
        certs_dir: options.certs_dir,
        mirrors: BTreeMap::new(),
        reporter,
    };
    shutdown.run_until_cancelled(agent.work(targets)).await;
    watching.abort();
    serving.await.map_err(io::Error::other)?
}

/// Removes every file that an agent wrote below a root directory.
///
/// # Errors
/// A message for each file that can't be removed.
pub fn clean_up(root: &Path, certs_dir: Option<&str>) -> io::Result<Vec<String>> {
    let root = NodeRoot::open(root)?;
    let detected = detect::detect(&root, certs_dir).directory.ok();
    let known = detect::directories().map(str::to_owned);
    let directories: BTreeSet<_> = known.chain(detected).collect();
    let failed = directories.iter().flat_map(|path| {
        let failed = HostsDirectory::new(&root, path).clear().into_values();
        failed.map(|error| error.to_string())
    });
    Ok(failed.collect())
}

impl NodeAgent {
    /// Updates the files after each change of a mirror, and after each probe.
    async fn work(&mut self, mut targets: Receiver<Option<TargetSet>>) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_due = tokio::select! {
                _ = tick.tick() => true,
                changed = targets.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
            };
            let current = targets.borrow_and_update().clone();
            // Nothing is removed before every mirror is known.
            if let Some(current) = current {
                self.update(&current, is_due).await;
            }
        }
    }

    async fn update(&mut self, targets: &TargetSet, is_due: bool) {
        let detection = detect::detect(&self.root, self.certs_dir.as_deref());
        let added = self.track(targets, &detection);
        self.probe(|mirror| is_due || added.contains(mirror)).await;
        let errors = match &detection.directory {
            Ok(directory) => self.write(directory),
            Err(_) => BTreeMap::new(),
        };
        let states = self.mirrors.iter().map(|(mirror, tracked)| {
            let (state, message) = tracked.state(&detection, errors.get(mirror));
            (mirror.clone(), state, message)
        });
        self.reporter.update(&detection, states.collect());
    }

    /// Tracks exactly these mirrors, and returns those that are new or changed.
    fn track(&mut self, targets: &TargetSet, detection: &Detection) -> BTreeSet<MirrorKey> {
        self.mirrors.retain(|mirror, _| targets.contains_key(mirror));
        let mut added = BTreeSet::new();
        for (mirror, target) in targets.as_ref() {
            let tracked = self.mirrors.get(mirror);
            if tracked.is_some_and(|tracked| tracked.target == *target) {
                continue;
            }
            let previous = tracked.map(|tracked| tracked.breaker);
            let breaker = previous.unwrap_or_else(|| self.initial(target, detection));
            let tracked = Tracked {
                target: Arc::clone(target),
                probe: Probe::new(target),
                breaker,
            };
            self.mirrors.insert(mirror.clone(), tracked);
            added.insert(mirror.clone());
        }
        added
    }

    /// Returns a closed breaker if a previous run of the agent wrote the files of the mirror.
    fn initial(&self, target: &Target, detection: &Detection) -> CircuitBreaker {
        let Ok(directory) = &detection.directory else {
            return CircuitBreaker::New;
        };
        let directory = HostsDirectory::new(&self.root, directory);
        if target.hosts.iter().any(|host| directory.has(host)) {
            CircuitBreaker::closed()
        } else {
            CircuitBreaker::New
        }
    }

    async fn probe(&mut self, is_due: impl Fn(&MirrorKey) -> bool) {
        let due = self.mirrors.iter_mut().filter(|(mirror, _)| is_due(mirror));
        let probes = due.map(|(_, tracked)| async {
            let has_answered = tracked.probe.run().await;
            tracked.breaker.record(has_answered);
        });
        stream::iter(probes)
            .buffer_unordered(MAX_PROBES)
            .collect::<()>()
            .await;
    }

    /// Writes the files of mirrors that are in use, and removes the others. Returns the error of each mirror.
    fn write(&self, directory: &str) -> BTreeMap<MirrorKey, WriteError> {
        let directory = HostsDirectory::new(&self.root, directory);
        let (mut errors, mut owners) = (BTreeMap::new(), BTreeMap::new());
        for (mirror, tracked) in &self.mirrors {
            for host in &tracked.target.hosts {
                if let Some(owner) = owners.get(host.as_str()) {
                    let conflict = WriteError::Conflict(format!("RegistryMirror {owner} has {host}, too"));
                    errors.insert(mirror.clone(), conflict);
                } else if tracked.is_used() {
                    owners.insert(host.as_str(), mirror);
                    let written = directory.write(host, &tracked.target.files);
                    errors.extend(written.err().map(|error| (mirror.clone(), error)));
                }
            }
        }
        for (host, error) in directory.remove_others(&owners.into_keys().collect()) {
            tracing::warn!(host, %error, "files of a mirror remain");
        }
        errors
    }
}

impl Tracked {
    /// Returns whether the node pulls through the mirror. Without a fallback it does so after the first answer for good.
    fn is_used(&self) -> bool {
        self.breaker.is_closed() || self.target.is_only_source && self.breaker != CircuitBreaker::New
    }

    fn state(&self, detection: &Detection, error: Option<&WriteError>) -> (NodeState, String) {
        match (&detection.directory, error) {
            (Err(Obstacle::ConfigPathMissing(message)), _) => (NodeState::ConfigPathMissing, message.clone()),
            (Err(Obstacle::InlineMirrors(message)), _) => (NodeState::InlineMirrors, message.clone()),
            (Err(Obstacle::Unsupported(message)), _) => (NodeState::Unsupported, message.clone()),
            (Ok(_), Some(error @ WriteError::Conflict(_))) => (NodeState::Conflict, error.to_string()),
            (Ok(_), Some(error @ WriteError::ReadOnly(..))) => (NodeState::ReadOnly, error.to_string()),
            (Ok(_), None) if self.is_used() => (NodeState::Configured, String::new()),
            (Ok(_), None) => {
                let message = format!("{}/v2/ does not answer on this node", self.target.url);
                (NodeState::Bypassed, message)
            }
        }
    }
}

#[cfg(test)]
mod tests;
