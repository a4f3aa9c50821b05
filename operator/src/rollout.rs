//! The rollout of a new version of the operator, such as a new server image, to mirrors: a limited number at a time, paused
//! in a namespace once a mirror there does not become ready with it, and everywhere once that happens in several namespaces.
//! A change of a mirror's own spec never waits.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use crds::RegistryMirror;
use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
    stream::BoxStream,
};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use crate::{
    cluster::{
        Scope,
        triggers::{self, Trigger},
    },
    metrics::Metrics,
    mirror_key::MirrorKey,
    observed::{Observed, PodTemplateSource, Workload},
};

mod objects;
mod queue;

use queue::{Queue, remaining};

/// The limits of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutConfig {
    /// The maximum number of mirrors that roll out at the same time.
    pub max_concurrent: usize,
    /// The time in which a mirror has to become ready. After it, the rollout pauses in the namespace of the mirror.
    pub progress_deadline: Duration,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            max_concurrent: 3,
            progress_deadline: Duration::from_mins(10),
        }
    }
}

/// The cause of a change of a mirror's Pod template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateChange {
    /// The template is the same.
    None,
    /// The spec was changed.
    Spec,
    /// The operator has another version or another server image.
    Operator,
}

impl TemplateChange {
    /// Compares the Pod template of a workload with the desired one.
    fn between(applied: Option<&Workload>, desired: &PodTemplateSource) -> Self {
        let Some(workload) = applied else {
            return Self::None;
        };
        match &workload.template_source {
            Some(applied) if applied.template == desired.template => Self::None,
            Some(applied) if applied.generation != desired.generation => Self::Spec,
            Some(_) | None => Self::Operator,
        }
    }
}

/// The decision on a mirror that is to roll out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The mirror rolls out, since this time.
    Admitted(Timestamp),
    /// The mirror waits, for this reason.
    Queued(String),
}

/// The part of a rollout in one scope.
pub struct ScopeRollout {
    /// The rollout.
    pub handle: RolloutHandle,
    /// Triggers for mirrors that are admitted now, or wait for another reason.
    pub wakeups: BoxStream<'static, Trigger>,
}

/// A reference of one scope's controller to the rollout of all scopes.
pub struct RolloutHandle {
    rollout: Arc<Rollout>,
    started: Once,
}

impl RolloutHandle {
    /// Adds the mirrors of the scope that rolled out when the operator started. Does nothing after the first call.
    pub fn start(&self, rolling: impl FnOnce() -> Vec<(MirrorKey, Timestamp)>) {
        self.started.call_once(|| self.rollout.add_scope(rolling()));
    }

    /// Returns the rollout of all scopes.
    pub fn rollout(&self) -> &Rollout {
        &self.rollout
    }
}

/// The mirrors that roll out a new version, and those that wait for it.
pub struct Rollout {
    config: RolloutConfig,
    queue: Mutex<Queue>,
    metrics: Arc<Metrics>,
    wakers: Vec<(Scope, UnboundedSender<MirrorKey>)>,
}

impl Rollout {
    /// Returns a rollout for each scope, all with common limits. Call [`RolloutHandle::start`] of each.
    pub fn per_scope(scopes: &[Scope], config: RolloutConfig, metrics: &Arc<Metrics>) -> Vec<ScopeRollout> {
        let (wakers, wakeups): (Vec<_>, Vec<_>) = scopes
            .iter()
            .map(|scope| {
                let (sender, receiver) = unbounded();
                ((scope.clone(), sender), receiver)
            })
            .unzip();
        let queue = Queue::new(scopes.len());
        let rollout = Arc::new(Self {
            config,
            queue: Mutex::new(queue),
            metrics: Arc::clone(metrics),
            wakers,
        });
        let scope = |wakeups: UnboundedReceiver<MirrorKey>| ScopeRollout {
            handle: RolloutHandle {
                rollout: Arc::clone(&rollout),
                started: Once::new(),
            },
            wakeups: wakeups
                .map(|mirror| Ok(triggers::request(&mirror, "admission to a rollout changed")))
                .boxed(),
        };
        wakeups.into_iter().map(scope).collect()
    }

    /// Adds the mirrors of a scope that rolled out when the operator started. No mirror is admitted before all scopes are
    /// known.
    fn add_scope(&self, rolling: impl IntoIterator<Item = (MirrorKey, Timestamp)>) {
        let mut queue = self.queue.lock();
        queue.rolling.extend(rolling);
        queue.unknown_scopes = queue.unknown_scopes.saturating_sub(1);
        self.notify_waiters(&mut queue, Timestamp::now());
    }

    /// Admits or queues a mirror. `previous` is the start of its rollout of an earlier version.
    pub fn admit(&self, mirror: &MirrorKey, previous: Option<Timestamp>, now: Timestamp) -> Admission {
        let mut queue = self.queue.lock();
        let admission = queue.admit(mirror, previous, now, self.config);
        self.notify_waiters(&mut queue, now);
        admission
    }

    /// Records the progress of a mirror. A paused mirror counts no more: its admin decides.
    pub fn observe(&self, mirror: &RegistryMirror, observed: &Observed) {
        let workload = observed.workload.as_ref();
        let is_done = workload.is_some_and(|workload| workload.is_upgraded() && workload.is_rolled_out());
        let (is_paused, mirror) = (mirror.spec.paused, MirrorKey::from_object(mirror));
        let mut queue = self.queue.lock();
        if is_paused {
            queue.remove(&mirror);
        } else if is_done && queue.rolling.remove(&mirror).is_some() {
            tracing::info!(%mirror, "rolled out the new version");
        }
        self.notify_waiters(&mut queue, observed.at);
    }

    /// Removes a mirror that has nothing to roll out any more.
    pub fn remove(&self, mirror: &MirrorKey, now: Timestamp) {
        let mut queue = self.queue.lock();
        queue.remove(mirror);
        self.notify_waiters(&mut queue, now);
    }

    /// Removes a mirror from the queue; if it rolls out, it does so on.
    fn dequeue(&self, mirror: &MirrorKey) {
        self.queue.lock().waiting.remove(mirror);
    }

    /// Returns the time that a mirror has left to become ready: zero after its deadline, `None` if it does not roll out.
    pub fn remaining(&self, mirror: &MirrorKey, now: Timestamp) -> Option<Duration> {
        let queue = self.queue.lock();
        let since = queue.rolling.get(mirror)?;
        Some(remaining(*since, now, self.config.progress_deadline))
    }

    /// Returns the delay after which a mirror has to be reconciled because its deadline is over.
    pub fn requeue_after(&self, mirror: &RegistryMirror, now: Timestamp) -> Duration {
        match self.remaining(&MirrorKey::from_object(mirror), now) {
            Some(left) if !left.is_zero() => left + Duration::from_secs(1),
            Some(_) | None => Duration::MAX,
        }
    }

    /// Triggers the mirrors whose admission may have changed, and updates the metrics.
    fn notify_waiters(&self, queue: &mut Queue, now: Timestamp) {
        for mirror in queue.wake(now, self.config) {
            let mut wakers = self.wakers.iter();
            if let Some((_, waker)) = wakers.find(|(scope, _)| scope.covers(&mirror.namespace)) {
                // The receiver is dropped once the controller ends.
                let _ = waker.unbounded_send(mirror);
            }
        }
        self.metrics.upgrades(&queue.count(now, self.config));
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const CONFIG: RolloutConfig = RolloutConfig {
        max_concurrent: 2,
        progress_deadline: Duration::from_mins(1),
    };

    fn key(name: &str) -> MirrorKey {
        MirrorKey {
            namespace: "ns".to_owned(),
            name: name.to_owned(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn rollouts_before_the_start_are_counted() {
        let metrics = Arc::<Metrics>::default();
        let scope = Rollout::per_scope(&[Scope::Cluster], CONFIG, &metrics).remove(0);
        let rollout = scope.handle.rollout();
        rollout.add_scope([(key("a"), at(0)), (key("b"), at(50))]);
        assert!(matches!(
            rollout.admit(&key("c"), None, at(55)),
            Admission::Queued(_)
        ));
        assert_eq!(
            rollout.remaining(&key("b"), at(55)),
            Some(Duration::from_secs(55))
        );
        assert_eq!(rollout.remaining(&key("c"), at(55)), None);
        let text = metrics.render().unwrap();
        assert!(text.contains(r#"upgrades{state="waiting"} 1"#), "{text}");
        assert!(text.contains(r#"upgrades{state="rolling"} 2"#), "{text}");
    }

    fn source(template: &str, generation: i64) -> PodTemplateSource {
        PodTemplateSource {
            template: template.to_owned(),
            generation: Some(generation),
            ..PodTemplateSource::default()
        }
    }

    #[test_case(Some(("t", 1)) => TemplateChange::None; "no difference")]
    #[test_case(Some(("t", 0)) => TemplateChange::None; "another spec, the same template")]
    #[test_case(Some(("s", 0)) => TemplateChange::Spec; "another spec")]
    #[test_case(Some(("s", 1)) => TemplateChange::Operator; "the same spec")]
    #[test_case(None => TemplateChange::Operator; "no source recorded")]
    fn template_change(applied: Option<(&str, i64)>) -> TemplateChange {
        let workload = Workload {
            template_source: applied.map(|(template, generation)| source(template, generation)),
            ..Workload::default()
        };
        TemplateChange::between(Some(&workload), &source("t", 1))
    }

    #[test]
    fn mirror_without_workload_has_no_change() {
        assert_eq!(
            TemplateChange::between(None, &source("t", 1)),
            TemplateChange::None
        );
    }
}
