//! Claims: their owners first, then their size.

use crds::conditions::Reason;

use super::{Applied, Error, Found, RefusedClaim, Target, Tried, guard, key};
use crate::{
    desired::{Child, Desired},
    owners,
};

impl Target<'_> {
    /// Applies the claims; returns whether the workload may follow. Where one could not be asked for, the workload must
    /// not make its own.
    pub(super) async fn apply_claims(
        &self,
        desired: &Desired,
        found: &Found,
        applied: &mut Applied,
        tried: &mut Tried,
    ) -> bool {
        for claim in &desired.claims {
            match self.apply_claim(claim, found).await {
                Ok(None) => {}
                Ok(Some(refused)) => _ = applied.refused_claims.insert(claim.name.clone(), refused),
                Err(error) => {
                    if !tried.note(Err(error)) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Applies one claim; returns the API server's refusal, if there is one. The owners come first and by themselves, so
    /// that a growth which is refused does not keep a cache that is to be kept from being safe.
    async fn apply_claim(&self, claim: &Child, found: &Found) -> Result<Option<RefusedClaim>, Error> {
        let is_owned = claim.manifest.pointer("/metadata/ownerReferences").is_some();
        if let Err(error) = self.own_claim(claim, is_owned).await {
            return refused_owners(error, is_owned).map(Some);
        }
        match self.apply(claim, found).await {
            Ok(()) => Ok(None),
            Err(error) => refused_claim(error, found.contains_key(&key(claim))).map(Some),
        }
    }

    /// Has a claim go with the mirror, or stay when it goes.
    async fn own_claim(&self, claim: &Child, is_owned: bool) -> Result<(), Error> {
        let (kind, name) = (claim.kind, claim.name.as_str());
        let Some(live) = self.cluster.children.get(kind, &self.namespace, name) else {
            return Ok(());
        };
        if owners::wanted(self.mirror, &live.metadata, is_owned).is_some() {
            let may = |metadata: &_| guard::check(self.mirror, kind, metadata).map_err(Error::from);
            self.set_owners(kind, name, is_owned, may).await?;
        }
        Ok(())
    }
}

/// Returns the refusal of a change of owners; the error where a retry may succeed.
fn refused_owners(error: Error, is_owned: bool) -> Result<RefusedClaim, Error> {
    let consequence = if is_owned {
        "the claim would stay when the mirror is deleted (retentionPolicy Delete)"
    } else {
        "the claim would still be deleted with the mirror (retentionPolicy Retain)"
    };
    refusal(error, |_| {
        Some((
            Reason::RetentionPolicyNotApplied,
            format!("{consequence}, as its owner references can't be changed: "),
        ))
    })
}

/// A claim that is there was refused its growth, one that is not there was refused by a quota or a policy.
fn refused_claim(error: Error, is_there: bool) -> Result<RefusedClaim, Error> {
    refusal(error, |code| match code {
        403 if is_there => Some((Reason::ResizeUnsupported, String::new())),
        403 | 422 => Some((Reason::ClaimPending, String::new())),
        _ => None,
    })
}

/// Returns the refusal in the API server's words after those that `of` has for its code; the error where it is none.
fn refusal(error: Error, of: impl FnOnce(u16) -> Option<(Reason, String)>) -> Result<RefusedClaim, Error> {
    let Some(status) = error.refusal() else {
        return Err(error);
    };
    match of(status.code) {
        Some((reason, words)) => Ok(RefusedClaim {
            reason,
            message: words + &status.message,
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

    fn answer(code: u16) -> Error {
        let status = Status {
            code,
            message: "no".to_owned(),
            ..Status::default()
        };
        let source = kube::Error::Api(Box::new(status));
        Error::cluster("applying", Kind::PersistentVolumeClaim, "cache-hub-0", source)
    }

    #[test_case(403, true => Some(Reason::ResizeUnsupported); "growth that the class does not allow")]
    #[test_case(403, false => Some(Reason::ClaimPending); "quota")]
    #[test_case(422, true => Some(Reason::ClaimPending); "validation")]
    #[test_case(500, true => None; "failure that passes")]
    fn refused_claim_reason(code: u16, is_there: bool) -> Option<Reason> {
        refused_claim(answer(code), is_there)
            .ok()
            .map(|refused| refused.reason)
    }

    #[test_case(403 => Some(Reason::RetentionPolicyNotApplied); "no permission to delete")]
    #[test_case(409 => None; "conflict")]
    fn refused_owners_reason(code: u16) -> Option<Reason> {
        let refused = refused_owners(answer(code), false).ok()?;
        assert!(
            refused.message.ends_with("can't be changed: no"),
            "{}",
            refused.message
        );
        Some(refused.reason)
    }
}
