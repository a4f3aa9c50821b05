//! A Pod's status from the states of its containers.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::container::{Ended, Phase, RestartPolicy, Snapshot};

/// The last status of each condition, for the times of transitions.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<(&'static str, bool, Timestamp)>);

impl Conditions {
    fn set(&mut self, kind: &'static str, holds: bool) -> Value {
        let known = self.0.iter().position(|(known, ..)| *known == kind);
        let index = known.unwrap_or_else(|| {
            self.0.push((kind, holds, Timestamp::now()));
            self.0.len() - 1
        });
        let (_, last, since) = &mut self.0[index];
        if *last != holds {
            (*last, *since) = (holds, Timestamp::now());
        }
        let status = if holds { "True" } else { "False" };
        json!({"type": kind, "status": status, "lastTransitionTime": seconds(*since)})
    }
}

/// Returns the object to apply to the status subresource.
pub(super) fn object(
    pod: &Pod,
    states: &[Snapshot],
    address: Ipv4Addr,
    has_volumes: bool,
    started: Timestamp,
    conditions: &mut Conditions,
) -> Value {
    let containers = pod
        .spec
        .as_ref()
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    let statuses: Vec<Value> = containers
        .iter()
        .zip(states)
        .map(|(c, s)| of_container(pod, c, s))
        .collect();
    let policy = RestartPolicy::from_text(pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()));
    let ready = states.iter().all(|state| state.ready);
    let conditions = json!([
        conditions.set("PodReadyToStartContainers", has_volumes),
        conditions.set("Initialized", true),
        conditions.set("ContainersReady", ready),
        conditions.set("Ready", ready),
    ]);
    let mut reported = json!({
        "phase": phase(states, policy),
        "startTime": seconds(started),
        "hostIP": Ipv4Addr::LOCALHOST,
        "hostIPs": [{"ip": Ipv4Addr::LOCALHOST}],
        "conditions": conditions,
        "containerStatuses": statuses,
    });
    if has_volumes {
        reported["podIP"] = json!(address);
        reported["podIPs"] = json!([{"ip": address}]);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": pod.metadata.uid},
        "status": reported,
    })
}

/// Returns the phase by the kubelet's rule: Pending until each container ran once, ended once none will run again.
fn phase(states: &[Snapshot], policy: RestartPolicy) -> &'static str {
    let waits_for_the_first_time =
        |state: &Snapshot| matches!(state.phase, Phase::Waiting { .. }) && state.last.is_none();
    if states.iter().any(waits_for_the_first_time) {
        return "Pending";
    }
    let over = |state: &Snapshot| match &state.phase {
        Phase::Terminated(ended) => match policy {
            RestartPolicy::Always => None,
            RestartPolicy::OnFailure => (ended.code == 0).then_some(true),
            RestartPolicy::Never => Some(ended.code == 0),
        },
        _ => None,
    };
    match states.iter().map(over).collect::<Option<Vec<bool>>>() {
        Some(results) if results.iter().all(|succeeded| *succeeded) => "Succeeded",
        Some(_) => "Failed",
        None => "Running",
    }
}

fn of_container(pod: &Pod, container: &Container, state: &Snapshot) -> Value {
    let last = state.last.as_ref().map(terminated);
    let phase = match &state.phase {
        Phase::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
        Phase::Running { since } => json!({"running": {"startedAt": seconds(*since)}}),
        Phase::Terminated(ended) => terminated(ended),
    };
    let mut status = json!({
        "name": container.name,
        "image": container.image,
        "imageID": container.image,
        "ready": state.ready,
        "started": state.started,
        "restartCount": state.restarts,
        "state": phase,
        "lastState": last.unwrap_or_else(|| json!({})),
    });
    if matches!(state.phase, Phase::Running { .. }) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        status["containerID"] = json!(format!("process://{uid}/{}/{}", container.name, state.restarts));
    }
    status
}

fn terminated(ended: &Ended) -> Value {
    let reason = match ended {
        Ended { message, .. } if !message.is_empty() => "StartError",
        Ended { code: 0, .. } => "Completed",
        Ended { .. } => "Error",
    };
    json!({"terminated": {
        "exitCode": ended.code,
        "signal": ended.signal.unwrap_or_default(),
        "reason": reason,
        "message": ended.message,
        "startedAt": seconds(ended.started),
        "finishedAt": seconds(ended.finished),
    }})
}

/// Times of the core API have no fractions.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: Phase) -> Snapshot {
        Snapshot {
            phase,
            ..Snapshot::creating(String::new())
        }
    }

    fn ended(code: i32) -> Phase {
        Phase::Terminated(Ended {
            code,
            signal: None,
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            message: String::new(),
        })
    }

    fn running() -> Phase {
        Phase::Running {
            since: Timestamp::UNIX_EPOCH,
        }
    }

    /// The phase of a pod follows its containers and the restart policy.
    #[test]
    fn phase_follows_containers_and_restart_policy() {
        let creating = Snapshot::creating(String::new());
        for (states, policy, wanted) in [
            (
                vec![creating.clone(), state(running())],
                RestartPolicy::Always,
                "Pending",
            ),
            (
                vec![state(running()), state(ended(1))],
                RestartPolicy::Always,
                "Running",
            ),
            (vec![state(ended(1))], RestartPolicy::Always, "Running"),
            (vec![state(ended(1))], RestartPolicy::OnFailure, "Running"),
            (vec![state(ended(0))], RestartPolicy::OnFailure, "Succeeded"),
            (
                vec![state(ended(0)), state(ended(1))],
                RestartPolicy::Never,
                "Failed",
            ),
            (
                vec![state(ended(0)), state(running())],
                RestartPolicy::Never,
                "Running",
            ),
        ] {
            assert_eq!(phase(&states, policy), wanted, "{states:?} {policy:?}");
        }
    }

    /// A condition keeps its transition time until it changes.
    #[test]
    fn condition_keeps_time_until_change() {
        let mut conditions = Conditions::default();
        let first = conditions.set("Ready", false);
        conditions.0[0].2 = Timestamp::UNIX_EPOCH;
        assert_eq!(
            conditions.set("Ready", false)["lastTransitionTime"],
            "1970-01-01T00:00:00Z"
        );
        assert_eq!(first["status"], "False");
        assert_ne!(
            conditions.set("Ready", true)["lastTransitionTime"],
            "1970-01-01T00:00:00Z"
        );
    }
}
