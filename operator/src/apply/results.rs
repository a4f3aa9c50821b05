//! Collects the results of an apply: one failure does not stop the remaining objects.

use super::{Applied, ApplyError};
use crate::validate::Rejection;

/// The failures of an apply.
#[derive(Default)]
pub(super) struct ApplyResults {
    rejected: Vec<Rejection>,
    /// The messages of objects that the rules of the cluster reject.
    forbidden: Vec<String>,
    /// An object that another field manager keeps changing.
    conflict: Option<ApplyError>,
    failed: Option<ApplyError>,
}

impl ApplyResults {
    /// Records the result for one object. Returns whether the object exists, as far as known.
    pub(super) fn record(&mut self, result: Result<(), ApplyError>) -> bool {
        match result {
            Ok(()) => true,
            Err(error @ ApplyError::Conflict { .. }) => {
                self.conflict = Some(error);
                true
            }
            // It exists, with other fields than applied.
            Err(error @ (ApplyError::Altered { .. } | ApplyError::Kept { .. })) => {
                self.failed = Some(error);
                true
            }
            Err(ApplyError::Rejected(rejection)) => {
                self.rejected.push(rejection);
                false
            }
            Err(error @ ApplyError::Forbidden { .. }) => {
                self.forbidden.push(error.to_string());
                false
            }
            Err(error) => {
                self.failed = Some(error);
                false
            }
        }
    }

    /// Adds the rejections to `applied`. Fails if there are none and an object has to be retried.
    pub(super) fn finish(self, applied: &mut Applied) -> Result<(), ApplyError> {
        let messages: Vec<_> = self.rejected.iter().map(|one| one.message.as_str()).collect();
        let message = messages.join("; ");
        applied.refused = self.rejected.first().map(|first| Rejection {
            reason: first.reason,
            message,
        });
        applied.forbidden = (!self.forbidden.is_empty()).then(|| self.forbidden.join("; "));
        match self.failed.or(self.conflict) {
            Some(failed) if applied.is_whole() => Err(failed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn refused(message: &str) -> Result<(), ApplyError> {
        Err(Rejection::invalid(message.to_owned()).into())
    }

    fn altered() -> ApplyError {
        ApplyError::Altered {
            kind: Kind::ConfigMap,
            name: "x".to_owned(),
        }
    }

    fn forbidden(name: &str) -> Result<(), ApplyError> {
        Err(ApplyError::Forbidden {
            kind: Kind::Secret,
            name: name.to_owned(),
            message: "exceeded quota".to_owned(),
        })
    }

    #[test]
    fn all_rejections_are_reported_altered_object_exists() {
        let (mut results, mut applied) = (ApplyResults::default(), Applied::default());
        assert!(results.record(Ok(())) && results.record(Err(altered())));
        assert!(!results.record(refused("one")) && !results.record(refused("two")));
        assert!(!results.record(forbidden("a")) && !results.record(forbidden("b")));
        results.finish(&mut applied).unwrap();
        assert_eq!(applied.refused.unwrap().message, "one; two");
        let both = "Secret a rejected by the API server: exceeded quota; Secret b rejected by the API server: exceeded quota";
        assert_eq!(applied.forbidden.unwrap(), both);
    }

    #[test]
    fn altered_object_is_retried() {
        let (mut results, mut applied) = (ApplyResults::default(), Applied::default());
        results.record(Err(altered()));
        assert!(matches!(
            results.finish(&mut applied),
            Err(ApplyError::Altered { .. })
        ));
        ApplyResults::default().finish(&mut applied).unwrap();
        assert!(applied.is_whole());
    }
}
