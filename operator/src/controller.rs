//! The wiring: what triggers a reconcile, what a reconcile does, what follows when it fails.

use std::{sync::Arc, time::Duration};

use crds::RegistryMirror;
use futures::{FutureExt, StreamExt, stream};
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        applier,
        controller::{self, Action},
        events::Recorder,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};
use mirror::clock::Clock;
use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    apply,
    cluster::{
        Cluster, Scope,
        children::Children,
        listed::Listed,
        watch::{self, Stored},
    },
    dereference::{self, References},
    desired::{self, Desired, Release},
    index::Index,
    issue::{self, Terms},
    metrics::Metrics,
    observed::Observed,
    pace::Pace,
    replicas::Replicas,
    retry::Retries,
    stages::{self, Share},
    status::{self, Acted, Outcome, events, write::Written},
    unparsable,
    validate::{self, Accepted},
};

mod adoption;
mod error;
mod management;
mod rest;
mod upkeep;

pub use error::Error;
pub use management::ABANDONED;
use management::Manager;

/// How many mirrors are worked on at a time.
const CONCURRENCY: u16 = 16;
/// Everything is looked at again after about this time, if nothing else is said, though nothing seems to have happened.
pub const RESYNC: Duration = Duration::from_mins(15);
/// No mirror holds one of those places for longer.
const RECONCILE_TIMEOUT: Duration = Duration::from_mins(1);
/// A failure that often in a row is worth an event.
const ATTEMPTS_BEFORE_EVENT: u32 = 4;

/// What every reconcile needs.
pub(crate) struct Context {
    pub(crate) cluster: Cluster,
    pub(crate) recorder: Recorder,
    settings: Settings,
    stages: Share,
    index: Arc<Index>,
    replicas: Arc<Replicas>,
    written: Written,
    leases: management::Leases,
    retries: Retries,
    pace: Pace,
    metrics: Arc<Metrics>,
    listed: Listed<()>,
}

/// What a controller is given beside the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operator's name among others, that of its Lease as `NAMESPACE/NAME`; empty: there are no others.
    pub name: String,
    /// What a release has fixed.
    pub release: Release,
    /// For how long the certificates are good that it issues.
    pub terms: Terms,
    /// What it takes for the time.
    pub clock: Clock,
    /// How often every mirror is looked at though nothing seems to have happened.
    pub resync: Duration,
}

/// A scope's controller, ready to run.
pub struct Controller {
    context: Arc<Context>,
    mirrors: Store<Stored>,
    triggers: stream::BoxStream<'static, watch::Trigger>,
}

impl Controller {
    /// Prepares the watches of a scope. Nothing is asked of the API server before `run`.
    pub fn new(
        client: &Client,
        scope: &Scope,
        settings: Settings,
        recorder: Recorder,
        metrics: Arc<Metrics>,
        part: stages::Part,
    ) -> Self {
        let (children, writers) = Children::new();
        let writer = Writer::default();
        let mirrors = writer.as_reader();
        let (replicas, reports) = Replicas::new(Arc::clone(&children));
        let context = Arc::new(Context {
            cluster: Cluster::new(client.clone(), Arc::clone(&children)),
            recorder,
            settings,
            stages: part.share,
            index: Arc::default(),
            replicas,
            written: Written::default(),
            leases: management::Leases::default(),
            retries: Retries::default(),
            pace: Pace::default(),
            metrics,
            listed: Listed::new([()]),
        });
        let seen = Arc::clone(&context);
        context.metrics.count(mirrors.clone());
        context.metrics.may_fail_by(&Error::CLASSES);
        let (relisted, all) = watch::Relisted::new(mirrors.clone());
        let triggers = stream::select_all([
            watch::mirrors(client, scope, writer, move |event| seen.saw(event)).boxed(),
            watch::children(client, scope, &relisted, &children, writers).boxed(),
            watch::references(client, scope, &relisted, &context.index).boxed(),
            all.boxed(),
            reports.boxed(),
            part.woken,
        ]);
        Self {
            context,
            mirrors,
            triggers: triggers.boxed(),
        }
    }

    /// Completes once everything was listed.
    pub fn synced(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mirrors, children) = (
            self.context.listed.all(),
            Arc::clone(&self.context.cluster.children),
        );
        async move {
            children.ready().await;
            mirrors.await;
        }
    }

    /// Reconciles until it is told to stop, and lets what is running end.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self {
            context,
            mirrors,
            triggers,
        } = self;
        let _asking = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&context.replicas).run()));
        let (all, end) = (mirrors.clone(), Arc::clone(&context));
        applier(
            |mirror, context| {
                let task = tokio::spawn(reconcile(mirror, context));
                task.map(|done| done.unwrap_or_else(|panic| Err(Error::Panicked(panic))))
            },
            |mirror, error, context| context.failed(&mirror, error),
            context,
            mirrors,
            triggers.take_until(shutdown.cancelled_owned()),
            controller::Config::default().concurrency(CONCURRENCY),
        )
        .for_each(|done| async {
            match done {
                Ok(_)
                | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(%error, "a watch failed; it is tried again"),
            }
        })
        .await;
        management::withdraw_all(&all, &end).await;
    }
}

impl Context {
    /// Keeps what is known of mirrors in step with them, ahead of their reconciles.
    fn saw(&self, event: &Event<Stored>) {
        match event {
            Event::Apply(stored) | Event::InitApply(stored) => {
                let references = stored.0.as_ref().map(dereference::of).unwrap_or_default();
                self.index.set(
                    &stored.namespace().unwrap_or_default(),
                    &stored.name_any(),
                    references,
                );
            }
            Event::Delete(stored) => {
                let (namespace, name) = (stored.namespace().unwrap_or_default(), stored.name_any());
                self.index.remove(&namespace, &name);
                self.replicas.forget(&namespace, &name);
                self.stages.leave(&(namespace, name), self.settings.clock.now());
                self.written.remove(&stored.uid().unwrap_or_default());
                self.retries.forget(stored);
                self.pace.forget(&stored.uid().unwrap_or_default());
                self.metrics.apply_rejected(&stored.uid().unwrap_or_default(), false);
            }
            Event::InitDone => self.listed.done(&()),
            Event::Init => {}
        }
    }

    /// What the cluster holds of a mirror, and what its servers say.
    async fn observe(&self, mirror: &RegistryMirror) -> Result<Observed, Error> {
        let mut observed = self.cluster.observe(mirror).await.map_err(Error::Read)?;
        observed.at = self.settings.clock.now();
        self.replicas.tell(mirror, &mut observed);
        Ok(observed)
    }

    /// What the cluster should hold of a mirror, its own certificates included.
    fn desired(
        &self,
        accepted: &mut Accepted<'_>,
        references: &References,
        observed: &Observed,
        release: &Release,
    ) -> Result<Desired, Error> {
        let names = issue::names(accepted.mirror, observed);
        issue::certificates(accepted, references, &names, observed.at, &self.settings.terms)?;
        let desired = desired::objects(accepted, references, observed, release);
        Ok(desired.map_err(apply::Error::from)?)
    }

    /// What is told of a failure once it is none that passes.
    fn lasting(&self, stored: &Stored, error: &Error) -> Option<String> {
        let lasts = self.retries.attempts(stored) + 1 >= ATTEMPTS_BEFORE_EVENT;
        error.told().filter(|_| lasts)
    }

    /// When to try again.
    fn failed(&self, stored: &Stored, error: &Error) -> Action {
        let retry = self.retries.next(stored);
        let after = error.after().unwrap_or(retry.after);
        let mirror = ObjectRef::from_obj(stored);
        tracing::warn!(%mirror, %error, attempt = retry.attempt, "not done; trying again in {after:?}");
        if retry.attempt == ATTEMPTS_BEFORE_EVENT {
            let (recorder, reference) = (self.recorder.clone(), stored.object_ref(&()));
            let event = events::failure(error);
            tokio::spawn(async move { recorder.publish(&event, &reference).await });
        }
        Action::requeue(after)
    }
}

/// Makes the cluster match one mirror's spec.
///
/// # Errors
/// Only what a retry can mend; what the user must mend is a condition in the status.
async fn reconcile(stored: Arc<Stored>, context: Arc<Context>) -> Result<Action, Error> {
    // What a copy lacks only because it was not listed yet would be written again.
    let children = &context.cluster.children;
    children.ready().await;
    context.stages.begin(|| children.rolling());
    let started = Instant::now();
    if let Some(wait) = context.pace.wait(&stored.uid().unwrap_or_default(), started) {
        return Ok(Action::requeue(wait));
    }
    let result = timeout(RECONCILE_TIMEOUT, pursue(&stored, &context))
        .await
        .unwrap_or(Err(Error::Timeout));
    context
        .metrics
        .reconciled(started.elapsed(), result.as_ref().err().map(Error::class));
    if result.is_ok() {
        context.retries.forget(&stored);
    }
    result
}

async fn pursue(stored: &Stored, context: &Context) -> Result<Action, Error> {
    let mirror = match &stored.0 {
        Ok(mirror) => mirror,
        Err(invalid) => {
            unparsable::report(invalid, context)
                .await
                .map_err(Error::Status)?;
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
    // Though not everything could be applied, what is there goes on changing, and is told.
    let (mut outcome, failure) = act(mirror, context).await;
    if let (Outcome::Failed(why), Some(error)) = (&mut outcome, &failure) {
        *why = context.lasting(stored, error);
    }
    let uid = stored.uid().unwrap_or_default();
    context.metrics.apply_rejected(&uid, outcome.rejection_message().is_some());
    let told = tell(mirror, context, &outcome).await;
    match failure {
        Some(failure) => Err(failure),
        None => told.map(|observed| {
            let rest = rest::after(&outcome, &observed, context.settings.resync);
            Action::requeue(rest.min(context.stages.rest(mirror, observed.at)))
        }),
    }
}

/// Writes the status if there is something new to say.
async fn tell(mirror: &RegistryMirror, context: &Context, outcome: &Outcome) -> Result<Observed, Error> {
    let mut observed = context.observe(mirror).await?;
    if !outcome.is_handed_out() {
        observed.certificate = upkeep::served(mirror, context).await;
    }
    context.stages.saw(mirror, &observed);
    let before = context.written.latest(mirror);
    let status = status::of(mirror, &before, outcome, &observed, observed.at);
    let pending = status::is_pending(&status) || outcome.is_news_to_some();
    context.replicas.follow(mirror, &observed, pending);
    if status != before {
        let client = context.cluster.client();
        status::write::write(client, &context.written, mirror, &status)
            .await
            .map_err(Error::Status)?;
        let mut story = events::transitions(&before.conditions, &status.conditions);
        story.extend(events::rotations(&before.upstreams, &status.upstreams));
        events::publish(&context.recorder, &mirror.object_ref(&()), &story).await;
    }
    Ok(observed)
}

/// The pipeline up to the status: what it came to, and what has to be tried again.
async fn act(mirror: &RegistryMirror, context: &Context) -> (Outcome, Option<Error>) {
    if mirror.spec.paused {
        return (Outcome::Paused, None);
    }
    match converge(mirror, context).await {
        Ok(acted) => (Outcome::Acted(acted), None),
        Err(Error::Apply(apply::Error::Rejected(rejection))) => {
            let failure = upkeep::certificates(mirror, context).await.err();
            (Outcome::Rejected(rejection), failure)
        }
        Err(error) => (Outcome::Failed(None), Some(error)),
    }
}

/// Adopts objects, then makes the cluster match the spec. An object that can't be adopted stops only what needs it.
async fn converge(mirror: &RegistryMirror, context: &Context) -> Result<Acted, Error> {
    let refusals = adoption::adopt(mirror, context).await?;
    let done = sync(mirror, context).await;
    done.map_err(|error| adoption::explain(error, refusals))
}

async fn sync(mirror: &RegistryMirror, context: &Context) -> Result<Acted, Error> {
    let references = dereference::read(mirror, &context.cluster)
        .await
        .map_err(Error::Read)?;
    let mut accepted = validate::accept(mirror, &references).map_err(apply::Error::from)?;
    let mut observed = context.observe(mirror).await?;
    let release = &context.settings.release;
    if issue::is_wanted(mirror) && observed.service.is_none() {
        // Its certificate names the Service's address, so that the Service comes before all else.
        let desired = context.desired(&mut accepted, &references, &observed, release)?;
        apply::service(mirror, &desired, &context.cluster).await?;
        observed = context.observe(mirror).await?;
    }
    let (desired, upgrade) = context.stages.objects(mirror, &observed, release, |release| {
        context.desired(&mut accepted, &references, &observed, release)
    })?;
    let applied = apply::all(mirror, &desired, &observed, &context.cluster).await?;
    Ok(Acted {
        upgrade,
        ..Acted::new(&accepted, &desired, &observed, applied)
    })
}
