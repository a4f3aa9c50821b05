//! The events of a mirror, one for each transition.

use crds::{
    conditions::{ConditionType, Reason},
    status::UpstreamStatus,
};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::runtime::events::{Event, EventType, Recorder};

use crate::kind::Kind;

/// The reason of an event: all servers use new credentials.
const ROTATED: &str = "CredentialsRotated";
/// The reason of an event: the mirror adopted an object.
const ADOPTED: &str = "Adopted";
/// The maximum length of a note, in bytes.
const NOTE_BYTES: usize = 1000;
/// The maximum length of an action, in bytes.
const ACTION_BYTES: usize = 128;

/// Returns the events of changed conditions.
///
/// A condition without a previous state has an event only if it reports a fault, else each new mirror would have one
/// for each healthy aspect.
pub fn transitions(before: &[Condition], now: &[Condition]) -> Vec<Event> {
    now.iter()
        .filter(
            |now| match before.iter().find(|before| before.type_ == now.type_) {
                Some(before) => before.status != now.status || before.reason != now.reason,
                None => is_bad(now) || now.type_ == ConditionType::Paused.as_str(),
            },
        )
        .map(event)
        .collect()
}

fn event(condition: &Condition) -> Event {
    Event {
        type_: if is_bad(condition) {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: condition.reason.clone(),
        note: Some(cut(&condition.message, NOTE_BYTES)),
        action: format!("{}{}", condition.type_, condition.status),
        secondary: None,
    }
}

/// Returns the events of rotations: all servers use the new credentials. The first credentials have a condition only.
pub fn rotations(before: &[UpstreamStatus], now: &[UpstreamStatus]) -> Vec<Event> {
    let rotated = |now: &UpstreamStatus| {
        let credentials = now.credentials.as_ref()?;
        let before = before.iter().find(|before| before.host == now.host)?;
        let (then, now_at) = (
            before.credentials.as_ref()?.last_rotation_time.as_ref()?,
            credentials.last_rotation_time.as_ref()?,
        );
        (then != now_at).then(|| Event {
            type_: EventType::Normal,
            reason: ROTATED.to_owned(),
            note: Some(format!(
                "all replicas use the new credentials of Secret {} for {} (version {})",
                credentials.secret, now.host, credentials.version
            )),
            // Events are one series where only their notes differ.
            action: cut(&format!("Rotate {}", now.host), ACTION_BYTES),
            secondary: None,
        })
    };
    now.iter().filter_map(rotated).collect()
}

/// Returns the event for an object that the mirror has adopted.
pub fn adoption(kind: Kind, name: &str) -> Event {
    let note =
        format!("{kind} {name} has this mirror's labels and had no owner: the mirror owns it from now on");
    Event {
        type_: EventType::Normal,
        reason: ADOPTED.to_owned(),
        note: Some(cut(&note, NOTE_BYTES)),
        // Events are one series where only their notes differ.
        action: cut(&format!("Adopt {kind} {name}"), ACTION_BYTES),
        secondary: None,
    }
}

/// Returns the event for a failure that persists.
pub fn failure(error: &dyn std::error::Error) -> Event {
    Event {
        type_: EventType::Warning,
        reason: "ReconcileFailed".to_owned(),
        note: Some(cut(&error.to_string(), NOTE_BYTES)),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

fn is_bad(condition: &Condition) -> bool {
    const EXPECTED: [Reason; 4] = [
        Reason::ScaledToZero,
        Reason::RolledOut,
        Reason::RollingOut,
        Reason::UpgradeWaiting,
    ];
    condition.reason == Reason::Expiring.as_str()
        || condition.reason == Reason::ManagedByAnother.as_str()
        || condition.status == "False" && !EXPECTED.iter().any(|reason| reason.as_str() == condition.reason)
}

/// Returns the beginning of a text, of at most this number of bytes.
pub(super) fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

/// Publishes events. A lost event changes nothing: the status has the same information.
pub async fn publish(recorder: &Recorder, mirror: &ObjectReference, events: &[Event]) {
    for event in events {
        if let Err(error) = recorder.publish(event, mirror).await {
            tracing::warn!(reason = event.reason, %error, "event not published");
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn condition(kind: ConditionType, status: &str, reason: Reason) -> Condition {
        Condition {
            type_: kind.to_string(),
            status: status.to_owned(),
            reason: reason.to_string(),
            message: "m".repeat(2000),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }
    }

    fn reasons(before: &[Condition], now: &[Condition]) -> Vec<String> {
        transitions(before, now)
            .into_iter()
            .map(|event| event.reason)
            .collect()
    }

    #[test]
    fn unchanged_condition_has_no_event() {
        let now = [condition(ConditionType::Ready, "True", Reason::Serving)];
        assert!(reasons(&now, &now).is_empty());
    }

    #[test]
    fn new_mirror_has_events_for_faults_only() {
        let now = [
            condition(ConditionType::Accepted, "True", Reason::SpecAccepted),
            condition(ConditionType::Available, "False", Reason::NoReadyReplicas),
        ];
        assert_eq!(reasons(&[], &now), ["NoReadyReplicas"]);
    }

    #[test]
    fn transition_has_an_event_of_its_type() {
        let before = [condition(ConditionType::Ready, "False", Reason::NoReadyReplicas)];
        let now = [condition(ConditionType::Ready, "True", Reason::Serving)];
        let good = transitions(&before, &now);
        assert_eq!(
            (good[0].type_, good[0].action.as_str()),
            (EventType::Normal, "ReadyTrue")
        );
        let bad = transitions(&now, &before);
        assert_eq!(
            (bad[0].type_, bad[0].reason.as_str()),
            (EventType::Warning, "NoReadyReplicas")
        );
    }

    #[test]
    fn note_is_cut_to_the_maximum() {
        let note = transitions(
            &[],
            &[condition(ConditionType::Accepted, "False", Reason::InvalidSpec)],
        )
        .remove(0)
        .note;
        assert_eq!(note.unwrap().len(), NOTE_BYTES);
    }
}
