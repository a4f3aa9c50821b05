//! The state that all reconciles of a scope share.

use std::{sync::Arc, time::Duration};

use crds::RegistryMirror;
use kube::{
    Resource, ResourceExt,
    runtime::{controller::Action, events::Recorder, reflector::ObjectRef, watcher::Event},
};
use mirror::clock::Clock;

use super::{
    ATTEMPTS_BEFORE_EVENT, ReconcileError, management::Leases, rate_limit::ReconcileRateLimiter,
    requeue::Retries,
};
use crate::{
    certificates::CertificateLifetimes,
    cluster::{Cluster, reference_index::ReferenceIndex, sync_gate::SyncGate, triggers::StoredMirror},
    dereference,
    desired::Release,
    metrics::Metrics,
    mirror_key::MirrorKey,
    node_poller::NodePollerHandle,
    observed::Observed,
    policy::Policy,
    replica_poller::ReplicaPoller,
    rollout::RolloutHandle,
    status::{events, write::Written},
};

/// The settings of a controller.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operator's name, that of its Lease as `NAMESPACE/NAME`; empty: it is the only operator.
    pub name: String,
    /// The operator's release.
    pub release: Release,
    /// The lifetimes of the certificates that the operator issues.
    pub lifetimes: CertificateLifetimes,
    /// The clock, replaceable in tests.
    pub clock: Clock,
    /// The resync period: the operator reconciles every mirror at least this often.
    pub resync: Duration,
    /// The limits of specs.
    pub policy: Policy,
}

/// The state that all reconciles of a scope share.
pub(super) struct Context {
    pub(super) cluster: Cluster,
    pub(super) recorder: Recorder,
    pub(super) settings: Settings,
    pub(super) rollout: RolloutHandle,
    pub(super) references: Arc<ReferenceIndex>,
    pub(super) poller: Arc<ReplicaPoller>,
    pub(super) nodes: NodePollerHandle,
    pub(super) written: Written,
    pub(super) leases: Leases,
    pub(super) retries: Retries,
    pub(super) rate_limiter: ReconcileRateLimiter,
    pub(super) metrics: Arc<Metrics>,
    pub(super) synced: SyncGate<()>,
}

impl Context {
    pub(super) fn new(
        cluster: Cluster,
        recorder: Recorder,
        settings: Settings,
        rollout: RolloutHandle,
        poller: Arc<ReplicaPoller>,
        nodes: NodePollerHandle,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            cluster,
            recorder,
            settings,
            rollout,
            references: Arc::default(),
            poller,
            nodes,
            written: Written::default(),
            leases: Leases::default(),
            retries: Retries::default(),
            rate_limiter: ReconcileRateLimiter::default(),
            metrics,
            synced: SyncGate::new([()]),
        }
    }

    /// Updates the state of a mirror before its reconcile.
    pub(super) fn on_mirror_event(&self, event: &Event<StoredMirror>) {
        match event {
            Event::Apply(stored) | Event::InitApply(stored) => {
                let references = stored.0.as_ref().map(dereference::references);
                let references = references.unwrap_or_default();
                self.references.set(&MirrorKey::from_object(stored), references);
            }
            Event::Delete(stored) => self.forget(stored),
            Event::InitDone => self.synced.mark_synced(&()),
            Event::Init => {}
        }
    }

    fn forget(&self, stored: &StoredMirror) {
        let (key, uid) = (MirrorKey::from_object(stored), stored.uid().unwrap_or_default());
        self.references.remove(&key);
        self.poller.forget(&key);
        self.nodes.forget(&key);
        self.rollout.rollout().remove(&key, self.settings.clock.now());
        self.written.remove(&uid);
        self.retries.forget(stored);
        self.rate_limiter.forget(&uid);
        self.metrics.apply_rejected(&uid, false);
    }

    /// Returns the state of a mirror's objects and servers.
    ///
    /// # Errors
    /// Those of the API server.
    pub(super) async fn observe(&self, mirror: &RegistryMirror) -> Result<Observed, ReconcileError> {
        let observed = self.cluster.observe(mirror).await;
        let mut observed = observed.map_err(ReconcileError::Read)?;
        observed.at = self.settings.clock.now();
        self.poller.fill_in(mirror, &mut observed);
        observed.nodes = self.nodes.summary(mirror);
        Ok(observed)
    }

    /// Returns the message of a failure for the status, once it has lasted for several attempts.
    pub(super) fn persistent_failure_message(
        &self,
        stored: &StoredMirror,
        error: &ReconcileError,
    ) -> Option<String> {
        let is_persistent = self.retries.attempts(stored) + 1 >= ATTEMPTS_BEFORE_EVENT;
        error.status_message().filter(|_| is_persistent)
    }

    /// Logs a failure, publishes an event once it has lasted for several attempts, and returns the retry.
    pub(super) fn error_policy(&self, stored: &StoredMirror, error: &ReconcileError) -> Action {
        let retry = self.retries.next(stored);
        let after = error.retry_after().unwrap_or(retry.after);
        let mirror = ObjectRef::from_obj(stored);
        tracing::warn!(%mirror, %error, attempt = retry.attempt, "reconcile failed; retry in {after:?}");
        if retry.attempt == ATTEMPTS_BEFORE_EVENT {
            let (recorder, reference) = (self.recorder.clone(), stored.object_ref(&()));
            let event = events::failure(error);
            tokio::spawn(async move { recorder.publish(&event, &reference).await });
        }
        Action::requeue(after)
    }
}
