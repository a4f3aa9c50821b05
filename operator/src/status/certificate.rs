//! `TLSReady`: the certificate that clients are shown.

use std::time::Duration;

use crds::conditions::{ConditionType, Reason};
use k8s_openapi::jiff::Timestamp;

use super::{
    Outcome,
    conditions::{Saying, Truth},
};
use crate::validate::{Serving, credentials::Problem};

/// The certificate, never its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// When it ends, in seconds since 1970.
    pub expires: i64,
    /// When there is something to do or to tell about it, in seconds since 1970.
    pub changes: i64,
    /// Its authority is published.
    pub has_authority: bool,
    /// Why it is the one that servers had before.
    pub problem: Option<Problem>,
}

impl Certificate {
    /// Of what servers are handed.
    pub fn new(serving: &Serving) -> Self {
        Self {
            expires: serving.expires,
            changes: serving.changes,
            has_authority: serving.authority.is_some(),
            problem: serving.problem.clone(),
        }
    }

    /// How long there is nothing to do or to tell about it; `None` where there never is.
    pub fn rest(&self, now: Timestamp) -> Option<Duration> {
        let seconds = self.changes.saturating_sub(now.as_second());
        u64::try_from(seconds)
            .ok()
            .filter(|s| *s > 0)
            .map(Duration::from_secs)
    }
}

pub(super) fn condition(outcome: &Outcome, now: Timestamp) -> Option<Saying> {
    let saying = |truth, reason, message| Some(Saying::new(ConditionType::TLSReady, truth, reason, message));
    let certificate = match outcome {
        Outcome::Acted(acted) => acted.certificate.as_ref()?,
        Outcome::Rejected(rejection) if is_about_it(rejection.reason) => {
            return saying(Truth::False, rejection.reason, rejection.message.clone());
        }
        Outcome::Paused | Outcome::Failed | Outcome::Rejected(_) => return None,
    };
    if let Some(problem) = &certificate.problem {
        let message = format!("{}; the previous certificate serves on", problem.message);
        return saying(Truth::False, problem.reason, message);
    }
    let end = Timestamp::from_second(certificate.expires).unwrap_or(Timestamp::MAX);
    if end <= now {
        let message = format!("the certificate ended at {end}: put a new one into its Secret");
        return saying(Truth::False, Reason::Expired, message);
    }
    saying(
        Truth::True,
        Reason::CertificateReady,
        format!("the certificate is valid until {end}"),
    )
}

/// Only a certificate's rejection has these: of credentials, none is one.
fn is_about_it(reason: Reason) -> bool {
    matches!(reason, Reason::SecretNotFound | Reason::Malformed)
}

/// What `Accepted` says of it: its reasons are about references of any kind.
pub(super) fn as_reference(reason: Reason) -> Reason {
    match reason {
        Reason::SecretNotFound => Reason::ReferenceNotFound,
        Reason::Malformed => Reason::ReferenceMalformed,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::{status::Acted, validate::Rejection};

    fn said(expires: i64, problem: Option<Reason>) -> (Truth, Reason) {
        let problem = problem.map(|reason| Problem {
            reason,
            message: "why".to_owned(),
        });
        let acted = Acted {
            certificate: Some(Certificate {
                expires,
                changes: expires,
                has_authority: false,
                problem,
            }),
            ..Acted::default()
        };
        let saying = condition(&Outcome::Acted(acted), Timestamp::from_second(1000).unwrap()).unwrap();
        (saying.truth, saying.reason)
    }

    #[test_case(1010, 1000 => Some(10); "that long")]
    #[test_case(1000, 1000 => None; "it ended, and was told")]
    #[test_case(900, 1000 => None; "long ago")]
    fn a_certificate_can_be_left_alone_for(changes: i64, now: i64) -> Option<u64> {
        let certificate = Certificate {
            expires: changes,
            changes,
            has_authority: false,
            problem: None,
        };
        let rest = certificate.rest(Timestamp::from_second(now).unwrap());
        rest.map(|rest| rest.as_secs())
    }

    #[test]
    fn a_certificate_is_ready_until_it_ends() {
        assert_eq!(said(1001, None), (Truth::True, Reason::CertificateReady));
        assert_eq!(said(1000, None), (Truth::False, Reason::Expired));
    }

    #[test]
    fn what_is_wrong_with_the_secret_is_told_while_the_previous_one_serves() {
        assert_eq!(
            said(1001, Some(Reason::Malformed)),
            (Truth::False, Reason::Malformed)
        );
    }

    #[test]
    fn plain_http_says_nothing_and_a_missing_secret_is_also_a_missing_reference() {
        let now = Timestamp::UNIX_EPOCH;
        assert!(condition(&Outcome::Acted(Acted::default()), now).is_none());
        let rejection = Rejection {
            reason: Reason::SecretNotFound,
            message: "no Secret".to_owned(),
        };
        let saying = condition(&Outcome::Rejected(rejection), now).unwrap();
        assert_eq!(
            (saying.truth, saying.reason),
            (Truth::False, Reason::SecretNotFound)
        );
        assert_eq!(as_reference(saying.reason), Reason::ReferenceNotFound);
    }
}
