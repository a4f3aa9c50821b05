//! The admission policy of a rollout. Pure.
//!
//! A mirror that does not become ready pauses its own namespace: the fault may be the tenant's, such as a quota or a node
//! selector. Faults in several namespaces have the new version as their common cause, and pause the rollout everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;

use super::{Admission, RolloutConfig};
use crate::{metrics::Upgrades, mirror_key::MirrorKey};

/// The number of namespaces with a failed mirror that pause the rollout in every namespace.
pub(super) const MAX_FAILED_NAMESPACES: usize = 2;

/// The mirrors that roll out and those that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The mirrors that roll out, with the time of their admission.
    pub(super) rolling: BTreeMap<MirrorKey, Timestamp>,
    pub(super) waiting: BTreeSet<MirrorKey>,
    pub(super) unknown_scopes: usize,
    /// The namespaces with a failed mirror that waiting mirrors were last woken for.
    reported: BTreeSet<String>,
}

impl Queue {
    /// Returns an empty queue that admits no mirror before all scopes are known.
    pub(super) fn new(unknown_scopes: usize) -> Self {
        Self {
            unknown_scopes,
            ..Self::default()
        }
    }

    pub(super) fn remove(&mut self, mirror: &MirrorKey) {
        self.rolling.remove(mirror);
        self.waiting.remove(mirror);
    }

    /// Admits or queues a mirror. `previous` is the start of its rollout of an earlier version.
    pub(super) fn admit(
        &mut self,
        mirror: &MirrorKey,
        previous: Option<Timestamp>,
        now: Timestamp,
        config: RolloutConfig,
    ) -> Admission {
        if let Some(reason) = self.obstacle(mirror, now, config) {
            self.waiting.insert(mirror.clone());
            return Admission::Queued(reason);
        }
        self.waiting.remove(mirror);
        // An admission that is not applied yet keeps its time. One that was applied counts from now: the version before
        // may be the cause of the failure.
        let pending = self.rolling.get(mirror).copied();
        let since = pending.filter(|since| Some(*since) != previous).unwrap_or(now);
        self.rolling.insert(mirror.clone(), since);
        Admission::Admitted(since)
    }

    /// Returns the reason for which a mirror has to wait. It names no mirror of another namespace.
    fn obstacle(&self, mirror: &MirrorKey, now: Timestamp, config: RolloutConfig) -> Option<String> {
        if self.rolling.contains_key(mirror) {
            return None;
        }
        if self.unknown_scopes > 0 {
            return Some("the state of other mirrors is not known yet".to_owned());
        }
        let mut failed = self.failed(now, config);
        if let Some(failed) = failed.find(|failed| failed.namespace == mirror.namespace) {
            return Some(format!(
                "the rollout is paused in this namespace, because RegistryMirror {:?} did not become ready with the new \
                 version",
                failed.name
            ));
        }
        let failed = self.failed_namespaces(now, config).len();
        if failed >= MAX_FAILED_NAMESPACES {
            return Some(format!(
                "the rollout is paused, because mirrors of {failed} namespaces did not become ready with the new version"
            ));
        }
        let limit = config.max_concurrent;
        let noun = if limit == 1 {
            "mirror rolls"
        } else {
            "mirrors roll"
        };
        (self.free(now, config) == 0).then(|| format!("at most {limit} {noun} out at the same time"))
    }

    /// Returns the number of mirrors that may be admitted now. A failed mirror takes no place: it pauses its namespace, and
    /// must not stop the others.
    fn free(&self, now: Timestamp, config: RolloutConfig) -> usize {
        let active = self.rolling.len() - self.failed(now, config).count();
        config.max_concurrent.saturating_sub(active)
    }

    /// Returns the mirrors that missed their deadline.
    pub(super) fn failed(&self, now: Timestamp, config: RolloutConfig) -> impl Iterator<Item = &MirrorKey> {
        let is_over = move |since: &Timestamp| remaining(*since, now, config.progress_deadline).is_zero();
        let failed = self.rolling.iter().filter(move |(_, since)| is_over(since));
        failed.map(|(mirror, _)| mirror)
    }

    fn failed_namespaces(&self, now: Timestamp, config: RolloutConfig) -> BTreeSet<String> {
        self.failed(now, config)
            .map(|failed| failed.namespace.clone())
            .collect()
    }

    /// Returns the numbers for the metrics.
    pub(super) fn count(&self, now: Timestamp, config: RolloutConfig) -> Upgrades {
        let failed = self.failed(now, config).count();
        Upgrades {
            waiting: self.waiting.len(),
            rolling: self.rolling.len() - failed,
            failed,
        }
    }

    /// Returns the mirrors to wake: all if the rollout was paused or resumed in a namespace, else as many as there is room
    /// for and some more, because some may have stopped waiting. A woken mirror leaves the queue until it asks again.
    pub(super) fn wake(&mut self, now: Timestamp, config: RolloutConfig) -> Vec<MirrorKey> {
        let failed = self.failed_namespaces(now, config);
        if failed != self.reported {
            self.log_pause(&failed);
            self.reported = failed;
            return self.waiting.iter().cloned().collect();
        }
        let free = self.free(now, config);
        if failed.len() >= MAX_FAILED_NAMESPACES || self.unknown_scopes > 0 || free == 0 {
            return Vec::new();
        }
        let woken = self.next(free + config.max_concurrent, &failed);
        for mirror in &woken {
            self.waiting.remove(mirror);
        }
        woken
    }

    /// Returns waiting mirrors, one of each namespace in turn, so that no namespace has to wait for all mirrors of another.
    fn next(&self, count: usize, paused: &BTreeSet<String>) -> Vec<MirrorKey> {
        let mut turns: BTreeMap<&str, usize> = BTreeMap::new();
        for mirror in self.rolling.keys() {
            *turns.entry(&mirror.namespace).or_default() += 1;
        }
        let waiting = self
            .waiting
            .iter()
            .filter(|mirror| !paused.contains(&mirror.namespace));
        let mut next: Vec<_> = waiting
            .map(|mirror| {
                let turn = turns.entry(&mirror.namespace).or_default();
                *turn += 1;
                (*turn, mirror)
            })
            .collect();
        next.sort();
        next.into_iter()
            .take(count)
            .map(|(_, mirror)| mirror.clone())
            .collect()
    }

    /// Logs a change of the paused namespaces: conditions of a namespace name no other one.
    fn log_pause(&self, failed: &BTreeSet<String>) {
        for namespace in failed.difference(&self.reported) {
            tracing::warn!(
                namespace,
                is_paused_everywhere = failed.len() >= MAX_FAILED_NAMESPACES,
                "rollout of the new version paused in this namespace: a mirror there did not become ready"
            );
        }
        for namespace in self.reported.difference(failed) {
            tracing::info!(namespace, "rollout of the new version resumed in this namespace");
        }
    }
}

/// Returns the time that is left of a deadline.
pub(super) fn remaining(since: Timestamp, now: Timestamp, deadline: Duration) -> Duration {
    let spent = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    deadline.saturating_sub(spent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: RolloutConfig = RolloutConfig {
        max_concurrent: 2,
        progress_deadline: Duration::from_mins(1),
    };
    const FULL: &str = "at most 2 mirrors roll out at the same time";

    /// Returns the key of `NAMESPACE/NAME`, or of a name in the namespace `ns`.
    fn key(name: &str) -> MirrorKey {
        let (namespace, name) = name.split_once('/').unwrap_or(("ns", name));
        MirrorKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn admit(queue: &mut Queue, name: &str, second: i64) -> String {
        match queue.admit(&key(name), None, at(second), CONFIG) {
            Admission::Admitted(_) => "admitted".to_owned(),
            Admission::Queued(reason) => reason,
        }
    }

    #[test]
    fn concurrency_limit_queues_the_next_mirror() {
        let mut queue = Queue::default();
        assert_eq!(admit(&mut queue, "a", 0), "admitted");
        assert_eq!(admit(&mut queue, "b", 0), "admitted");
        assert_eq!(admit(&mut queue, "c", 0), FULL);
        assert!(queue.wake(at(1), CONFIG).is_empty());
        queue.rolling.remove(&key("a"));
        assert_eq!(queue.wake(at(2), CONFIG), [key("c")]);
        assert_eq!(admit(&mut queue, "c", 2), "admitted");
    }

    #[test]
    fn missed_deadline_pauses_until_ready() {
        let mut queue = Queue::default();
        admit(&mut queue, "a", 0);
        admit(&mut queue, "b", 50);
        queue.rolling.remove(&key("b"));
        let paused = "the rollout is paused in this namespace, because RegistryMirror \"a\" did not become ready with the \
                      new version";
        assert_eq!(admit(&mut queue, "c", 60), paused, "though there is room");
        assert_eq!(queue.wake(at(60), CONFIG), [key("c")], "to report it");
        assert!(queue.wake(at(61), CONFIG).is_empty(), "once");
        assert_eq!(admit(&mut queue, "c", 61), paused);
        queue.rolling.remove(&key("a"));
        assert_eq!(queue.wake(at(70), CONFIG), [key("c")]);
        assert_eq!(admit(&mut queue, "c", 70), "admitted");
    }

    /// However many mirrors of one namespace fail, those of another one have all places.
    #[test]
    fn failures_of_one_namespace_stop_no_other() {
        let mut queue = Queue::default();
        admit(&mut queue, "bad/a", 0);
        admit(&mut queue, "bad/b", 0);
        assert_eq!(admit(&mut queue, "good/a", 1), FULL);
        assert_eq!(
            queue.wake(at(60), CONFIG),
            [key("good/a")],
            "to report the failure"
        );
        assert_eq!(admit(&mut queue, "good/a", 60), "admitted");
        assert_eq!(admit(&mut queue, "good/b", 60), "admitted");
        assert_eq!(admit(&mut queue, "good/c", 60), FULL);
        assert!(admit(&mut queue, "bad/c", 60).starts_with("the rollout is paused in this namespace"));
        queue.rolling.remove(&key("good/a"));
        assert_eq!(
            queue.wake(at(61), CONFIG),
            [key("good/c")],
            "and no mirror of the paused namespace"
        );
    }

    /// Failures in several namespaces are the version's: it reaches no further mirror, and no name of another namespace is
    /// in the reason.
    #[test]
    fn failures_of_two_namespaces_pause_all() {
        let mut queue = Queue::default();
        admit(&mut queue, "one/a", 0);
        admit(&mut queue, "two/a", 0);
        let paused = "the rollout is paused, because mirrors of 2 namespaces did not become ready with the new version";
        assert_eq!(admit(&mut queue, "three/a", 60), paused);
        assert_eq!(queue.wake(at(60), CONFIG), [key("three/a")], "to report it");
        assert_eq!(admit(&mut queue, "three/a", 60), paused);
        assert!(queue.wake(at(61), CONFIG).is_empty());
        queue.rolling.remove(&key("one/a"));
        assert_eq!(queue.wake(at(62), CONFIG), [key("three/a")]);
        assert_eq!(admit(&mut queue, "three/a", 62), "admitted");
    }

    /// A namespace with many mirrors does not go first with all of them.
    #[test]
    fn namespaces_are_woken_in_turn() {
        let mut queue = Queue {
            waiting: ["a/1", "a/2", "a/3", "a/4", "b/1", "c/1"].map(key).into(),
            ..Queue::default()
        };
        queue.rolling.insert(key("b/0"), at(0));
        assert_eq!(queue.wake(at(1), CONFIG), ["a/1", "c/1", "a/2"].map(key));
    }

    #[test]
    fn failed_mirror_is_admitted_for_a_newer_version() {
        let mut queue = Queue::default();
        admit(&mut queue, "a", 0);
        assert_eq!(
            queue.admit(&key("a"), Some(at(0)), at(100), CONFIG),
            Admission::Admitted(at(100))
        );
        assert!(
            queue.failed(at(100), CONFIG).next().is_none(),
            "its deadline starts again"
        );
    }

    #[test]
    fn admission_that_is_not_applied_keeps_its_deadline() {
        let mut queue = Queue::default();
        admit(&mut queue, "a", 0);
        assert_eq!(
            queue.admit(&key("a"), None, at(100), CONFIG),
            Admission::Admitted(at(0))
        );
        assert_eq!(queue.failed(at(100), CONFIG).next(), Some(&key("a")));
    }

    #[test]
    fn unknown_scope_queues_every_mirror() {
        let mut queue = Queue::new(1);
        assert_eq!(
            admit(&mut queue, "a", 0),
            "the state of other mirrors is not known yet"
        );
        assert!(queue.wake(at(0), CONFIG).is_empty());
        queue.unknown_scopes = 0;
        assert_eq!(queue.wake(at(0), CONFIG), [key("a")]);
    }
}
