//! The agent of one node: it writes the files by which the container runtime pulls through mirrors, and takes them away
//! while a mirror does not answer.
//!
//! `watch` reads mirrors from the API server, `probe` asks each mirror from this node, `breaker` decides, and
//! `hosts_directory` changes files. The agent writes nothing to the API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use kube::Client;
use tokio::{net::TcpListener, sync::watch::Receiver, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{cluster::request_limits, mirror_key::MirrorKey, node_config::NodeRoot};

mod addresses;
mod breaker;
mod cleanup;
mod config_path;
mod detect;
mod drop_in_directory;
mod hosts_directory;
mod probe;
mod report;
mod runtime_files;
mod watch;

pub use cleanup::{CleanupError, clean_up, wait_for_nodes};
pub use detect::RuntimeKind;
pub use report::{MirrorReport, NodeReport, NodeState};

use breaker::CircuitBreaker;
use detect::{Detection, Obstacle};
use probe::Probe;
use report::Reporter;
use runtime_files::{RuntimeFiles, WriteError};
use watch::{Target, TargetSet};

/// The interval of probes.
const INTERVAL: Duration = Duration::from_secs(2);
/// The time until the next probe while the last one of a mirror in use failed: a mirror that answers nothing is bypassed
/// within 5 s, of which two probes take a second each.
const RETRY: Duration = Duration::from_millis(500);
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
    /// The agent sets containerd's `config_path` where that is possible by a file of its own.
    pub sets_config_path: bool,
    /// The agent replaces files of other programs, and restores them.
    pub keeps_foreign: bool,
}

/// The agent of one node.
struct NodeAgent {
    root: NodeRoot,
    options: AgentOptions,
    mirrors: BTreeMap<MirrorKey, Tracked>,
    /// The mirrors without a target, whose files stay.
    held: BTreeSet<MirrorKey>,
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
    let reporter = Reporter::new(options.node.clone());
    let (sender, targets) = tokio::sync::watch::channel(None);
    let client = request_limits::limited(&client);
    let watching = tokio::spawn(watch::run(client, options.namespaces.clone(), sender));
    let serving = tokio::spawn(report::serve(listener, reporter.clone(), shutdown.clone()));
    let mut agent = NodeAgent {
        root,
        options,
        mirrors: BTreeMap::new(),
        held: BTreeSet::new(),
        reporter,
    };
    shutdown.run_until_cancelled(agent.work(targets)).await;
    watching.abort();
    serving.await.map_err(io::Error::other)?
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
            if self.mirrors.values().any(|tracked| tracked.breaker.is_failing()) {
                tick.reset_after(RETRY);
            }
        }
    }

    async fn update(&mut self, targets: &TargetSet, is_due: bool) {
        let mut detection = detect::detect(&self.root, self.options.certs_dir.as_deref());
        if self.options.sets_config_path && detection.runtime == RuntimeKind::Containerd {
            detection = config_path::set(&self.root, detection);
        }
        let added = self.track(targets, &detection);
        self.probe(|mirror| is_due || added.contains(mirror)).await;
        let errors = match self.files(&detection) {
            Some(files) => self.write(files.as_ref()),
            None => BTreeMap::new(),
        };
        let states = self.mirrors.iter().map(|(mirror, tracked)| {
            let (state, message) = tracked.state(&detection, errors.get(mirror));
            (mirror.clone(), state, message)
        });
        let states = states.chain(self.held_states(&detection));
        self.reporter.update(&detection, states.collect());
    }

    /// Returns the files of the node's runtime, unless they would have no effect.
    fn files<'a>(&'a self, detection: &'a Detection) -> Option<Box<dyn RuntimeFiles + 'a>> {
        let directory = detection.directory.as_ref().ok()?;
        let keeps_foreign = self.options.keeps_foreign;
        Some(runtime_files::open(
            &self.root,
            detection.runtime,
            directory,
            keeps_foreign,
        ))
    }

    /// Tracks exactly these mirrors, and returns those that are new or changed.
    fn track(&mut self, targets: &TargetSet, detection: &Detection) -> BTreeSet<MirrorKey> {
        self.mirrors
            .retain(|mirror, _| targets.get(mirror).is_some_and(Option::is_some));
        let held = targets.iter().filter(|(_, target)| target.is_none());
        self.held = held.map(|(mirror, _)| mirror.clone()).collect();
        let mut added = BTreeSet::new();
        for (mirror, target) in targets.as_ref() {
            let Some(target) = target else { continue };
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
        match self.files(detection) {
            Some(files) if target.hosts.iter().any(|host| files.has(host)) => CircuitBreaker::closed(),
            _ => CircuitBreaker::New,
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
    fn write(&self, files: &dyn RuntimeFiles) -> BTreeMap<MirrorKey, WriteError> {
        let (mut errors, mut owners) = (BTreeMap::new(), BTreeMap::new());
        for (mirror, tracked) in &self.mirrors {
            let (mut error, mut configured) = (None::<WriteError>, Vec::new());
            for host in &tracked.target.hosts {
                let written = if let Some(owner) = owners.get(host.as_str()) {
                    Err(WriteError::Conflict(format!(
                        "RegistryMirror {owner} has {host}, too"
                    )))
                } else if tracked.is_used() {
                    owners.insert(host.as_str(), mirror);
                    files.write(host, &tracked.target.files)
                } else {
                    continue;
                };
                match (written, error.take()) {
                    (Ok(()), previous) => {
                        configured.push(host.as_str());
                        error = previous;
                    }
                    (Err(new), None) => error = Some(new),
                    (Err(new), Some(previous)) => error = Some(previous.merge(new)),
                }
            }
            let error = error.map(|error| error.with_configured(&configured));
            errors.extend(error.map(|error| (mirror.clone(), error)));
        }
        let held = self.held.iter().map(MirrorKey::to_string).collect();
        for (host, error) in files.remove_others(&owners.into_keys().collect(), &held) {
            tracing::warn!(host, %error, "files of a mirror remain");
        }
        errors
    }

    /// Returns the state of each mirror without a target, by the files that the node has of it.
    fn held_states(&self, detection: &Detection) -> Vec<(MirrorKey, NodeState, String)> {
        let files = self.files(detection).filter(|_| !self.held.is_empty());
        let written = files.map(|files| files.mirrors()).unwrap_or_default();
        let states = self.held.iter().map(|mirror| {
            if let Some((state, message)) = detection.obstacle() {
                return (mirror.clone(), state, message);
            }
            let (state, consequence) = if written.contains(&mirror.to_string()) {
                (NodeState::Configured, "the files of the previous spec stay")
            } else {
                (NodeState::Bypassed, "the node has no files of it")
            };
            let message = format!(
                "RegistryMirror {mirror} has no accepted spec with an address and a CA: {consequence}; see its conditions"
            );
            (mirror.clone(), state, message)
        });
        states.collect()
    }
}

impl Tracked {
    /// Returns whether the node pulls through the mirror. Without a fallback it does so after the first answer for good.
    fn is_used(&self) -> bool {
        self.breaker.is_closed() || self.target.is_only_source && self.breaker != CircuitBreaker::New
    }

    fn state(&self, detection: &Detection, error: Option<&WriteError>) -> (NodeState, String) {
        match (detection.obstacle(), error) {
            (Some(obstacle), _) => obstacle,
            (None, Some(error)) => (error.state(), error.to_string()),
            (None, None) if self.is_used() => (NodeState::Configured, String::new()),
            (None, None) => {
                let message = format!("{}/v2/ does not answer on this node", self.target.url);
                (NodeState::Bypassed, message)
            }
        }
    }
}

impl Detection {
    /// Returns the state of every mirror if files have no effect.
    fn obstacle(&self) -> Option<(NodeState, String)> {
        match self.directory.as_ref().err()? {
            Obstacle::ConfigPathMissing(message) => Some((NodeState::ConfigPathMissing, message.clone())),
            Obstacle::InlineMirrors(message) => Some((NodeState::InlineMirrors, message.clone())),
            Obstacle::Unsupported(message) => Some((NodeState::Unsupported, message.clone())),
        }
    }
}

impl WriteError {
    fn state(&self) -> NodeState {
        match self {
            Self::Conflict(_) => NodeState::Conflict,
            Self::ReadOnly(..) => NodeState::ReadOnly,
            Self::Unsupported { .. } => NodeState::Unsupported,
        }
    }
}

#[cfg(test)]
mod tests;
