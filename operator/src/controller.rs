//! The controller: the triggers of a reconcile, its steps, and the retry after a failure.

use std::{sync::Arc, time::Duration};

use crds::RegistryMirror;
use futures::{FutureExt, StreamExt, stream};
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        applier,
        controller::{self, Action},
        events::Recorder,
        reflector::{Store, store::Writer},
    },
};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, Span};

use crate::{
    apply::{self, ApplyError},
    certificates,
    cluster::{
        Cluster, Scope,
        cache::ObjectCache,
        triggers::{self, RelistTrigger, StoredMirror, Trigger},
    },
    dereference::{self, References},
    desired::{self, Release},
    metrics::Metrics,
    mirror_key::MirrorKey,
    node_poller::NodePoller,
    observed::Observed,
    peer_secret,
    replica_poller::ReplicaPoller,
    rollout::ScopeRollout,
    status::{self, Acted, Outcome, events},
    validate::{self, Accepted},
};

mod adoption;
mod bucket_conflict;
mod certificate_renewal;
mod context;
mod error;
mod invalid_object;
mod management;
mod places;
mod rate_limit;
mod requeue;

use context::Context;
pub use context::Settings;
pub use error::ReconcileError;
pub use management::ABANDONED;
use management::Manager;
use places::Places;

/// The maximum number of reconciles at the same time.
const CONCURRENCY: usize = 16;
/// The maximum number of reconciles of one namespace at the same time, where a controller has several.
const NAMESPACE_CONCURRENCY: usize = CONCURRENCY / 2;
/// The default resync period: the operator reconciles every mirror at least this often.
pub const RESYNC: Duration = Duration::from_mins(15);
/// The time limit of a reconcile, so that none keeps one of those places for longer.
const RECONCILE_TIMEOUT: Duration = Duration::from_mins(1);
/// The time for running reconciles to end when the operator stops, within the 30 s that the kubelet gives a Pod.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// The time for the last writes when the operator stops.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of failures in a row after which the operator publishes an event.
const ATTEMPTS_BEFORE_EVENT: u32 = 4;

/// The controller of a scope, ready to run.
pub struct Controller {
    context: Arc<Context>,
    mirrors: Store<StoredMirror>,
    triggers: stream::BoxStream<'static, Trigger>,
    places: Arc<Places>,
}

impl Controller {
    /// Creates the watches of a scope. Sends no request before [`Self::run`].
    pub fn new(
        client: &Client,
        scope: &Scope,
        settings: Settings,
        recorder: Recorder,
        metrics: Arc<Metrics>,
        rollout: ScopeRollout,
        nodes: &Arc<NodePoller>,
    ) -> Self {
        let (cache, writers) = ObjectCache::new();
        let writer = Writer::default();
        let mirrors = writer.as_reader();
        let (nodes, summaries) = nodes.handle();
        let (poller, reports) = ReplicaPoller::new(Arc::clone(&cache), nodes.clone(), Arc::clone(&metrics));
        let cluster = Cluster::new(client.clone(), Arc::clone(&cache));
        let context = Context::new(
            cluster,
            recorder,
            settings,
            rollout.handle,
            poller,
            nodes,
            metrics,
        );
        let context = Arc::new(context);
        let events = Arc::clone(&context);
        let share = match scope {
            Scope::Cluster => NAMESPACE_CONCURRENCY,
            Scope::Namespace(_) => CONCURRENCY,
        };
        context.metrics.add_mirrors(mirrors.clone());
        context.metrics.initialize_errors(&ReconcileError::CLASSES);
        let (relist, all) = RelistTrigger::new(mirrors.clone());
        let triggers = stream::select_all([
            triggers::mirrors(client, scope, writer, move |event| events.on_mirror_event(event)).boxed(),
            triggers::children(client, scope, &relist, &cache, writers).boxed(),
            triggers::references(client, scope, &relist, &context.references).boxed(),
            all.boxed(),
            reports.boxed(),
            summaries.boxed(),
            rollout.wakeups,
        ]);
        Self {
            context,
            mirrors,
            triggers: triggers.boxed(),
            places: Places::new(CONCURRENCY, share),
        }
    }

    /// Completes once every watch has listed.
    pub fn synced(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mirrors, cache) = (
            self.context.synced.wait_synced(),
            Arc::clone(&self.context.cluster.cache),
        );
        async move {
            cache.wait_synced().await;
            mirrors.await;
        }
    }

    /// Reconciles until `shutdown`, and lets running reconciles end, for 15 s at most.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self {
            context,
            mirrors,
            triggers,
            places,
        } = self;
        let _poller = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&context.poller).run()));
        let (all, end) = (mirrors.clone(), Arc::clone(&context));
        let (late, drained) = (CancellationToken::new(), shutdown.clone());
        let reconciles = applier(
            |mirror, context| reconcile_in_place(mirror, context, Arc::clone(&places), late.clone()).boxed(),
            |mirror, error, context| context.error_policy(&mirror, error),
            context,
            mirrors,
            triggers.take_until(shutdown.cancelled_owned()),
            // The places limit it.
            controller::Config::default().concurrency(0),
        )
        .for_each(|done| async {
            match done {
                Ok(_)
                | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(%error, "watch failed; the operator retries it"),
            }
        });
        let drain = async {
            drained.cancelled().await;
            sleep(DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            () = reconciles => {}
            () = drain => {
                late.cancel();
                tracing::warn!("stopping with unfinished reconciles: the next operator repeats them");
            }
        }
        let withdrawn = timeout(WITHDRAW_TIMEOUT, management::withdraw_all(&all, &end)).await;
        if withdrawn.is_err() {
            tracing::warn!("stopping without a report to other operators: the API server does not answer");
        }
    }
}

/// Reconciles one mirror once it has a place, on a thread of its own: reading CA certificates and comparing large objects
/// would let the reconciles of other mirrors wait for an async thread. `late` ends it.
async fn reconcile_in_place(
    mirror: Arc<StoredMirror>,
    context: Arc<Context>,
    places: Arc<Places>,
    late: CancellationToken,
) -> Result<Action, ReconcileError> {
    // An object that is not listed yet looks missing, and would be written again.
    context.cluster.cache.wait_synced().await;
    let place = places.take(mirror.namespace().unwrap_or_default()).await;
    let (runtime, span) = (Handle::current(), Span::current());
    let task = tokio::task::spawn_blocking(move || {
        let _place = place;
        let reconcile = reconcile(mirror, context).instrument(span);
        let done = runtime.block_on(late.run_until_cancelled(reconcile));
        done.unwrap_or(Err(ReconcileError::Timeout))
    });
    task.await
        .unwrap_or_else(|panic| Err(ReconcileError::Panicked(panic)))
}

/// Reconciles one mirror, within the rate limit and the time limit, and counts the result.
///
/// # Errors
/// Failures that a retry may fix. Faults of the spec are conditions in the status.
async fn reconcile(stored: Arc<StoredMirror>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    context.rollout.start(|| context.cluster.cache.rolling());
    let started = Instant::now();
    let uid = stored.uid().unwrap_or_default();
    if let Err(delay) = context.rate_limiter.admit(&uid, started) {
        return Ok(Action::requeue(delay));
    }
    // A field `name` would occur twice in JSON, because the span itself has one.
    let MirrorKey { namespace, name } = MirrorKey::from_object(&*stored);
    let span = tracing::info_span!("reconcile", namespace, mirror = name);
    let result = timeout(
        RECONCILE_TIMEOUT,
        reconcile_inner(&stored, &context).instrument(span),
    )
    .await
    .unwrap_or(Err(ReconcileError::Timeout));
    let error = result.as_ref().err().map(ReconcileError::class);
    context.metrics.reconciled(started.elapsed(), error);
    if result.is_ok() {
        context.retries.forget(&stored);
    }
    result
}

async fn reconcile_inner(stored: &StoredMirror, context: &Context) -> Result<Action, ReconcileError> {
    let mirror = match &stored.0 {
        Ok(mirror) => mirror,
        Err(invalid) => {
            let reported = invalid_object::report(invalid, context).await;
            reported.map_err(ReconcileError::Status)?;
            return Ok(Action::await_change());
        }
    };
    if mirror.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    match management::find(mirror, context).await? {
        Manager::This => {}
        Manager::Other {
            name,
            has_lease_access,
        } => {
            management::stand_by(mirror, &name, has_lease_access, context).await?;
            return Ok(Action::requeue(management::CHECK));
        }
        Manager::Unclear => return Ok(Action::requeue(management::AGAIN)),
    }
    let (mut outcome, failure) = apply_spec(mirror, context).await;
    if let (Outcome::Failed(message), Some(error)) = (&mut outcome, &failure) {
        *message = context.persistent_failure_message(stored, error);
    }
    let uid = stored.uid().unwrap_or_default();
    let is_rejected = outcome.rejection_message().is_some();
    context.metrics.apply_rejected(&uid, is_rejected);
    // The status is updated even after a partial apply: existing objects keep changing.
    let updated = update_status(mirror, context, &outcome).await;
    match failure {
        Some(failure) => Err(failure),
        None => updated.map(|observed| {
            let delay = requeue::requeue_after(&outcome, &observed, context.settings.resync);
            let deadline = context.rollout.rollout().requeue_after(mirror, observed.at);
            Action::requeue(delay.min(deadline))
        }),
    }
}

/// Runs the pipeline up to the status. Returns its outcome, and the failure that is to be retried.
async fn apply_spec(mirror: &RegistryMirror, context: &Context) -> (Outcome, Option<ReconcileError>) {
    if mirror.spec.paused {
        return (Outcome::Paused, None);
    }
    // An object that can't be adopted stops only the steps that need it.
    let done = match adoption::adopt(mirror, context).await {
        Ok(refusals) => {
            let done = run_pipeline(mirror, context).await;
            done.map_err(|error| adoption::explain(error, refusals))
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(acted) => (Outcome::Acted(acted), None),
        Err(ReconcileError::Apply(ApplyError::Rejected(rejection))) => {
            let failure = certificate_renewal::renew(mirror, context).await.err();
            (Outcome::Rejected(rejection), failure)
        }
        Err(error) => (Outcome::Failed(None), Some(error)),
    }
}

/// Makes the cluster match one mirror's spec. The last step of a reconcile, the status, is [`update_status`].
async fn run_pipeline(mirror: &RegistryMirror, context: &Context) -> Result<Acted, ReconcileError> {
    let (cluster, release) = (&context.cluster, &context.settings.release);
    // 1. Dereference: read the objects that the spec names.
    let references = dereference::read(mirror, cluster).await;
    let references = references.map_err(ReconcileError::Read)?;
    // 2. Validate: accept the spec with these objects and by the operator's policy, or reject it with a reason.
    let mut accepted = validate::accept(mirror, &references).map_err(ApplyError::from)?;
    let existing = cluster
        .existing_claim(mirror)
        .await
        .map_err(ReconcileError::Read)?;
    let allowed = context
        .settings
        .policy
        .check(mirror, &release.server_image, existing.as_ref());
    allowed.map_err(ApplyError::from)?;
    bucket_conflict::check(mirror, &context.metrics.mirrors()).map_err(ApplyError::from)?;
    // 3. The secret of the servers, and certificates: create or keep them, if the spec asks for them.
    peer_secret::ensure(&mut accepted, &references);
    let observed = ensure_certificates(&mut accepted, &references, context).await?;
    // 4. Desired: compute the objects of a release.
    let render = |release: &Release| {
        let desired = desired::objects(&accepted, &references, &observed, release);
        desired.map_err(ApplyError::from)
    };
    // 5. Rollout: choose the release that the mirror may run now.
    let rollout = context.rollout.rollout();
    let (desired, upgrade) = rollout.objects(mirror, &observed, release, render)?;
    // 6. Apply: write the objects that differ.
    let applied = apply::apply(mirror, &desired, &observed, cluster).await?;
    Ok(Acted {
        upgrade,
        ..Acted::new(&accepted, &desired, &observed, applied)
    })
}

/// Sets the certificates of a mirror whose certificates the operator issues, and returns the observed state. The certificate
/// names the Service's address, so a missing Service is applied first.
async fn ensure_certificates(
    accepted: &mut Accepted<'_>,
    references: &References,
    context: &Context,
) -> Result<Observed, ReconcileError> {
    let (mirror, lifetimes) = (accepted.mirror, &context.settings.lifetimes);
    let mut ensure = |observed: &Observed| {
        let names = certificates::subject_names(mirror, observed);
        certificates::ensure(accepted, references, &names, observed.at, lifetimes)
    };
    let observed = context.observe(mirror).await?;
    ensure(&observed)?;
    if observed.service.is_some() || !certificates::is_self_signed(mirror) {
        return Ok(observed);
    }
    let desired = desired::objects(accepted, references, &observed, &context.settings.release);
    apply::apply_service(mirror, &desired.map_err(ApplyError::from)?, &context.cluster).await?;
    let observed = context.observe(mirror).await?;
    let names = certificates::subject_names(mirror, &observed);
    certificates::ensure(accepted, references, &names, observed.at, lifetimes)?;
    Ok(observed)
}

/// Writes the status if it differs, and publishes the events of its transitions.
async fn update_status(
    mirror: &RegistryMirror,
    context: &Context,
    outcome: &Outcome,
) -> Result<Observed, ReconcileError> {
    let mut observed = context.observe(mirror).await?;
    if !outcome.is_fully_applied() {
        observed.certificate = certificate_renewal::served_validity(mirror, context).await;
    }
    context.rollout.rollout().observe(mirror, &observed);
    let before = context.written.latest(mirror);
    let status = status::compute(mirror, &before, outcome, &observed, observed.at);
    let is_pending = status::is_pending(&status, &observed) || outcome.is_reload_pending();
    context.poller.track(mirror, &observed, is_pending);
    context.nodes.track(mirror);
    if status != before {
        let client = context.cluster.client();
        status::write::write(client, &context.written, mirror, &status)
            .await
            .map_err(ReconcileError::Status)?;
        let mut transitions = events::transitions(&before.conditions, &status.conditions);
        transitions.extend(events::rotations(&before.upstreams, &status.upstreams));
        events::publish(&context.recorder, &mirror.object_ref(&()), &transitions).await;
    }
    Ok(observed)
}
