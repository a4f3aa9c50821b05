//! `StorageReady`: whether claims have their volumes, and these have room.

use crds::{
    RegistryMirror,
    conditions::{ConditionType, Reason, Truth},
    storage::{RetentionPolicy, Volume},
};

use super::{Acted, Outcome, conditions::ConditionUpdate};
use crate::{
    apply::Applied,
    observed::{Claim, ExistingClaim, Growth, Observed},
};

/// The worst first; nothing is said of a mirror without a claim whose servers have room.
pub(super) fn condition(
    mirror: &RegistryMirror,
    outcome: &Outcome,
    observed: &Observed,
) -> Option<ConditionUpdate> {
    refused(outcome)
        .or_else(|| not_kept(mirror, observed))
        .or_else(|| infeasible(observed))
        .or_else(|| missing(observed))
        .or_else(|| pending(mirror, observed))
        .or_else(|| full(observed))
        .or_else(|| growing(observed))
        .or_else(|| ready(observed))
}

fn not_ready(reason: Reason, message: String) -> ConditionUpdate {
    ConditionUpdate::new(ConditionType::StorageReady, Truth::False, reason, message)
}

/// In the API server's words.
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
        format!("claim {name}: {}", refused.message),
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
        "claim {name}: it would still be deleted with the mirror (retentionPolicy Retain), as its owner references are not \
         changed yet: do not delete the mirror before they are"
    );
    Some(not_ready(Reason::RetentionPolicyNotApplied, message))
}

fn missing(observed: &Observed) -> Option<ConditionUpdate> {
    match &observed.existing_claim {
        Some(ExistingClaim {
            name, claim: None, ..
        }) => Some(not_ready(
            Reason::ClaimPending,
            format!("there is no claim {name}: create it, or correct the name"),
        )),
        _ => None,
    }
}

/// A claim that scaling in left behind is waited for by no replica.
fn pending(mirror: &RegistryMirror, observed: &Observed) -> Option<ConditionUpdate> {
    let replicas = u32::try_from(mirror.spec.replicas).unwrap_or(0);
    let existing = observed.existing_claim.is_some();
    let mut waited_for = observed
        .all_claims()
        .filter(|claim| existing || claim.ordinal < replicas);
    let Claim { name, .. } = waited_for.find(|claim| !claim.bound)?;
    let message = format!("claim {name} has no volume yet; see kubectl describe pvc {name}");
    Some(not_ready(Reason::ClaimPending, message))
}

fn full(observed: &Observed) -> Option<ConditionUpdate> {
    let full = |report: &crate::observed::ServerReport| report.full;
    let mut servers = observed.servers.iter();
    let server = servers.find(|server| server.report().is_some_and(full))?;
    let message = format!(
        "replica {} can store nothing more, though all that may go were evicted; pulls go on without the cache: \
         give the volume room, or pin less",
        server.pod
    );
    Some(not_ready(Reason::Full, message))
}

fn infeasible(observed: &Observed) -> Option<ConditionUpdate> {
    growths(observed).find_map(|claim| match &claim.growth {
        Growth::Infeasible(why) => Some(not_ready(
            Reason::ResizeUnsupported,
            format!("claim {} will not grow: {why}; {}", claim.name, way_back(claim)),
        )),
        _ => None,
    })
}

fn growing(observed: &Observed) -> Option<ConditionUpdate> {
    let claim = growths(observed).next()?;
    let stage = match &claim.growth {
        Growth::Requested => "its storage driver has not begun".to_owned(),
        Growth::Volume => "its volume is being grown".to_owned(),
        Growth::FileSystem => "its volume has grown, and the node is to grow the file system".to_owned(),
        Growth::Failing(why) => format!("it fails, and is tried again: {why}; {}", way_back(claim)),
        Growth::Infeasible(why) => why.clone(),
    };
    Some(ConditionUpdate::new(
        ConditionType::StorageReady,
        Truth::True,
        Reason::Resizing,
        format!(
            "claim {} grows to {}: {stage}",
            claim.name,
            size(claim.requested.as_ref())
        ),
    ))
}

fn growths(observed: &Observed) -> impl Iterator<Item = &Claim> {
    observed.all_claims().filter(|claim| claim.is_growing())
}

/// The API server takes a smaller wish back only if it is above what there is.
fn way_back(claim: &Claim) -> String {
    let capacity = size(claim.capacity.as_ref());
    format!("to take the wish back, ask for less, but for more than {capacity}")
}

fn size(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> &str {
    quantity.map_or("", |quantity| quantity.0.as_str())
}

fn ready(observed: &Observed) -> Option<ConditionUpdate> {
    observed.all_claims().next()?;
    Some(ConditionUpdate::new(
        ConditionType::StorageReady,
        Truth::True,
        Reason::VolumeReady,
        "every claim has its volume",
    ))
}
