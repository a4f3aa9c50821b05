//! Computes the conditions.

use crds::{
    RegistryMirror,
    conditions::{ConditionType, Reason, Truth, said},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{Timestamp, Unit},
};

use super::{
    Acted, Outcome, UpstreamCredentials, certificate, credentials, events, nodes, progress, storage,
    upstreams,
};
use crate::{apply::Applied, observed::Observed, validate::Rejection};

/// The maximum length of a message, in bytes: a message of the API server may quote a value of the spec.
const MESSAGE_BYTES: usize = 4096;

/// The new state of a condition.
pub(super) struct ConditionUpdate {
    pub(super) kind: ConditionType,
    pub(super) truth: Truth,
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl ConditionUpdate {
    pub(super) fn new(kind: ConditionType, truth: Truth, reason: Reason, message: impl Into<String>) -> Self {
        debug_assert!(
            said().any(|said| said == (kind, truth, reason)),
            "{kind}={truth}/{reason} is in no table of what can be said"
        );
        Self {
            kind,
            truth,
            reason,
            message: message.into(),
        }
    }
}

/// Returns all conditions that apply, in the documented order. A condition with an unchanged status keeps its
/// transition time. `generation` is that of the described spec.
pub fn compute(
    mirror: &RegistryMirror,
    generation: Option<i64>,
    before: &[Condition],
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> Vec<Condition> {
    let parts = [
        accepted(outcome),
        Some(available(outcome, observed)),
        progress::condition(outcome, observed, before),
        credentials::condition(outcome, observed, before),
        upstreams::condition(mirror, observed),
        storage::condition(mirror, outcome, observed, before),
        certificate::condition(outcome, observed, now),
        nodes::condition(observed.nodes.as_ref()),
        paused(mirror),
    ];
    let said: Vec<_> = parts.iter().flatten().map(|saying| saying.kind).collect();
    let kept = kept(mirror, outcome, observed, before)
        .filter(|kept| said.iter().all(|kind| kind.as_str() != kept.type_));
    let context = Context {
        generation,
        before,
        now,
    };
    let mut conditions: Vec<_> = parts
        .into_iter()
        .flatten()
        .map(|saying| context.condition(&saying))
        .chain(kept)
        .collect();
    conditions.push(context.condition(&ready(&conditions, before, outcome, observed)));
    sorted(conditions)
}

/// Returns the conditions of a mirror that can't be parsed: all but two stay.
pub fn unreadable(
    generation: Option<i64>,
    before: &[Condition],
    rejection: &Rejection,
    now: Timestamp,
) -> Vec<Condition> {
    let context = Context {
        generation,
        before,
        now,
    };
    let said = [ConditionType::Accepted, ConditionType::Ready].map(|kind| {
        context.condition(&ConditionUpdate::new(
            kind,
            Truth::False,
            rejection.reason,
            rejection.message.clone(),
        ))
    });
    let kept = before
        .iter()
        .filter(|condition| said.iter().all(|said| said.type_ != condition.type_))
        .cloned();
    sorted(kept.chain(said.iter().cloned()).collect())
}

fn sorted(mut conditions: Vec<Condition>) -> Vec<Condition> {
    conditions.sort_by_key(|condition| {
        ConditionType::ALL
            .iter()
            .position(|kind| kind.as_str() == condition.type_)
    });
    conditions
}

/// Returns the previous conditions that the outcome says nothing about, and those that only servers or agents know while one
/// is not polled yet. Conditions of other writers are dropped.
fn kept<'a>(
    mirror: &RegistryMirror,
    outcome: &Outcome,
    observed: &Observed,
    before: &'a [Condition],
) -> impl Iterator<Item = Condition> + use<'a> {
    let mut kept: Vec<ConditionType> = match outcome {
        Outcome::Paused | Outcome::Failed(_) => vec![
            ConditionType::Accepted,
            ConditionType::CredentialsValid,
            ConditionType::TLSReady,
        ],
        Outcome::Acted(acted) if acted.credentials.is_empty() => vec![],
        Outcome::Rejected(_) => vec![ConditionType::CredentialsValid, ConditionType::TLSReady],
        Outcome::Acted(_) => vec![ConditionType::CredentialsValid],
    };
    if observed.has_unpolled() {
        kept.extend([ConditionType::Progressing, ConditionType::UpstreamReachable]);
        if mirror.spec.storage.object_store.is_some() {
            kept.push(ConditionType::StorageReady);
        }
    }
    if nodes::is_unpolled(mirror, observed) {
        kept.push(ConditionType::NodesConfigured);
    }
    before
        .iter()
        .filter(move |condition| kept.iter().any(|kind| kind.as_str() == condition.type_))
        .filter(|condition| is_known(condition))
        .cloned()
}

fn is_known(condition: &Condition) -> bool {
    let Condition {
        type_,
        status,
        reason,
        ..
    } = condition;
    said().any(|said| (said.0.as_str(), said.1.as_str(), said.2.as_str()) == (type_, status, reason))
}

struct Context<'a> {
    generation: Option<i64>,
    before: &'a [Condition],
    now: Timestamp,
}

impl Context<'_> {
    fn condition(&self, saying: &ConditionUpdate) -> Condition {
        let status = saying.truth.as_str();
        let before = self
            .before
            .iter()
            .find(|before| before.type_ == saying.kind.as_str());
        let unchanged = before.filter(|before| before.status == status);
        // Conditions carry whole seconds.
        let now = self.now.round(Unit::Second).unwrap_or(self.now);
        Condition {
            type_: saying.kind.to_string(),
            status: status.to_owned(),
            reason: saying.reason.to_string(),
            message: events::cut(&saying.message, MESSAGE_BYTES),
            observed_generation: self.generation,
            last_transition_time: unchanged.map_or(Time(now), |before| before.last_transition_time.clone()),
        }
    }
}

fn accepted(outcome: &Outcome) -> Option<ConditionUpdate> {
    match outcome {
        Outcome::Paused | Outcome::Failed(_) => None,
        Outcome::Rejected(rejection)
        | Outcome::Acted(Acted {
            applied: Applied {
                refused: Some(rejection),
                ..
            },
            ..
        }) => Some(ConditionUpdate::new(
            ConditionType::Accepted,
            Truth::False,
            certificate::as_reference(rejection.reason),
            rejection.message.clone(),
        )),
        Outcome::Acted(_) => Some(ConditionUpdate::new(
            ConditionType::Accepted,
            Truth::True,
            Reason::SpecAccepted,
            "the spec and all objects that it names are valid",
        )),
    }
}

fn available(outcome: &Outcome, observed: &Observed) -> ConditionUpdate {
    let kind = ConditionType::Available;
    let Some(workload) = &observed.workload else {
        let message = match outcome.rejection_message() {
            Some(why) => format!("no server started yet: {why}; the operator retries"),
            None => "no server started yet".to_owned(),
        };
        return ConditionUpdate::new(kind, Truth::False, Reason::NoReadyReplicas, message);
    };
    if workload.ready > 0 {
        return ConditionUpdate::new(
            kind,
            Truth::True,
            Reason::ReplicasReady,
            format!("{} of {} replicas are ready", workload.ready, workload.wanted),
        );
    }
    if workload.wanted == 0 {
        return ConditionUpdate::new(
            kind,
            Truth::False,
            Reason::ScaledToZero,
            "spec.replicas is 0: no server runs",
        );
    }
    let message = workload.obstacle.clone().unwrap_or_else(|| match workload.replicas {
        // A StatefulSet reports the cause in events only.
        0 => format!(
            "0 of {} replicas are ready, no Pod created yet: the events of the StatefulSet or Deployment of this name have the \
             cause, such as a quota",
            workload.wanted
        ),
        _ => with_advice(
            format!("0 of {} replicas are ready", workload.wanted),
            Reason::NoReadyReplicas,
        ),
    });
    ConditionUpdate::new(kind, Truth::False, Reason::NoReadyReplicas, message)
}

/// Returns a message with the advice for its reason.
pub(super) fn with_advice(message: String, reason: Reason) -> String {
    match reason.advice() {
        Some(advice) => format!("{message}: {advice}"),
        None => message,
    }
}

fn paused(mirror: &RegistryMirror) -> Option<ConditionUpdate> {
    mirror.spec.paused.then(|| {
        ConditionUpdate::new(
            ConditionType::Paused,
            Truth::True,
            Reason::PausedBySpec,
            "the operator applies no change to this mirror: set spec.paused to false to continue",
        )
    })
}

/// Returns the summary of the other conditions: its reason is that of the first that prevents pulls.
fn ready(
    conditions: &[Condition],
    before: &[Condition],
    outcome: &Outcome,
    observed: &Observed,
) -> ConditionUpdate {
    let find = |kind: ConditionType| {
        conditions
            .iter()
            .find(|condition| condition.type_ == kind.as_str())
    };
    let is_false = |condition: &&Condition| condition.status == Truth::False.as_str();
    let bound = |condition: &&Condition| condition.reason == Reason::ClaimPending.as_str();
    let obstacle = find(ConditionType::Accepted)
        .filter(is_false)
        .or_else(|| find(ConditionType::StorageReady).filter(is_false).filter(bound))
        .or_else(|| find(ConditionType::TLSReady).filter(is_false))
        .or_else(|| find(ConditionType::Available).filter(is_false))
        // Clients can't reach servers without a Service, which the API server may have rejected.
        .or_else(|| {
            find(ConditionType::Progressing)
                .filter(|_| observed.service.is_none() && outcome.rejection_message().is_some())
        })
        .or_else(|| {
            find(ConditionType::CredentialsValid)
                .filter(is_false)
                .filter(|c| prevents_pulls(c, before, outcome))
        });
    let kind = ConditionType::Ready;
    match obstacle.and_then(|obstacle| Some((obstacle, reason(&obstacle.reason)?))) {
        None => ConditionUpdate::new(kind, Truth::True, Reason::Serving, "pulls are served"),
        Some((obstacle, reason)) => {
            ConditionUpdate::new(kind, Truth::False, reason, obstacle.message.clone())
        }
    }
}

fn reason(name: &str) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == name)
}

/// Returns whether rejected credentials prevent pulls, which the last good ones do not. If Secrets were not read, the
/// previous decision stays.
fn prevents_pulls(credentials: &Condition, before: &[Condition], outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Acted(acted) => acted.credentials.iter().any(UpstreamCredentials::is_stuck),
        Outcome::Paused | Outcome::Rejected(_) | Outcome::Failed(_) => before
            .iter()
            .any(|ready| ready.type_ == ConditionType::Ready.as_str() && ready.reason == credentials.reason),
    }
}
