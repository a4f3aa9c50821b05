//! Explains the conditions of a mirror.

use crds::{
    RegistryMirror,
    conditions::{ConditionType, Reason},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::report::{Check, Class, Finding};

/// Returns the findings of a status.
pub(super) fn findings(subject: &str, mirror: &RegistryMirror) -> Vec<Finding> {
    let status = mirror.status.clone().unwrap_or_default();
    if status.conditions.is_empty() {
        let message = "has no status: no operator reconciles it";
        return vec![
            Finding::problem(Check::Mirror, Class::Cluster, subject, message).advice(
                "check that an operator runs, and that its watchNamespaces, if set, include the namespace",
            ),
        ];
    }
    let mut findings = Vec::new();
    if status.observed_generation < mirror.metadata.generation {
        let message = "was changed after the last reconcile";
        findings.push(
            Finding::warning(Check::Mirror, subject, message)
                .advice("if this persists, the operator's log and the events of the mirror have the cause"),
        );
    }
    let is = |condition: &&Condition, kind: ConditionType| condition.type_ == kind.as_str();
    let others = status.conditions.iter().filter(|c| !is(c, ConditionType::Ready));
    findings.extend(others.filter_map(|condition| finding(subject, condition)));
    let ready = status.conditions.iter().find(|c| is(c, ConditionType::Ready));
    match ready {
        Some(ready) if ready.status == "True" => {
            let endpoint = status
                .endpoint
                .map_or_else(|| "no address yet".to_owned(), |endpoint| endpoint.url);
            let (some, all) = (status.ready_replicas, status.replicas);
            let message = format!("is ready: {some} of {all} replicas serve at {endpoint}");
            findings.push(Finding::ok(Check::Mirror, subject, message));
        }
        // Another finding has the cause.
        Some(ready) if findings.is_empty() => findings.extend(finding(subject, ready)),
        _ => {}
    }
    findings
}

/// Returns the finding of one condition, if it is worth one.
fn finding(subject: &str, condition: &Condition) -> Option<Finding> {
    let reason = Reason::ALL.iter().find(|one| one.as_str() == condition.reason);
    let text = format!("{}: {}", in_words(condition), condition.message);
    let warning = || Finding::warning(Check::Mirror, subject, &text);
    let problem = || Finding::problem(Check::Mirror, class(reason), subject, &text);
    let finding = match (condition.type_.as_str(), condition.status.as_str(), reason) {
        ("Paused" | "Progressing", "True", _) | (_, "Unknown", _) | (_, "True", Some(Reason::Expiring)) => {
            warning()
        }
        ("OperatorConflict", "True", _) => problem(),
        ("Paused", ..) | (_, "True", _) | ("Progressing", _, Some(Reason::RolledOut)) => return None,
        // These never take a mirror out of service.
        ("UpstreamReachable" | "NodesConfigured", ..)
        | ("Progressing", _, Some(Reason::UpgradeWaiting))
        | (_, _, Some(Reason::ScaledToZero)) => warning(),
        _ => problem(),
    };
    let finding = finding.reason(&condition.reason);
    let advice = reason.and_then(|reason| reason.advice());
    Some(
        match advice.filter(|advice| !condition.message.contains(advice)) {
            Some(advice) => finding.advice(advice),
            None => finding,
        },
    )
}

fn in_words(condition: &Condition) -> &'static str {
    match (condition.type_.as_str(), condition.status.as_str()) {
        ("Ready", _) => "is not ready",
        ("Accepted", _) => "spec is rejected",
        ("Available", _) => "no server is ready",
        ("Progressing", "True") => "a change is in progress",
        ("Progressing", _) => "a change is stuck",
        ("CredentialsValid", "Unknown") => "credentials are not verified yet",
        ("CredentialsValid", _) => "credentials are not usable",
        ("UpstreamReachable", _) if condition.reason == Reason::RateLimited.as_str() => {
            "an upstream limits the rate of requests"
        }
        ("UpstreamReachable", _) => "an upstream does not respond",
        ("StorageReady", _) => "storage has a fault",
        ("TLSReady", "True") => "the certificate expires soon",
        ("TLSReady", _) => "there is no valid certificate",
        ("NodesConfigured", _) => "some nodes do not pull through it",
        ("Paused", _) => "is paused",
        ("OperatorConflict", _) => "two operators cover its namespace",
        _ => "has a fault",
    }
}

fn class(reason: Option<&Reason>) -> Class {
    match reason {
        Some(Reason::InvalidSpec | Reason::NotAllowed | Reason::NameConflict) => Class::Spec,
        Some(
            Reason::ReferenceNotFound
            | Reason::ReferenceMalformed
            | Reason::SecretNotFound
            | Reason::SecretMalformed
            | Reason::UpstreamRejected
            | Reason::Malformed
            | Reason::Expiring
            | Reason::Expired
            | Reason::NotYetValid,
        ) => Class::Reference,
        Some(
            Reason::ManagedByAnother
            | Reason::AddressTaken
            | Reason::RetentionPolicyNotApplied
            | Reason::ApplyRejected
            | Reason::UpgradeFailed
            | Reason::NoReadyReplicas
            | Reason::ClaimPending
            | Reason::ResizeUnsupported
            | Reason::Full,
        ) => Class::Cluster,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn reported(conditions: &Value) -> Vec<Value> {
        let mirror: RegistryMirror = serde_json::from_value(json!({
            "apiVersion": "registrymirror.io/v1alpha1",
            "kind": "RegistryMirror",
            "metadata": {"name": "hub", "generation": 2},
            "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}},
            "status": {"observedGeneration": 2, "replicas": 1, "readyReplicas": 1, "conditions": conditions},
        }))
        .unwrap();
        let findings = findings("a/hub", &mirror);
        findings
            .iter()
            .map(|finding| serde_json::to_value(finding).unwrap())
            .collect()
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn healthy_mirror_has_one_finding() {
        let reported = reported(&json!([
            condition("Ready", "True", "Serving"),
            condition("Accepted", "True", "SpecAccepted"),
            condition("Progressing", "False", "RolledOut"),
        ]));
        assert_eq!(reported.len(), 1);
        assert!(
            reported[0]["message"]
                .as_str()
                .unwrap()
                .starts_with("is ready: 1 of 1 replicas")
        );
    }

    /// An upstream that answers 429 is not reported as one that does not respond.
    #[test]
    fn rate_limit_is_called_a_rate_limit() {
        let message = |reason| {
            let reported = reported(&json!([condition("UpstreamReachable", "False", reason)]));
            reported[0]["message"].as_str().unwrap().to_owned()
        };
        assert_eq!(
            message("RateLimited"),
            "an upstream limits the rate of requests: m"
        );
        assert_eq!(message("Unreachable"), "an upstream does not respond: m");
    }

    #[test]
    fn mirror_without_status_is_a_problem() {
        assert_eq!(reported(&json!([]))[0]["result"], "problem");
    }

    #[test]
    fn cause_of_not_ready_is_reported_once() {
        let reported = reported(&json!([
            condition("Ready", "False", "ClaimPending"),
            condition("StorageReady", "False", "ClaimPending"),
        ]));
        assert_eq!(reported.len(), 1);
        assert!(reported[0]["advice"].as_str().unwrap().contains("describe pvc"));
    }

    /// The result that `doctor` gives to a condition.
    #[test_case("CredentialsValid", "False", "UpstreamRejected" => "problem")]
    #[test_case("CredentialsValid", "Unknown", "Loading" => "warning")]
    #[test_case("UpstreamReachable", "False", "RateLimited" => "warning")]
    #[test_case("Available", "False", "ScaledToZero" => "warning")]
    #[test_case("Available", "False", "NoReadyReplicas" => "problem")]
    #[test_case("Progressing", "True", "RollingOut" => "warning")]
    #[test_case("Paused", "True", "PausedBySpec" => "warning")]
    #[test_case("TLSReady", "True", "Expiring" => "warning")]
    #[test_case("TLSReady", "False", "Expired" => "problem")]
    fn condition_result(kind: &str, status: &str, reason: &str) -> String {
        let reported = reported(&json!([condition(kind, status, reason)]));
        assert_eq!(reported[0]["reason"], reason);
        reported[0]["result"].as_str().unwrap().to_owned()
    }
}
