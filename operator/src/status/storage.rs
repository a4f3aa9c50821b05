//! The condition `StorageReady`: PVCs have their volumes, and these have room.

use crds::{
    RegistryMirror, RegistryMirrorStatus,
    conditions::{ConditionType, Reason, Truth},
    status::BucketStatus,
    storage::{RetentionPolicy, Volume},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    Acted, Outcome,
    conditions::{ConditionUpdate, with_advice},
};
use crate::{
    apply::Applied,
    observed::{BucketReport, BucketState, Claim, ExistingClaim, Growth, Observed},
};

/// Returns `StorageReady` with the worst state; `None` for a mirror without PVCs whose servers have room.
pub(super) fn condition(
    mirror: &RegistryMirror,
    outcome: &Outcome,
    observed: &Observed,
    before: &[Condition],
) -> Option<ConditionUpdate> {
    refused(outcome)
        .or_else(|| not_kept(mirror, observed))
        .or_else(|| infeasible(observed))
        .or_else(|| missing(observed))
        .or_else(|| pending(mirror, observed))
        .or_else(|| full(observed))
        .or_else(|| bucket(observed).or_else(|| last_bucket(observed, before)))
        .or_else(|| growing(observed))
        .or_else(|| ready(observed))
}

fn not_ready(reason: Reason, message: String) -> ConditionUpdate {
    ConditionUpdate::new(ConditionType::StorageReady, Truth::False, reason, message)
}

/// Returns the rejection of a PVC, with the message of the API server.
fn refused(outcome: &Outcome) -> Option<ConditionUpdate> {
    let Outcome::Acted(Acted {
        applied: Applied { refused_claims, .. },
        ..
    }) = outcome
    else {
        return None;
    };
    let (name, refused) = refused_claims.first_key_value()?;
    Some(not_ready(
        refused.reason,
        format!("PVC {name}: {}", refused.message),
    ))
}

/// Returns the warning that a claim which is to be kept would be deleted with the mirror.
fn not_kept(mirror: &RegistryMirror, observed: &Observed) -> Option<ConditionUpdate> {
    let Some(Volume::Claims { claim, .. }) = mirror.spec.storage.volume() else {
        return None;
    };
    if claim.retention_policy != RetentionPolicy::Retain {
        return None;
    }
    let Claim { name, .. } = observed.claims.iter().find(|claim| claim.goes_with_mirror)?;
    let message = format!(
        "PVC {name} would still be deleted with the mirror (retentionPolicy Retain), its owner references are not changed yet: \
         do not delete the mirror before they are"
    );
    Some(not_ready(Reason::RetentionPolicyNotApplied, message))
}

fn missing(observed: &Observed) -> Option<ConditionUpdate> {
    match &observed.existing_claim {
        Some(ExistingClaim {
            name, claim: None, ..
        }) => Some(not_ready(
            Reason::ClaimPending,
            format!(
                "PVC {name} not found: create it, or correct spec.storage.persistentVolumeClaim.existingClaim"
            ),
        )),
        _ => None,
    }
}

/// Returns the state of a PVC without a volume. A PVC that scaling in left is not awaited.
fn pending(mirror: &RegistryMirror, observed: &Observed) -> Option<ConditionUpdate> {
    let replicas = u32::try_from(mirror.spec.replicas).unwrap_or(0);
    let existing = observed.existing_claim.is_some();
    let mut waited_for = observed
        .all_claims()
        .filter(|claim| existing || claim.ordinal < replicas);
    let Claim { name, .. } = waited_for.find(|claim| !claim.bound)?;
    let message = format!("PVC {name} has no volume yet: kubectl describe pvc {name} has the cause");
    Some(not_ready(Reason::ClaimPending, message))
}

fn full(observed: &Observed) -> Option<ConditionUpdate> {
    let full = |report: &crate::observed::ServerReport| report.full;
    let mut servers = observed.servers.iter();
    let server = servers.find(|server| server.report().is_some_and(full))?;
    let message = format!(
        "replica {} can store no content even after eviction, and pulls continue without the cache",
        server.pod
    );
    Some(not_ready(Reason::Full, with_advice(message, Reason::Full)))
}

/// Returns the status of the bucket at a location: the sums of all servers. A sum that a server does not know yet stays.
pub(super) fn bucket_status(
    location: String,
    observed: &Observed,
    before: &RegistryMirrorStatus,
) -> BucketStatus {
    let reports = || {
        observed
            .servers
            .iter()
            .filter_map(|server| server.report()?.bucket.as_ref())
    };
    let sum = |value: fn(&BucketReport) -> Option<i64>| {
        let values = reports().map(value).collect::<Option<Vec<_>>>();
        let values = values.filter(|values| !values.is_empty())?;
        Some(values.into_iter().fold(0, i64::saturating_add))
    };
    let before = before
        .storage
        .as_ref()
        .and_then(|storage| storage.bucket.as_ref());
    let before = before.filter(|before| before.location == location);
    BucketStatus {
        objects: sum(|report| report.objects).or(before.and_then(|before| before.objects)),
        bytes: sum(|report| report.bytes).or(before.and_then(|before| before.bytes)),
        pending_uploads: sum(|report| Some(report.pending_uploads))
            .or(before.and_then(|before| before.pending_uploads)),
        location,
    }
}

/// Returns the state of a bucket that a server cannot use. Pulls continue without it.
fn bucket(observed: &Observed) -> Option<ConditionUpdate> {
    observed.servers.iter().find_map(|server| {
        let bucket = server.report()?.bucket.as_ref()?;
        let reason = match bucket.state? {
            BucketState::Reachable => return None,
            BucketState::Denied => Reason::BucketDenied,
            BucketState::NotFound => Reason::BucketNotFound,
            BucketState::Unreachable => Reason::BucketUnreachable,
        };
        let message = format!("replica {}: {}", server.pod, bucket.message);
        Some(not_ready(reason, with_advice(message, reason)))
    })
}

/// Returns the last known state of the bucket while a server is not polled yet.
fn last_bucket(observed: &Observed, before: &[Condition]) -> Option<ConditionUpdate> {
    const BUCKET: [Reason; 3] = [
        Reason::BucketDenied,
        Reason::BucketNotFound,
        Reason::BucketUnreachable,
    ];
    let kind = ConditionType::StorageReady.as_str();
    let last = before.iter().find(|condition| condition.type_ == kind)?;
    let reason = BUCKET.into_iter().find(|reason| reason.as_str() == last.reason)?;
    observed
        .has_unpolled()
        .then(|| not_ready(reason, last.message.clone()))
}

fn infeasible(observed: &Observed) -> Option<ConditionUpdate> {
    growths(observed).find_map(|claim| match &claim.growth {
        Growth::Infeasible(why) => Some(not_ready(
            Reason::ResizeUnsupported,
            format!("PVC {} not resized: {why}; {}", claim.name, cancellation(claim)),
        )),
        _ => None,
    })
}

fn growing(observed: &Observed) -> Option<ConditionUpdate> {
    let claim = growths(observed).next()?;
    let stage = match &claim.growth {
        Growth::Requested => "waiting for the storage driver".to_owned(),
        Growth::Volume => "the storage driver grows the volume".to_owned(),
        Growth::FileSystem => "the volume has grown, and the node grows the file system".to_owned(),
        Growth::Failing(why) => format!("retried after a failure: {why}; {}", cancellation(claim)),
        Growth::Infeasible(why) => why.clone(),
    };
    Some(ConditionUpdate::new(
        ConditionType::StorageReady,
        Truth::True,
        Reason::Resizing,
        format!(
            "PVC {} resizes to {}: {stage}",
            claim.name,
            size(claim.requested.as_ref())
        ),
    ))
}

fn growths(observed: &Observed) -> impl Iterator<Item = &Claim> {
    observed.all_claims().filter(|claim| claim.is_growing())
}

/// Returns the correction of a resize that fails: the API server accepts a smaller size only above the capacity.
fn cancellation(claim: &Claim) -> String {
    let capacity = size(claim.capacity.as_ref());
    format!("to cancel the resize, set a size above the current capacity of {capacity}")
}

fn size(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> &str {
    quantity.map_or("", |quantity| quantity.0.as_str())
}

fn ready(observed: &Observed) -> Option<ConditionUpdate> {
    let has_claims = observed.all_claims().next().is_some();
    let mut servers = observed.servers.iter();
    let has_bucket = servers.any(|server| {
        let bucket = server.report().and_then(|report| report.bucket.as_ref());
        bucket.is_some_and(|bucket| bucket.state == Some(BucketState::Reachable))
    });
    let message = match (has_claims, has_bucket) {
        (false, false) => return None,
        (true, _) => "every PVC has its volume",
        (false, true) => "the bucket answers",
    };
    Some(ConditionUpdate::new(
        ConditionType::StorageReady,
        Truth::True,
        Reason::VolumeReady,
        message,
    ))
}
