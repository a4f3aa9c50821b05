//! A mirror's conditions in words.

use crds::{
    RegistryMirror,
    conditions::{ConditionType, Reason},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::report::{Check, Class, Finding};

/// What a mirror's status comes to.
pub(super) fn findings(subject: &str, mirror: &RegistryMirror) -> Vec<Finding> {
    let status = mirror.status.clone().unwrap_or_default();
    if status.conditions.is_empty() {
        let message = "has no status: no operator has looked at it";
        return vec![Finding::problem(Check::Mirror, Class::Cluster, subject, message).advice(
            "see that an operator runs, and that the namespace is one of its watchNamespaces, if it has any",
        )];
    }
    let mut findings = Vec::new();
    if status.observed_generation < mirror.metadata.generation {
        let message = "was changed since the operator last acted on it";
        findings.push(
            Finding::warning(Check::Mirror, subject, message)
                .advice("if it stays so, the operator's log and the events of the mirror say why"),
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
        // What stands in the way of Ready has been told.
        Some(ready) if findings.is_empty() => findings.extend(finding(subject, ready)),
        _ => {}
    }
    findings
}

/// What is worth telling of one condition.
fn finding(subject: &str, condition: &Condition) -> Option<Finding> {
    let text = format!("{}: {}", in_words(condition), condition.message);
    let finding = match (condition.type_.as_str(), condition.status.as_str()) {
        ("Paused" | "Progressing", "True") | (_, "Unknown") => Finding::warning(Check::Mirror, subject, text),
        (_, "True") if condition.reason == Reason::Expiring.as_str() => {
            Finding::warning(Check::Mirror, subject, text)
        }
        ("OperatorConflict", "True") => {
            Finding::problem(Check::Mirror, class(&condition.reason), subject, text)
        }
        ("Paused", _) | (_, "True") => return None,
        ("Progressing", _) if condition.reason == Reason::RolledOut.as_str() => return None,
        ("Progressing", _) if condition.reason == Reason::UpgradeWaiting.as_str() => {
            Finding::warning(Check::Mirror, subject, text)
        }
        // These never take a mirror out of service.
        ("UpstreamReachable", _) => Finding::warning(Check::Mirror, subject, text),
        _ if condition.reason == Reason::ScaledToZero.as_str() => {
            Finding::warning(Check::Mirror, subject, text)
        }
        _ => Finding::problem(Check::Mirror, class(&condition.reason), subject, text),
    };
    let finding = finding.reason(&condition.reason);
    Some(match advice(&condition.reason) {
        Some(advice) => finding.advice(advice),
        None => finding,
    })
}

fn in_words(condition: &Condition) -> &'static str {
    match (condition.type_.as_str(), condition.status.as_str()) {
        ("Ready", _) => "is not ready",
        ("Accepted", _) => "can't be acted on",
        ("Available", _) => "serves nothing",
        ("Progressing", "True") => "a change is on its way",
        ("Progressing", _) => "a change does not arrive",
        ("CredentialsValid", "Unknown") => "credentials are not proven yet",
        ("CredentialsValid", _) => "credentials are not good",
        ("UpstreamReachable", _) => "upstream does not answer",
        ("StorageReady", _) => "storage is not as it should be",
        ("TLSReady", "True") => "the certificate is about to end",
        ("TLSReady", _) => "there is no good certificate",
        ("Paused", _) => "is paused",
        ("OperatorConflict", _) => "two operators cover its namespace",
        _ => "is not as it should be",
    }
}

fn is_one_of(reason: &str, reasons: &[Reason]) -> bool {
    reasons.iter().any(|one| one.as_str() == reason)
}

fn class(reason: &str) -> Class {
    const SPEC: [Reason; 3] = [Reason::InvalidSpec, Reason::NotAllowed, Reason::NameConflict];
    const REFERENCE: [Reason; 9] = [
        Reason::ReferenceNotFound,
        Reason::ReferenceMalformed,
        Reason::SecretNotFound,
        Reason::SecretMalformed,
        Reason::UpstreamRejected,
        Reason::Malformed,
        Reason::Expiring,
        Reason::Expired,
        Reason::NotYetValid,
    ];
    const CLUSTER: [Reason; 8] = [
        Reason::ManagedByAnother,
        Reason::AddressTaken,
        Reason::RetentionPolicyNotApplied,
        Reason::UpgradeFailed,
        Reason::NoReadyReplicas,
        Reason::ClaimPending,
        Reason::ResizeUnsupported,
        Reason::Full,
    ];
    if is_one_of(reason, &SPEC) {
        Class::Spec
    } else if is_one_of(reason, &REFERENCE) {
        Class::Reference
    } else if is_one_of(reason, &CLUSTER) {
        Class::Cluster
    } else {
        Class::Other
    }
}

/// What to do about a reason, where its message does not say it.
fn advice(reason: &str) -> Option<&'static str> {
    let reason = Reason::ALL.iter().find(|one| one.as_str() == reason)?;
    Some(match reason {
        Reason::SecretNotFound => "create the Secret, or correct its name: servers take it up by themselves",
        Reason::SecretMalformed | Reason::Malformed | Reason::ReferenceMalformed => {
            "correct what the message names: servers take it up by themselves"
        }
        Reason::ReferenceNotFound => "create what the message names, or correct the spec",
        Reason::UpstreamRejected => {
            "correct the Secret; until then the last good credentials serve on, if there are any"
        }
        Reason::UpgradeWaiting => "nothing, unless it waits for a mirror that failed: see to that one",
        Reason::UpgradeFailed => {
            "kubectl describe pod says why; or go back: mirrorImage of the chart, or helm rollback"
        }
        Reason::Unverified => "the upstream is down or limits requests: it is asked again",
        Reason::Loading => "if it stays so: may the operator reach port 5001 of the Pods (NetworkPolicy)?",
        Reason::NoReadyReplicas => "kubectl describe pod and kubectl logs say what the servers wait for",
        Reason::ClaimPending => {
            "kubectl describe pvc says what the claim waits for: a storage class, a quota, a node"
        }
        Reason::ResizeUnsupported => "use a storage class with allowVolumeExpansion, or set the size back",
        Reason::RetentionPolicyNotApplied => {
            "do not delete the mirror before this is gone; the operator needs the right to delete PersistentVolumeClaims"
        }
        Reason::AddressTaken => {
            "free the address or node port, or set another one in spec.service.clusterIP or spec.service.nodePort"
        }
        Reason::Full => "give the volume room, or pin less; pulls go on without the cache",
        Reason::Unreachable => {
            "see to the network, proxyURL, and whether the registry is up; what is cached is served"
        }
        Reason::RateLimited => "give the upstream credentials, or others; what is cached is served",
        Reason::Expired => "renew the certificate: servers take it up by themselves",
        Reason::NotYetValid => {
            "put a certificate into the Secret that is valid now: servers take it up by themselves"
        }
        Reason::Expiring => {
            "renew it, or see why what should do so does not: cert-manager, spec.paused, Accepted"
        }
        Reason::ManagedByAnother => "uninstall one of the two operators, or give each its own namespaces",
        Reason::PausedBySpec => "set spec.paused to false when you are done",
        Reason::InvalidSpec => "correct the spec; what was applied before serves on",
        Reason::NotAllowed => "change the spec, or let an administrator of the operator change its policy",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn told(conditions: &Value) -> Vec<Value> {
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
    fn a_mirror_that_is_well_is_told_in_one_line() {
        let told = told(&json!([
            condition("Ready", "True", "Serving"),
            condition("Accepted", "True", "SpecAccepted"),
            condition("Progressing", "False", "RolledOut"),
        ]));
        assert_eq!(told.len(), 1);
        assert!(
            told[0]["message"]
                .as_str()
                .unwrap()
                .starts_with("is ready: 1 of 1 replicas")
        );
    }

    #[test]
    fn a_mirror_that_nobody_looked_at_is_a_problem() {
        assert_eq!(told(&json!([]))[0]["result"], "problem");
    }

    #[test]
    fn what_stands_in_the_way_is_told_once() {
        let told = told(&json!([
            condition("Ready", "False", "ClaimPending"),
            condition("StorageReady", "False", "ClaimPending"),
        ]));
        assert_eq!(told.len(), 1);
        assert!(told[0]["advice"].as_str().unwrap().contains("describe pvc"));
    }

    #[test_case("CredentialsValid", "False", "UpstreamRejected" => "problem")]
    #[test_case("CredentialsValid", "Unknown", "Loading" => "warning")]
    #[test_case("UpstreamReachable", "False", "RateLimited" => "warning")]
    #[test_case("Available", "False", "ScaledToZero" => "warning")]
    #[test_case("Available", "False", "NoReadyReplicas" => "problem")]
    #[test_case("Progressing", "True", "RollingOut" => "warning")]
    #[test_case("Paused", "True", "PausedBySpec" => "warning")]
    #[test_case("TLSReady", "True", "Expiring" => "warning")]
    #[test_case("TLSReady", "False", "Expired" => "problem")]
    fn a_condition_is(kind: &str, status: &str, reason: &str) -> String {
        let told = told(&json!([condition(kind, status, reason)]));
        assert_eq!(told[0]["reason"], reason);
        told[0]["result"].as_str().unwrap().to_owned()
    }

    #[test]
    fn every_reason_that_is_bad_news_has_advice_or_a_message_that_is_one() {
        let good_or_told = [
            Reason::Serving,
            Reason::SpecAccepted,
            Reason::ReplicasReady,
            Reason::RolledOut,
            Reason::RollingOut,
            Reason::CredentialsAccepted,
            Reason::Reachable,
            Reason::VolumeReady,
            Reason::Resizing,
            Reason::CertificateReady,
            Reason::ScaledToZero,
            Reason::NameConflict,
        ];
        for reason in Reason::ALL {
            let has_advice = advice(reason.as_str()).is_some();
            assert_eq!(has_advice, !good_or_told.contains(reason), "{reason}");
        }
    }
}
