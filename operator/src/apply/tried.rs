//! What became of objects that are applied one after the other, each though one before it was not.

use super::{Applied, Error};
use crate::validate::Rejection;

/// What went wrong so far.
#[derive(Default)]
pub(super) struct Tried {
    refused: Vec<Rejection>,
    /// By the cluster's rules, in words.
    forbidden: Vec<String>,
    /// Left alone for now, as someone else keeps changing it.
    contested: Option<Error>,
    failed: Option<Error>,
}

impl Tried {
    /// Notes what became of one object; whether it is there as far as can be said, so that others may rely on it.
    pub(super) fn note(&mut self, done: Result<(), Error>) -> bool {
        match done {
            Ok(()) => true,
            Err(error @ Error::Contested { .. }) => {
                self.contested = Some(error);
                true
            }
            // It is there, though not quite as applied.
            Err(error @ Error::Altered { .. }) => {
                self.failed = Some(error);
                true
            }
            Err(Error::Rejected(rejection)) => {
                self.refused.push(rejection);
                false
            }
            Err(error @ Error::Forbidden { .. }) => {
                self.forbidden.push(error.to_string());
                false
            }
            Err(error) => {
                self.failed = Some(error);
                false
            }
        }
    }

    /// Tells of what was refused, which no quick retry mends; else what has to be tried again.
    pub(super) fn end(self, applied: &mut Applied) -> Result<(), Error> {
        let messages: Vec<_> = self.refused.iter().map(|one| one.message.as_str()).collect();
        let message = messages.join("; ");
        applied.refused = self.refused.first().map(|first| Rejection {
            reason: first.reason,
            message,
        });
        applied.forbidden = (!self.forbidden.is_empty()).then(|| self.forbidden.join("; "));
        match self.failed.or(self.contested) {
            Some(failed) if applied.is_whole() => Err(failed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn refused(message: &str) -> Result<(), Error> {
        Err(Rejection::invalid(message.to_owned()).into())
    }

    fn altered() -> Error {
        Error::Altered {
            kind: Kind::ConfigMap,
            name: "x".to_owned(),
        }
    }

    fn forbidden(name: &str) -> Result<(), Error> {
        Err(Error::Forbidden {
            kind: Kind::Secret,
            name: name.to_owned(),
            message: "exceeded quota".to_owned(),
        })
    }

    #[test]
    fn all_that_is_refused_is_told_and_what_was_only_altered_is_there() {
        let (mut tried, mut applied) = (Tried::default(), Applied::default());
        assert!(tried.note(Ok(())) && tried.note(Err(altered())));
        assert!(!tried.note(refused("one")) && !tried.note(refused("two")));
        assert!(!tried.note(forbidden("a")) && !tried.note(forbidden("b")));
        tried.end(&mut applied).unwrap();
        assert_eq!(applied.refused.unwrap().message, "one; two");
        let both = "the API server refuses Secret a: exceeded quota; the API server refuses Secret b: exceeded quota";
        assert_eq!(applied.forbidden.unwrap(), both);
    }

    #[test]
    fn what_a_retry_may_mend_is_tried_again() {
        let (mut tried, mut applied) = (Tried::default(), Applied::default());
        tried.note(Err(altered()));
        assert!(matches!(tried.end(&mut applied), Err(Error::Altered { .. })));
        Tried::default().end(&mut applied).unwrap();
        assert!(applied.is_whole());
    }
}
