//! The condition `Progressing`: a change reaches the servers.

use crds::conditions::{ConditionType, Reason, Truth};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    Acted, Outcome, Upgrade,
    conditions::{ConditionUpdate, with_advice},
};
use crate::{
    desired::ADMIN_PORT,
    observed::{Observed, PollResult, Server},
};

/// Returns `Progressing`.
pub(super) fn condition(
    outcome: &Outcome,
    observed: &Observed,
    before: &[Condition],
) -> Option<ConditionUpdate> {
    let kind = ConditionType::Progressing;
    let going = |message: String| {
        Some(ConditionUpdate::new(
            kind,
            Truth::True,
            Reason::RollingOut,
            message,
        ))
    };
    if let Some(why) = outcome.rejection_message() {
        let (reason, why) = (
            Reason::ApplyRejected,
            format!("not all objects applied: {why}; the operator retries"),
        );
        return Some(ConditionUpdate::new(
            kind,
            Truth::False,
            reason,
            with_advice(why, reason),
        ));
    }
    let Some(workload) = &observed.workload else {
        return match outcome {
            // No change is pending.
            Outcome::Paused | Outcome::Rejected(_) => None,
            Outcome::Acted(_) | Outcome::Failed(_) => going("servers are being created".to_owned()),
        };
    };
    if let Outcome::Acted(Acted { upgrade, .. }) = outcome
        && let Some(update) = rollout(upgrade, workload.is_rolled_out())
    {
        return Some(update);
    }
    if !workload.is_rolled_out() {
        return going(format!(
            "{} of {} replicas run the current spec",
            workload.updated, workload.wanted
        ));
    }
    if observed.has_unpolled() && before.iter().any(|before| before.type_ == kind.as_str()) {
        return None;
    }
    if let Outcome::Acted(Acted { configuration, .. }) = outcome
        && let Some(waiting) = lacking(configuration, &observed.servers)
    {
        return going(waiting);
    }
    Some(ConditionUpdate::new(
        kind,
        Truth::False,
        Reason::RolledOut,
        "all replicas run the current spec",
    ))
}

/// Returns the condition of a mirror whose rollout waits or has failed.
fn rollout(upgrade: &Upgrade, rolled_out: bool) -> Option<ConditionUpdate> {
    let (reason, message) = match upgrade {
        Upgrade::Waiting(obstacle) if rolled_out => (
            Reason::UpgradeWaiting,
            format!(
                "all replicas run the previous version; the new version of the operator waits: {obstacle}"
            ),
        ),
        Upgrade::Failed(seconds) if !rolled_out => (
            Reason::UpgradeFailed,
            with_advice(
                format!(
                    "not ready {seconds} s after the rollout of the operator's new version, and the rollout is paused in this namespace"
                ),
                Reason::UpgradeFailed,
            ),
        ),
        _ => return None,
    };
    Some(ConditionUpdate::new(
        ConditionType::Progressing,
        Truth::False,
        reason,
        message,
    ))
}

/// Returns the message about the first server that does not have the configuration.
fn lacking(configuration: &str, servers: &[Server]) -> Option<String> {
    servers.iter().find_map(|server| match &server.poll {
        PollResult::Report(report) if report.configuration == configuration => None,
        PollResult::Report(report) if !report.configuration_error.is_empty() => Some(format!(
            "replica {} keeps its previous configuration: {}",
            server.pod, report.configuration_error
        )),
        PollResult::Report(_) => Some(format!("replica {} has not loaded its new configuration yet", server.pod)),
        PollResult::Unresponsive => Some(format!(
            "replica {} does not respond to the operator at {}, port {ADMIN_PORT}: check that no NetworkPolicy blocks it",
            server.pod, server.address
        )),
        PollResult::NotPolled => Some(format!("replica {} was not polled yet", server.pod)),
    })
}
