//! Each status and reason of a condition, and a case that has it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "messages/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crds::conditions::{ConditionType as Kind, Reason, Truth, said};
use crds::{RegistryMirror, RegistryMirrorStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use mirror::admin::{BucketStatus, CacheStatus, Status, UpstreamStatus};
use mirror::credentials::Report;
use operator::apply::{Applied, RefusedClaim};
use operator::observed::{Claim, NodeSummary, Observed, PollResult, Server, Validity, Workload};
use operator::status::{self, Acted, CertificateStatus, Outcome, Upgrade, UpstreamCredentials, Verdict};
use operator::validate::Rejection;
use operator::validate::credentials::Problem;
use serde_json::json;
use test_case::test_case;

/// The outcome of a reconcile with the observed state of its objects.
struct Case {
    outcome: Outcome,
    observed: Observed,
    paused: bool,
}

impl Case {
    fn status(&self) -> RegistryMirrorStatus {
        let document = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": "hub", "namespace": "mirrors", "uid": "u", "generation": 3},
            "spec": {
                "upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}, "paused": self.paused,
            },
        });
        let mirror: RegistryMirror = serde_json::from_value(document).unwrap();
        let before = RegistryMirrorStatus::default();
        status::compute(
            &mirror,
            &before,
            &self.outcome,
            &self.observed,
            Timestamp::UNIX_EPOCH,
        )
    }

    /// Status and reason of a condition.
    fn condition(&self, kind: Kind) -> Option<(String, String)> {
        let conditions = self.status().conditions;
        let found = conditions
            .into_iter()
            .find(|condition| condition.type_ == kind.as_str());
        found.map(|condition| (condition.status, condition.reason))
    }
}

fn serving() -> Case {
    Case {
        outcome: Outcome::Acted(Acted::default()),
        observed: workload(1, 1),
        paused: false,
    }
}

fn workload(wanted: i32, ready: i32) -> Observed {
    let workload = Workload {
        current: true,
        wanted,
        replicas: wanted,
        ready,
        updated: wanted,
        obstacle: None,
        template_source: None,
    };
    Observed {
        workload: Some(workload),
        ..Observed::default()
    }
}

fn with(wanted: i32, ready: i32) -> Case {
    Case {
        observed: workload(wanted, ready),
        ..serving()
    }
}

fn rejected(reason: Reason) -> Case {
    let message = "MESSAGE".to_owned();
    Case {
        outcome: Outcome::Rejected(Rejection { reason, message }),
        ..serving()
    }
}

fn credentials(problem: Option<Reason>, verdict: Verdict, good: bool) -> Case {
    let credentials = UpstreamCredentials {
        host: "quay.io".to_owned(),
        secret: "quay".to_owned(),
        version: 4,
        problem: problem.map(|reason| Problem {
            reason,
            message: "MESSAGE".to_owned(),
        }),
        kept: false,
        verdict,
        rotated: good.then_some(Timestamp::UNIX_EPOCH),
    };
    Case {
        outcome: Outcome::Acted(Acted {
            credentials: vec![credentials],
            ..Acted::default()
        }),
        ..serving()
    }
}

fn reporting(state: &str, full: bool) -> Case {
    let report = Status {
        upstreams: vec![UpstreamStatus {
            host: "quay.io".to_owned(),
            state: state.to_owned(),
            credentials: Report::default(),
            ..UpstreamStatus::default()
        }],
        cache: CacheStatus {
            full,
            ..CacheStatus::default()
        },
        ..Status::default()
    };
    answering(PollResult::Report(report.into()))
}

/// A server whose bucket is in this state.
fn with_bucket(state: &str) -> Case {
    let report = Status {
        bucket: Some(BucketStatus {
            state: state.to_owned(),
            message: "MESSAGE".to_owned(),
            ..BucketStatus::default()
        }),
        ..Status::default()
    };
    answering(PollResult::Report(report.into()))
}

fn answering(poll: PollResult) -> Case {
    let server = Server {
        pod: "hub-0".to_owned(),
        uid: "p".to_owned(),
        address: IpAddr::from([127, 0, 0, 2]),
        poll,
    };
    let mut case = serving();
    case.observed.servers = vec![server];
    case
}

fn claim(bound: bool, requested: &str) -> Case {
    let mut case = serving();
    case.observed.claims = vec![Claim {
        name: "cache-hub-0".to_owned(),
        ordinal: 0,
        bound,
        requested: Some(Quantity(requested.to_owned())),
        capacity: bound.then(|| Quantity("1Gi".to_owned())),
        ..Claim::default()
    }];
    case
}

fn refused(reason: Reason) -> Case {
    let message = "MESSAGE".to_owned();
    let refused_claims = BTreeMap::from([("cache-hub-0".to_owned(), RefusedClaim { reason, message })]);
    Case {
        outcome: Outcome::Acted(Acted {
            applied: Applied {
                refused_claims,
                ..Applied::default()
            },
            ..Acted::default()
        }),
        ..serving()
    }
}

/// A certificate that ends so many seconds after the time of these statuses.
fn certificate(expires: i64, problem: Option<Reason>) -> Case {
    let certificate = CertificateStatus {
        validity: Validity {
            not_before: expires - 60,
            not_after: expires,
        },
        changes: expires,
        has_ca: false,
        problem: problem.map(|reason| Problem {
            reason,
            message: "MESSAGE".to_owned(),
        }),
    };
    Case {
        outcome: Outcome::Acted(Acted {
            certificate: Some(certificate),
            ..Acted::default()
        }),
        ..serving()
    }
}

fn upgrading(upgrade: Upgrade, ready: i32) -> Case {
    Case {
        outcome: Outcome::Acted(Acted {
            upgrade,
            ..Acted::default()
        }),
        ..with(1, ready)
    }
}

/// A condition with its status and reason, and a case that has them.
type Row = (Kind, Truth, Reason, Case);

#[allow(clippy::too_many_lines, reason = "a table")]
fn table() -> Vec<Row> {
    use Truth::{False, True, Unknown};
    let [storage, tls] = [Kind::StorageReady, Kind::TLSReady]
        .map(|kind| move |truth, reason, case| (kind, truth, reason, case));
    let unaccepted = |reason| (Kind::Accepted, False, reason, rejected(reason));
    let upstream = |truth: Truth, reason: Reason| {
        let case = reporting(reason.as_str(), false);
        (Kind::UpstreamReachable, truth, reason, case)
    };
    let judged = |truth: Truth, reason, verdict, good| {
        let case = credentials(None, verdict, good);
        (Kind::CredentialsValid, truth, reason, case)
    };
    let unusable = |reason| {
        let case = credentials(Some(reason), Verdict::NoServer, false);
        (Kind::CredentialsValid, False, reason, case)
    };
    let claim_refused = |reason| storage(False, reason, refused(reason));
    let paused = Case {
        paused: true,
        outcome: Outcome::Paused,
        ..serving()
    };
    let bad = Verdict::Rejected("401".to_owned());
    vec![
        (Kind::Ready, True, Reason::Serving, serving()),
        (Kind::Accepted, True, Reason::SpecAccepted, serving()),
        unaccepted(Reason::InvalidSpec),
        unaccepted(Reason::NameConflict),
        unaccepted(Reason::NotAllowed),
        unaccepted(Reason::AddressTaken),
        unaccepted(Reason::BucketConflict),
        unaccepted(Reason::ReferenceNotFound),
        unaccepted(Reason::ReferenceMalformed),
        (Kind::Available, True, Reason::ReplicasReady, serving()),
        (Kind::Available, False, Reason::NoReadyReplicas, with(1, 0)),
        (Kind::Available, False, Reason::ScaledToZero, with(0, 0)),
        (Kind::Progressing, True, Reason::RollingOut, with(2, 1)),
        (Kind::Progressing, False, Reason::RolledOut, serving()),
        (Kind::Progressing, False, Reason::ApplyRejected, held_up()),
        (
            Kind::Progressing,
            False,
            Reason::UpgradeWaiting,
            upgrading(Upgrade::Waiting("others".to_owned()), 1),
        ),
        (
            Kind::Progressing,
            False,
            Reason::UpgradeFailed,
            upgrading(Upgrade::Failed(600), 0),
        ),
        judged(True, Reason::CredentialsAccepted, Verdict::Accepted, true),
        unusable(Reason::SecretNotFound),
        unusable(Reason::SecretMalformed),
        judged(False, Reason::UpstreamRejected, bad, false),
        judged(Unknown, Reason::Unverified, Verdict::Unverified, false),
        judged(Unknown, Reason::Loading, Verdict::Loading(1, 2), true),
        upstream(True, Reason::Reachable),
        upstream(False, Reason::Unreachable),
        upstream(False, Reason::RateLimited),
        storage(True, Reason::VolumeReady, claim(true, "1Gi")),
        storage(False, Reason::ClaimPending, claim(false, "1Gi")),
        claim_refused(Reason::ResizeUnsupported),
        claim_refused(Reason::RetentionPolicyNotApplied),
        storage(False, Reason::Full, reporting("Reachable", true)),
        in_bucket(Reason::BucketDenied, "Denied"),
        in_bucket(Reason::BucketNotFound, "NotFound"),
        in_bucket(Reason::BucketUnreachable, "Unreachable"),
        storage(True, Reason::Resizing, claim(true, "2Gi")),
        tls(True, Reason::CertificateReady, certificate(11, None)),
        tls(True, Reason::Expiring, certificate(10, None)),
        tls(False, Reason::SecretNotFound, rejected(Reason::SecretNotFound)),
        tls(False, Reason::Malformed, certificate(1, Some(Reason::Malformed))),
        tls(False, Reason::Expired, certificate(-1, None)),
        tls(False, Reason::NotYetValid, certificate(61, None)),
        (
            Kind::NodesConfigured,
            True,
            Reason::AllNodesConfigured,
            nodes(None),
        ),
        on_node(Reason::AgentAbsent),
        on_node(Reason::Conflict),
        on_node(Reason::ConfigPathMissing),
        on_node(Reason::InlineMirrors),
        on_node(Reason::ReadOnly),
        on_node(Reason::Unsupported),
        on_node(Reason::NotManaged),
        on_node(Reason::AgentUnresponsive),
        on_node(Reason::Bypassed),
        (Kind::Paused, True, Reason::PausedBySpec, paused),
    ]
}

fn in_bucket(reason: Reason, state: &str) -> Row {
    (Kind::StorageReady, Truth::False, reason, with_bucket(state))
}

/// One node of two has a fault; none exists if there is no agent.
fn on_node(reason: Reason) -> Row {
    (Kind::NodesConfigured, Truth::False, reason, nodes(Some(reason)))
}

fn nodes(fault: Option<Reason>) -> Case {
    let mut summary = NodeSummary::default();
    if fault != Some(Reason::AgentAbsent) {
        summary.add("node-1", None);
        summary.add("node-2", fault);
    }
    Case {
        observed: Observed {
            nodes: Some(summary),
            ..workload(1, 1)
        },
        ..serving()
    }
}

/// Returns a case for each reason that keeps a mirror from being ready.
fn obstacles() -> Vec<(Reason, Case)> {
    let without = |problem| credentials(Some(problem), Verdict::NoServer, false);
    vec![
        (Reason::InvalidSpec, rejected(Reason::InvalidSpec)),
        (Reason::NameConflict, rejected(Reason::NameConflict)),
        (Reason::NotAllowed, rejected(Reason::NotAllowed)),
        (Reason::AddressTaken, rejected(Reason::AddressTaken)),
        (Reason::BucketConflict, rejected(Reason::BucketConflict)),
        (Reason::ReferenceNotFound, rejected(Reason::ReferenceNotFound)),
        (Reason::ReferenceMalformed, rejected(Reason::ReferenceMalformed)),
        (Reason::ClaimPending, claim(false, "1Gi")),
        (Reason::SecretNotFound, without(Reason::SecretNotFound)),
        (Reason::SecretMalformed, without(Reason::SecretMalformed)),
        (
            Reason::UpstreamRejected,
            credentials(None, Verdict::Rejected("401".to_owned()), false),
        ),
        (Reason::Malformed, certificate(1, Some(Reason::Malformed))),
        (Reason::Expired, certificate(-1, None)),
        (Reason::NotYetValid, certificate(61, None)),
        (Reason::NoReadyReplicas, with(1, 0)),
        (Reason::ScaledToZero, with(0, 0)),
        (Reason::ApplyRejected, held_up()),
    ]
}

/// A mirror with an object that a quota refuses.
fn held_up() -> Case {
    Case {
        outcome: Outcome::Failed(Some("a quota".to_owned())),
        ..serving()
    }
}

#[test]
fn every_condition_and_reason_is_reached() {
    let obstacles = obstacles().into_iter();
    let obstacles = obstacles.map(|(reason, case)| (Kind::Ready, Truth::False, reason, case));
    let mut reached = Vec::new();
    for (kind, truth, reason, case) in table().into_iter().chain(obstacles) {
        let expected = Some((truth.to_string(), reason.to_string()));
        assert_eq!(case.condition(kind), expected, "{kind}/{reason}");
        reached.push((kind, truth, reason));
    }
    // The operator that does not manage a mirror writes this one, without a pipeline.
    reached.push((Kind::OperatorConflict, Truth::True, Reason::ManagedByAnother));
    let missing: Vec<_> = said().filter(|said| !reached.contains(said)).collect();
    assert!(missing.is_empty(), "nothing here leads to {missing:?}");
}

/// Each message names the object, the cause and, for a fault, the action.
#[test]
fn condition_messages_match_the_golden_file() {
    let lines = table().into_iter().map(|(kind, truth, reason, case)| {
        let conditions = case.status().conditions;
        let mut found = conditions.iter().filter(|one| one.type_ == kind.as_str());
        let message = found.next().map_or("", |condition| condition.message.as_str());
        format!("{kind}={truth}/{reason}: {message}\n")
    });
    golden::assert_golden("conditions.txt", &lines.collect::<String>());
}

/// A bucket that answers makes the storage ready; one that was not asked yet says nothing.
#[test]
fn reachable_bucket_is_ready_storage() {
    let ready = with_bucket("Reachable").condition(Kind::StorageReady);
    assert_eq!(ready, Some(("True".to_owned(), "VolumeReady".to_owned())));
    assert_eq!(with_bucket("Unknown").condition(Kind::StorageReady), None);
}

/// The last state of the bucket stays until the next poll.
#[test]
fn bucket_state_stays_until_the_next_poll() {
    for state in ["Reachable", "Denied"] {
        let document = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": "hub", "namespace": "mirrors", "uid": "u", "generation": 3},
            "spec": {
                "upstreams": [{"host": "quay.io"}],
                "storage": {"type": "ObjectStore", "objectStore": {
                    "gcs": {"bucket": "b"}, "credentials": {"secretRef": {"name": "keys"}},
                }},
            },
        });
        let mirror: RegistryMirror = serde_json::from_value(document).unwrap();
        let (mut case, empty) = (with_bucket(state), RegistryMirrorStatus::default());
        // Of the upstream nothing is known after either.
        let now = Timestamp::UNIX_EPOCH;
        let compute = |before: &RegistryMirrorStatus, case: &Case| {
            status::compute(&mirror, before, &case.outcome, &case.observed, now)
        };
        let before = compute(&empty, &case);
        assert_eq!(
            before.storage.as_ref().unwrap().bucket.as_ref().unwrap().location,
            "gs://b/mirrors/hub"
        );
        case.observed.servers = answering(PollResult::NotPolled).observed.servers;
        let after = compute(&before, &case);
        assert_eq!(
            (after.storage, after.conditions),
            (before.storage, before.conditions)
        );
    }
}

/// Neither upstreams, nor a full disk, nor the bucket change the readiness.
#[test]
fn upstreams_and_storage_keep_readiness() {
    for case in [
        reporting("Unreachable", false),
        reporting("RateLimited", false),
        reporting("Reachable", true),
        with_bucket("Denied"),
        credentials(None, Verdict::Loading(0, 1), false),
        credentials(None, Verdict::Unverified, false),
    ] {
        assert_eq!(case.condition(Kind::Ready).unwrap().1, "Serving");
    }
}

#[test_case(true => "Serving"; "the last good ones serve")]
#[test_case(false => "UpstreamRejected"; "there are none")]
fn rejection_without_last_good_is_not_ready(good: bool) -> String {
    let bad = Verdict::Rejected("401".to_owned());
    credentials(None, bad, good).condition(Kind::Ready).unwrap().1
}

/// A server that has another configuration than the mirror's, which is of no version here.
#[test_case(PollResult::Unresponsive => "RollingOut"; "no answer")]
#[test_case(PollResult::Report(report("old", "")) => "RollingOut"; "another configuration")]
#[test_case(PollResult::Report(report("old", "line 3: no such key")) => "RollingOut"; "a refused configuration")]
#[test_case(PollResult::Report(report("", "")) => "RolledOut"; "this configuration")]
fn change_is_pending_until_every_replica_reports_it(answer: PollResult) -> String {
    answering(answer).condition(Kind::Progressing).unwrap().1
}

fn report(configuration: &str, error: &str) -> operator::observed::ServerReport {
    Status {
        configuration_version: configuration.to_owned(),
        configuration_error: error.to_owned(),
        ..Status::default()
    }
    .into()
}

#[test]
fn last_report_counts_until_the_next_poll() {
    let document = json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
        "metadata": {"name": "hub", "namespace": "mirrors", "uid": "u", "generation": 3},
        "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}},
    });
    let mirror: RegistryMirror = serde_json::from_value(document).unwrap();
    let case = reporting("Reachable", false);
    let before = case.status();
    let restarted = answering(PollResult::NotPolled);
    let after = status::compute(
        &mirror,
        &before,
        &restarted.outcome,
        &restarted.observed,
        Timestamp::now(),
    );
    assert_eq!(after, before, "a new operator writes nothing");
}
