//! Applies PVCs: their owners first, then their size.

use crds::{
    RegistryMirror,
    conditions::Reason,
    storage::{RetentionPolicy, Volume},
};

use super::{
    Applied, Applier, ApplyError, ApplyResults, OwnedUids, RefusedClaim, adopt::OwnerChange, key, ownership,
};
use crate::{
    desired::{Child, Desired},
    owners,
};

/// Returns whether the PVCs of a mirror are deleted with it.
pub(super) fn is_owner(mirror: &RegistryMirror) -> bool {
    let volume = mirror.spec.storage.volume();
    matches!(volume, Some(Volume::Claims { claim, .. }) if claim.retention_policy == RetentionPolicy::Delete)
}

impl Applier<'_> {
    /// Applies the PVCs. Returns whether the workload may follow: it must not create a PVC that could not be requested.
    pub(super) async fn apply_claims(
        &self,
        desired: &Desired,
        owned: &OwnedUids,
        applied: &mut Applied,
        results: &mut ApplyResults,
    ) -> bool {
        for claim in &desired.claims {
            match self.apply_claim(claim, owned).await {
                Ok(None) => {}
                Ok(Some(refused)) => _ = applied.refused_claims.insert(claim.name.clone(), refused),
                Err(error) => {
                    if !results.record(Err(error)) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Applies one PVC, and returns its rejection. The owners come first and apart, so that the retention policy takes
    /// effect although a growth is rejected.
    async fn apply_claim(
        &self,
        claim: &Child,
        owned: &OwnedUids,
    ) -> Result<Option<RefusedClaim>, ApplyError> {
        let is_owned = is_owner(self.mirror);
        if let Err(error) = self.set_claim_owner(claim, is_owned).await {
            return refused_owners(error, is_owned).map(Some);
        }
        match self.apply(claim, owned).await {
            Ok(()) => Ok(None),
            Err(error) => refused_claim(error, owned.contains_key(&key(claim))).map(Some),
        }
    }

    async fn set_claim_owner(&self, claim: &Child, is_owned: bool) -> Result<(), ApplyError> {
        let (kind, name) = (claim.kind, claim.name.as_str());
        let Some(live) = self.cluster.cache.get(kind, &self.namespace, name) else {
            return Ok(());
        };
        if owners::wanted(self.mirror, &live.metadata, is_owned).is_some() {
            let check = |metadata: &_| {
                ownership::check(self.mirror, kind, metadata)?;
                Ok(OwnerChange::Allowed)
            };
            self.set_owners(kind, name, is_owned, check).await?;
        }
        Ok(())
    }
}

/// Returns the rejection of a change of owners, or the error if a retry may succeed.
fn refused_owners(error: ApplyError, is_owned: bool) -> Result<RefusedClaim, ApplyError> {
    let consequence = if is_owned {
        "the PVC would stay when the mirror is deleted (retentionPolicy Delete)"
    } else {
        "the PVC would still be deleted with the mirror (retentionPolicy Retain)"
    };
    rejection(error, |_| {
        Some((
            Reason::RetentionPolicyNotApplied,
            format!("owner references not changed, so that {consequence}: "),
        ))
    })
}

/// Returns the rejection of a PVC: of its growth if it exists, else by a quota or a policy.
fn refused_claim(error: ApplyError, exists: bool) -> Result<RefusedClaim, ApplyError> {
    rejection(error, |code| match code {
        403 if exists => Some((Reason::ResizeUnsupported, String::new())),
        403 | 422 => Some((Reason::ClaimPending, String::new())),
        _ => None,
    })
}

/// Returns the rejection with the reason and the prefix that `of` has for its status code, or the error.
fn rejection(
    error: ApplyError,
    of: impl FnOnce(u16) -> Option<(Reason, String)>,
) -> Result<RefusedClaim, ApplyError> {
    let Some(status) = error.rejection() else {
        return Err(error);
    };
    match of(status.code) {
        Some((reason, prefix)) => Ok(RefusedClaim {
            reason,
            message: prefix + &status.message,
        }),
        None => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use test_case::test_case;

    use super::*;
    use crate::kind::Kind;

    fn answer(code: u16) -> ApplyError {
        let status = Status {
            code,
            message: "no".to_owned(),
            ..Status::default()
        };
        let source = kube::Error::Api(Box::new(status));
        ApplyError::cluster("applied", Kind::PersistentVolumeClaim, "cache-hub-0", source)
    }

    /// A refused write of a PersistentVolumeClaim maps to a reason.
    #[test_case(403, true => Some(Reason::ResizeUnsupported); "growth that the class does not allow")]
    #[test_case(403, false => Some(Reason::ClaimPending); "quota")]
    #[test_case(422, true => Some(Reason::ClaimPending); "validation")]
    #[test_case(500, true => None; "failure that passes")]
    fn refused_pvc_reason(code: u16, exists: bool) -> Option<Reason> {
        refused_claim(answer(code), exists)
            .ok()
            .map(|refused| refused.reason)
    }

    #[test_case(403 => Some(Reason::RetentionPolicyNotApplied); "no permission to delete")]
    #[test_case(409 => None; "conflict")]
    fn refused_owners_reason(code: u16) -> Option<Reason> {
        let refused = refused_owners(answer(code), false).ok()?;
        assert!(
            refused.message.ends_with("(retentionPolicy Retain): no"),
            "{}",
            refused.message
        );
        Some(refused.reason)
    }
}
