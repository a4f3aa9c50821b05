//! Whether a change is on its way to the servers.

use crds::conditions::{ConditionType, Reason, Truth};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Acted, Outcome, Upgrade, conditions::ConditionUpdate};
use crate::{
    desired::ADMIN_PORT,
    observed::{Observed, PollResult, Server},
};

/// Whether a change is on its way.
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
        return going(format!(
            "not everything could be applied: {why}; it is tried again"
        ));
    }
    let Some(workload) = &observed.workload else {
        return match outcome {
            // Nothing is on its way.
            Outcome::Paused | Outcome::Rejected(_) => None,
            Outcome::Acted(_) | Outcome::Failed(_) => going("the servers are being set up".to_owned()),
        };
    };
    if let Outcome::Acted(Acted { upgrade, .. }) = outcome
        && let Some(stands) = standing(upgrade, workload.is_rolled_out())
    {
        return Some(stands);
    }
    if !workload.is_rolled_out() {
        return going(format!(
            "{} of {} replicas run what the spec asks for",
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
        "every replica runs what the spec asks for",
    ))
}

/// What is said of a mirror that a new version of the operator does not reach for now.
fn standing(upgrade: &Upgrade, rolled_out: bool) -> Option<ConditionUpdate> {
    let (reason, message) = match upgrade {
        Upgrade::Waiting(obstacle) if rolled_out => (
            Reason::UpgradeWaiting,
            format!(
                "every replica runs what it did; what the operator's new version brings waits: {obstacle}"
            ),
        ),
        Upgrade::Failed(seconds) if !rolled_out => (
            Reason::UpgradeFailed,
            format!(
                "not ready {seconds} s after it was given what the operator's new version brings; other mirrors wait \
                 until it is, or the operator is told of another server image"
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

/// The first server that is not known to have the configuration.
fn lacking(configuration: &str, servers: &[Server]) -> Option<String> {
    servers.iter().find_map(|server| match &server.poll {
        PollResult::Report(report) if report.configuration == configuration => None,
        PollResult::Report(report) if !report.configuration_error.is_empty() => Some(format!(
            "replica {} goes on with its previous configuration: {}",
            server.pod, report.configuration_error
        )),
        PollResult::Report(_) => Some(format!("replica {} has not read its new configuration yet", server.pod)),
        PollResult::Unresponsive => Some(format!(
            "replica {} does not answer the operator at {}, port {ADMIN_PORT}; does a NetworkPolicy stand in between?",
            server.pod, server.address
        )),
        PollResult::NotPolled => Some(format!("replica {} has not been asked yet", server.pod)),
    })
}
