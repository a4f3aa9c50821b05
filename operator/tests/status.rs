//! The status after a reconcile: the observed state and the results.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::needless_pass_by_value, reason = "specs are made where they are used")]

use std::collections::BTreeMap;

use crds::RegistryMirror;
use crds::RegistryMirrorStatus;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use operator::apply::{Applied, RefusedClaim};
use operator::observed::{Claim, ExistingClaim, Growth, Observed, ServiceAddress, Workload};
use operator::status::{self, Acted, Outcome, UpstreamCredentials, Verdict};
use operator::validate::Rejection;
use operator::validate::credentials::Problem;
use serde_json::{Value, json};
use test_case::test_case;

fn mirror(spec: Value) -> RegistryMirror {
    let metadata = json!({"name": "hub", "namespace": "mirrors", "uid": "u", "generation": 3});
    let document = json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "metadata": metadata, "spec": spec,
    });
    serde_json::from_value(document).unwrap()
}

fn ephemeral() -> Value {
    json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}})
}

fn serving() -> Observed {
    let workload = Workload {
        current: true,
        wanted: 1,
        replicas: 1,
        ready: 1,
        updated: 1,
        obstacle: None,
        template_source: None,
    };
    Observed {
        workload: Some(workload),
        service: Some(ServiceAddress {
            ip: "10.0.0.9".to_owned(),
            port: 5000,
        }),
        ..Observed::default()
    }
}

fn acted(credentials: Vec<UpstreamCredentials>) -> Outcome {
    Outcome::Acted(Acted {
        credentials,
        ..Acted::default()
    })
}

fn credentials(problem: Option<Reason>, kept: bool) -> UpstreamCredentials {
    UpstreamCredentials {
        host: "quay.io".to_owned(),
        secret: "quay".to_owned(),
        version: 4,
        problem: problem.map(|reason| Problem {
            reason,
            message: "what is wrong".to_owned(),
        }),
        kept,
        verdict: Verdict::NoServer,
        rotated: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn status(spec: Value, outcome: &Outcome, observed: &Observed) -> RegistryMirrorStatus {
    status::compute(
        &mirror(spec),
        &RegistryMirrorStatus::default(),
        outcome,
        observed,
        at(100),
    )
}

fn find(status: &RegistryMirrorStatus, kind: ConditionType) -> Option<&Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind.as_str())
}

/// A condition as `STATUS/REASON`.
fn reported(status: &RegistryMirrorStatus, kind: ConditionType) -> Option<String> {
    find(status, kind).map(|condition| format!("{}/{}", condition.status, condition.reason))
}

fn ready(status: &RegistryMirrorStatus) -> String {
    reported(status, ConditionType::Ready).unwrap()
}

/// A mirror that serves has the conditions that say so.
#[test]
fn serving_mirror_is_ready() {
    let status = status(ephemeral(), &acted(vec![]), &serving());
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
        .collect();
    assert_eq!(
        conditions,
        [
            "Ready=True/Serving",
            "Accepted=True/SpecAccepted",
            "Available=True/ReplicasReady",
            "Progressing=False/RolledOut",
        ],
        "conditions that do not apply are absent"
    );
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(status.endpoint.unwrap().url, "http://10.0.0.9:5000");
    assert_eq!((status.replicas, status.ready_replicas), (1, 1));
}

/// A mirror with a rejected spec is not ready and has the reason.
#[test]
fn rejected_spec_is_not_ready_with_reason() {
    let rejection = Rejection {
        reason: Reason::ReferenceNotFound,
        message: "no bundle".to_owned(),
    };
    let status = status(ephemeral(), &Outcome::Rejected(rejection), &serving());
    assert_eq!(
        reported(&status, ConditionType::Accepted).unwrap(),
        "False/ReferenceNotFound"
    );
    assert_eq!(ready(&status), "False/ReferenceNotFound");
    assert_eq!(find(&status, ConditionType::Ready).unwrap().message, "no bundle");
    assert_eq!(
        reported(&status, ConditionType::Available).unwrap(),
        "True/ReplicasReady",
        "running servers stay"
    );
}

#[test_case(None => "False/NoReadyReplicas"; "nothing was started")]
#[test_case(Some((1, 0)) => "False/NoReadyReplicas"; "no replica is ready")]
#[test_case(Some((0, 0)) => "False/ScaledToZero"; "no replica is asked for")]
#[test_case(Some((3, 1)) => "True/ReplicasReady"; "one replica is enough")]
fn availability(workload: Option<(i32, i32)>) -> String {
    let mut spec = ephemeral();
    spec["replicas"] = json!(workload.map_or(1, |(wanted, _)| wanted));
    let workload = workload.map(|(wanted, ready)| Workload {
        current: true,
        wanted,
        ready,
        ..Workload::default()
    });
    reported(
        &status(
            spec,
            &acted(vec![]),
            &Observed {
                workload,
                ..serving()
            },
        ),
        ConditionType::Available,
    )
    .unwrap()
}

#[test]
fn cause_of_missing_pods_is_reported() {
    let workload = Workload {
        wanted: 1,
        obstacle: Some("exceeded quota: small".to_owned()),
        template_source: None,
        ..Workload::default()
    };
    let status = status(
        ephemeral(),
        &acted(vec![]),
        &Observed {
            workload: Some(workload),
            ..serving()
        },
    );
    assert_eq!(
        find(&status, ConditionType::Available).unwrap().message,
        "exceeded quota: small"
    );
}

#[test_case(Workload { current: false, wanted: 1, replicas: 1, ready: 1, updated: 1, obstacle: None, template_source: None } => "True/RollingOut"; "the workload's controller has not looked yet")]
#[test_case(Workload { current: true, wanted: 2, replicas: 2, ready: 2, updated: 1, obstacle: None, template_source: None } => "True/RollingOut"; "an old Pod")]
#[test_case(Workload { current: true, wanted: 1, replicas: 2, ready: 1, updated: 1, obstacle: None, template_source: None } => "True/RollingOut"; "a Pod too many")]
#[test_case(Workload { current: true, wanted: 2, replicas: 2, ready: 2, updated: 2, obstacle: None, template_source: None } => "False/RolledOut"; "all new and ready")]
fn progress(workload: Workload) -> String {
    let observed = Observed {
        workload: Some(workload),
        ..serving()
    };
    reported(
        &status(ephemeral(), &acted(vec![]), &observed),
        ConditionType::Progressing,
    )
    .unwrap()
}

#[test_case(None, false => ("Unknown/Unverified".to_owned(), "True/Serving".to_owned()); "issued")]
#[test_case(Some(Reason::SecretNotFound), false => ("False/SecretNotFound".to_owned(), "False/SecretNotFound".to_owned()); "missing from the start")]
#[test_case(Some(Reason::SecretMalformed), false => ("False/SecretMalformed".to_owned(), "False/SecretMalformed".to_owned()); "malformed from the start")]
#[test_case(Some(Reason::SecretNotFound), true => ("False/SecretNotFound".to_owned(), "True/Serving".to_owned()); "deleted, and the previous ones serve")]
fn credentials_and_readiness(problem: Option<Reason>, kept: bool) -> (String, String) {
    let status = status(ephemeral(), &acted(vec![credentials(problem, kept)]), &serving());
    (
        reported(&status, ConditionType::CredentialsValid).unwrap(),
        ready(&status),
    )
}

#[test]
fn credentials_are_reported_by_secret_and_version() {
    let status = status(ephemeral(), &acted(vec![credentials(None, false)]), &serving());
    let reported = status.upstreams[0].credentials.as_ref().unwrap();
    assert_eq!((reported.secret.as_str(), reported.version), ("quay", 4));
}

fn claim(bound: bool, requested: &str, capacity: Option<&str>) -> Claim {
    Claim {
        goes_with_mirror: false,
        name: "cache-hub-0".to_owned(),
        ordinal: 0,
        bound,
        requested: Some(Quantity(requested.to_owned())),
        capacity: capacity.map(|capacity| Quantity(capacity.to_owned())),
        growth: Growth::default(),
    }
}

fn growing(growth: Growth) -> Claim {
    Claim {
        growth,
        ..claim(true, "2Gi", Some("1Gi"))
    }
}

#[test_case(growing(Growth::Infeasible("no".to_owned())) => ("False/ResizeUnsupported".to_owned(), "True/Serving".to_owned()); "will not grow")]
#[test_case(growing(Growth::Failing("no".to_owned())) => ("True/Resizing".to_owned(), "True/Serving".to_owned()); "fails to grow for now")]
#[test_case(claim(false, "1Gi", None) => ("False/ClaimPending".to_owned(), "False/ClaimPending".to_owned()); "no volume")]
#[test_case(claim(true, "2Gi", Some("1Gi")) => ("True/Resizing".to_owned(), "True/Serving".to_owned()); "growing")]
#[test_case(claim(true, "1024Mi", Some("1Gi")) => ("True/VolumeReady".to_owned(), "True/Serving".to_owned()); "bound")]
fn storage_and_readiness(claim: Claim) -> (String, String) {
    let status = status(
        ephemeral(),
        &acted(vec![]),
        &Observed {
            claims: vec![claim],
            ..serving()
        },
    );
    (
        reported(&status, ConditionType::StorageReady).unwrap(),
        ready(&status),
    )
}

#[test]
fn pvc_left_by_scaling_in_is_not_awaited() {
    let left = Claim {
        name: "cache-hub-1".to_owned(),
        ordinal: 1,
        ..claim(false, "1Gi", None)
    };
    let observed = Observed {
        claims: vec![claim(true, "1Gi", Some("1Gi")), left],
        ..serving()
    };
    let ready_with = |replicas: i32| {
        let mut spec = ephemeral();
        spec["replicas"] = json!(replicas);
        ready(&status(spec, &acted(vec![]), &observed))
    };
    assert_eq!(ready_with(1), "True/Serving");
    assert_eq!(ready_with(2), "False/ClaimPending");
}

#[test]
fn refused_resize_is_reported_and_pulls_continue() {
    let refused = RefusedClaim {
        reason: Reason::ResizeUnsupported,
        message: "only dynamically provisioned".to_owned(),
    };
    let applied = Applied {
        refused_claims: BTreeMap::from([("cache-hub-0".to_owned(), refused)]),
        ..Applied::default()
    };
    let outcome = Outcome::Acted(Acted {
        applied,
        ..Acted::default()
    });
    let observed = Observed {
        claims: vec![claim(true, "1Gi", Some("1Gi"))],
        ..serving()
    };
    let status = status(ephemeral(), &outcome, &observed);
    assert_eq!(
        reported(&status, ConditionType::StorageReady).unwrap(),
        "False/ResizeUnsupported"
    );
    assert_eq!(ready(&status), "True/Serving");
}

/// The transition time changes only with the status.
#[test]
fn transition_time_changes_only_with_status() {
    let mirror = mirror(ephemeral());
    let before = RegistryMirrorStatus::default();
    let first = status::compute(&mirror, &before, &acted(vec![]), &serving(), at(100));
    let same = status::compute(&mirror, &first, &acted(vec![]), &serving(), at(200));
    assert_eq!(same, first, "so that nothing is written");
    let workload = Workload {
        wanted: 1,
        ..Workload::default()
    };
    let down = Observed {
        workload: Some(workload),
        ..serving()
    };
    let next = status::compute(&mirror, &first, &acted(vec![]), &down, at(300));
    let time = |kind| find(&next, kind).unwrap().last_transition_time.0.as_second();
    assert_eq!(
        (time(ConditionType::Available), time(ConditionType::Accepted)),
        (300, 100)
    );
}

#[test]
fn endpoint_and_scale_are_reported_as_observed() {
    let mut spec = ephemeral();
    spec["paused"] = json!(true);
    spec["service"] = json!({"port": 80});
    spec["replicas"] = json!(0);
    let workload = Workload {
        current: true,
        wanted: 2,
        ..Workload::default()
    };
    let observed = Observed {
        workload: Some(workload),
        ..serving()
    };
    let status = status(spec, &Outcome::Paused, &observed);
    assert_eq!(status.endpoint.as_ref().unwrap().url, "http://10.0.0.9:5000");
    assert_eq!(
        reported(&status, ConditionType::Available).unwrap(),
        "False/NoReadyReplicas",
        "the pause keeps the workload from being scaled to zero"
    );
}

/// An existing PersistentVolumeClaim that is missing is named.
#[test]
fn missing_existing_pvc_is_named() {
    let existing = |claim| Observed {
        existing_claim: Some(ExistingClaim {
            name: "disk".to_owned(),
            claim,
            ..ExistingClaim::default()
        }),
        ..serving()
    };
    let missing = status(ephemeral(), &acted(vec![]), &existing(None));
    let storage = find(&missing, ConditionType::StorageReady).unwrap();
    assert_eq!(
        (storage.status.as_str(), storage.reason.as_str()),
        ("False", "ClaimPending")
    );
    assert!(
        storage.message.starts_with("PVC disk not found: create it"),
        "{}",
        storage.message
    );
    assert_eq!(ready(&missing), "False/ClaimPending");
    let bound = status(
        ephemeral(),
        &acted(vec![]),
        &existing(Some(claim(true, "1Gi", Some("1Gi")))),
    );
    assert_eq!(
        reported(&bound, ConditionType::StorageReady).unwrap(),
        "True/VolumeReady"
    );
}

#[test]
fn failed_apply_keeps_the_observed_generation() {
    let before = status(ephemeral(), &acted(vec![credentials(None, false)]), &serving());
    let mut newer = mirror(ephemeral());
    newer.metadata.generation = Some(4);
    let down = Observed {
        workload: Some(Workload {
            current: true,
            wanted: 1,
            ..Workload::default()
        }),
        ..serving()
    };
    let after = status::compute(&newer, &before, &Outcome::Failed(None), &down, at(200));
    assert_eq!(
        reported(&after, ConditionType::Accepted).unwrap(),
        "True/SpecAccepted"
    );
    assert_eq!(ready(&after), "False/NoReadyReplicas");
    assert_eq!(after.upstreams, before.upstreams);
    assert_eq!(after.observed_generation, Some(3));
    assert!(
        after
            .conditions
            .iter()
            .all(|condition| condition.observed_generation == Some(3))
    );
}

#[test]
fn rejected_new_mirror_is_not_progressing() {
    let rejected = Outcome::Rejected(Rejection {
        reason: Reason::InvalidSpec,
        message: "no".to_owned(),
    });
    for outcome in [rejected, Outcome::Paused] {
        let status = status(ephemeral(), &outcome, &Observed::default());
        assert_eq!(reported(&status, ConditionType::Progressing), None);
    }
}

#[test]
fn persistent_failure_is_reported_in_conditions() {
    let failed = Outcome::Failed(Some("applying Secret hub-credentials: exceeded quota".to_owned()));
    let message = |status: &RegistryMirrorStatus, kind| find(status, kind).unwrap().message.clone();
    let new = status(ephemeral(), &failed, &Observed::default());
    assert_eq!(ready(&new), "False/NoReadyReplicas");
    for kind in [
        ConditionType::Ready,
        ConditionType::Available,
        ConditionType::Progressing,
    ] {
        assert!(message(&new, kind).contains("exceeded quota; the operator retries"));
    }
    let running = status(ephemeral(), &failed, &serving());
    assert_eq!(ready(&running), "True/Serving");
    assert_eq!(
        reported(&running, ConditionType::Progressing).unwrap(),
        "False/ApplyRejected"
    );
    assert!(message(&running, ConditionType::Progressing).contains("exceeded quota"));
}

#[test_case(true => ("True/Serving".to_owned(), true); "a later change of it was refused")]
#[test_case(false => ("False/ApplyRejected".to_owned(), false); "it was never made")]
fn readiness_needs_a_service(is_there: bool) -> (String, bool) {
    let refused = Outcome::Acted(Acted {
        applied: Applied {
            forbidden: Some("the API server refuses Service hub: exceeded quota".to_owned()),
            ..Applied::default()
        },
        ..Acted::default()
    });
    let observed = Observed {
        service: serving().service.filter(|_| is_there),
        ..serving()
    };
    let status = status(ephemeral(), &refused, &observed);
    (ready(&status), status.endpoint.is_some())
}

/// A pause keeps the conditions that were reported earlier.
#[test]
fn pause_keeps_earlier_conditions() {
    let problem = credentials(Some(Reason::SecretNotFound), false);
    let before = status(ephemeral(), &acted(vec![problem]), &serving());
    let mut spec = ephemeral();
    spec["paused"] = json!(true);
    let paused = status::compute(&mirror(spec), &before, &Outcome::Paused, &serving(), at(200));
    assert_eq!(
        reported(&paused, ConditionType::Paused).unwrap(),
        "True/PausedBySpec"
    );
    assert_eq!(
        reported(&paused, ConditionType::Accepted).unwrap(),
        "True/SpecAccepted"
    );
    assert_eq!(
        reported(&paused, ConditionType::CredentialsValid).unwrap(),
        "False/SecretNotFound"
    );
    assert_eq!(ready(&paused), "False/SecretNotFound");
    assert_eq!(paused.upstreams, before.upstreams);
}

#[test]
fn foreign_condition_is_dropped() {
    let mut spec = ephemeral();
    spec["paused"] = json!(true);
    let mut before = status(ephemeral(), &acted(vec![]), &serving());
    for condition in &mut before.conditions {
        (condition.status, condition.reason) = ("False".to_owned(), "Mine".to_owned());
    }
    let paused = status::compute(&mirror(spec), &before, &Outcome::Paused, &serving(), at(200));
    assert_eq!(reported(&paused, ConditionType::Accepted), None);
    assert_eq!(ready(&paused), "True/Serving");
}

#[test]
fn unreadable_mirror_changes_two_conditions() {
    let before = status(ephemeral(), &acted(vec![]), &serving()).conditions;
    let rejection = Rejection {
        reason: Reason::InvalidSpec,
        message: "gone wrong".to_owned(),
    };
    let now = status::conditions::unreadable(Some(4), &before, &rejection, at(200));
    let changed = now
        .iter()
        .filter(|now| !before.contains(now))
        .map(|c| format!("{}={}", c.type_, c.status));
    assert_eq!(changed.collect::<Vec<_>>(), ["Ready=False", "Accepted=False"]);
    assert_eq!(now.len(), before.len());
}
