//! The condition `TLSReady`.

use std::time::Duration;

use crds::conditions::{ConditionType, Reason, Truth};
use k8s_openapi::jiff::Timestamp;

use super::{Outcome, conditions::ConditionUpdate};
use crate::{
    observed::{Observed, Validity},
    validate::{Serving, credentials::Problem},
};

/// The state of the serving certificate, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// The validity.
    pub validity: Validity,
    /// The time of the next action or report, in seconds since 1970.
    pub changes: i64,
    /// Its CA certificates are published.
    pub has_ca: bool,
    /// The fault of the Secret, if servers keep the previous certificate.
    pub problem: Option<Problem>,
}

impl CertificateStatus {
    /// Returns the state of a serving certificate.
    pub fn new(serving: &Serving) -> Self {
        Self {
            validity: serving.validity,
            changes: serving.changes,
            has_ca: serving.ca.is_some(),
            problem: serving.problem.clone(),
        }
    }

    /// Returns the time to the next action or report; `None` if there is none.
    pub fn next_change(&self, now: Timestamp) -> Option<Duration> {
        let Validity {
            not_before,
            not_after,
        } = self.validity;
        next(
            [self.changes, not_before, self.validity.expiring_from(), not_after],
            now,
        )
    }
}

/// Returns the time to the next report on the certificate that servers have.
pub fn next_validity_change(validity: Validity, now: Timestamp) -> Option<Duration> {
    next(
        [validity.not_before, validity.expiring_from(), validity.not_after],
        now,
    )
}

/// Returns the time until the next of these times.
fn next<const N: usize>(times: [i64; N], now: Timestamp) -> Option<Duration> {
    let left = times.map(|time| time.saturating_sub(now.as_second()));
    let next = left.into_iter().filter(|seconds| *seconds > 0).min()?;
    u64::try_from(next).ok().map(Duration::from_secs)
}

pub(super) fn condition(outcome: &Outcome, observed: &Observed, now: Timestamp) -> Option<ConditionUpdate> {
    let saying = |truth, reason, message| {
        Some(ConditionUpdate::new(
            ConditionType::TLSReady,
            truth,
            reason,
            message,
        ))
    };
    let certificate = match outcome {
        Outcome::Acted(acted) => acted.certificate.as_ref()?,
        Outcome::Rejected(rejection) if is_about_it(rejection.reason) => {
            return saying(Truth::False, rejection.reason, rejection.message.clone());
        }
        Outcome::Paused | Outcome::Failed(_) | Outcome::Rejected(_) => {
            return Some(of_validity(observed.certificate?, now, action(outcome)));
        }
    };
    // The served certificate may be an older one, if the API server rejected a write.
    let validity = observed.certificate.unwrap_or(certificate.validity);
    if let Some(problem) = &certificate.problem {
        let message = format!("{}; the previous certificate stays in use", problem.message);
        return saying(Truth::False, problem.reason, message);
    }
    Some(of_validity(validity, now, action(outcome)))
}

fn of_validity(validity: Validity, now: Timestamp, action: &str) -> ConditionUpdate {
    let end = Timestamp::from_second(validity.not_after).unwrap_or(Timestamp::MAX);
    let second = now.as_second();
    let (truth, reason, message) = if validity.not_after <= second {
        let message = format!("certificate expired at {end}: {action}");
        (Truth::False, Reason::Expired, message)
    } else if validity.not_before > second {
        let start = Timestamp::from_second(validity.not_before).unwrap_or(Timestamp::MAX);
        let message = format!(
            "certificate not valid before {start}: store one in its Secret that is valid now, or check the clock of its issuer"
        );
        (Truth::False, Reason::NotYetValid, message)
    } else if validity.expiring_from() <= second {
        let message = format!("certificate not renewed, expires at {end}: {action}");
        (Truth::True, Reason::Expiring, message)
    } else {
        let message = format!("certificate valid until {end}");
        (Truth::True, Reason::CertificateReady, message)
    };
    ConditionUpdate::new(ConditionType::TLSReady, truth, reason, message)
}

/// Returns the action for a certificate that expires.
fn action(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Paused => {
            "set spec.paused to false, because the operator renews no certificate of a paused mirror"
        }
        Outcome::Acted(_) => "store a new one in its Secret, or check its renewal (cert-manager)",
        Outcome::Rejected(_) | Outcome::Failed(_) => {
            "correct the fault in the condition Accepted, and store a new one in its Secret if it has one"
        }
    }
}

/// Returns whether a rejection is about the certificate. Credentials are never rejected with these reasons.
fn is_about_it(reason: Reason) -> bool {
    matches!(reason, Reason::SecretNotFound | Reason::Malformed)
}

/// Returns the reason in `Accepted`, which covers references of any kind.
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
            certificate: Some(CertificateStatus {
                validity: Validity {
                    not_before: expires - 60,
                    not_after: expires,
                },
                changes: expires,
                has_ca: false,
                problem,
            }),
            ..Acted::default()
        };
        let now = Timestamp::from_second(1000).unwrap();
        let saying = condition(&Outcome::Acted(acted), &Observed::default(), now).unwrap();
        (saying.truth, saying.reason)
    }

    /// The time after which a certificate needs the next reconcile.
    #[test_case(1010, 1020 => Some(10); "until it is renewed")]
    #[test_case(1020, 1020 => Some(10); "until its last sixth")]
    #[test_case(900, 1006 => Some(6); "until it ends")]
    #[test_case(1090, 1065 => Some(5); "until it begins")]
    #[test_case(1000, 1000 => None; "it ended, and was reported")]
    #[test_case(900, 900 => None; "long ago")]
    fn certificate_requeue_time(changes: i64, ends: i64) -> Option<u64> {
        let starts = ends - 60;
        let certificate = CertificateStatus {
            validity: Validity {
                not_before: starts,
                not_after: ends,
            },
            changes,
            has_ca: false,
            problem: None,
        };
        let rest = certificate.next_change(Timestamp::from_second(1000).unwrap());
        rest.map(|rest| rest.as_secs())
    }

    /// A certificate is ready until it expires.
    #[test]
    fn certificate_is_ready_until_expiry() {
        assert_eq!(said(1011, None), (Truth::True, Reason::CertificateReady));
        assert_eq!(said(1010, None), (Truth::True, Reason::Expiring));
        assert_eq!(said(1000, None), (Truth::False, Reason::Expired));
    }

    /// A certificate is not ready ahead of its validity.
    #[test]
    fn future_certificate_is_not_ready() {
        assert_eq!(said(1061, None), (Truth::False, Reason::NotYetValid));
        assert_eq!(said(1060, None), (Truth::True, Reason::CertificateReady));
    }

    #[test]
    fn faulty_secret_is_reported_while_previous_serves() {
        assert_eq!(
            said(1001, Some(Reason::Malformed)),
            (Truth::False, Reason::Malformed)
        );
    }

    #[test]
    fn plain_http_has_no_condition_missing_secret_has() {
        let now = Timestamp::UNIX_EPOCH;
        let observed = Observed::default();
        assert!(condition(&Outcome::Acted(Acted::default()), &observed, now).is_none());
        let rejection = Rejection {
            reason: Reason::SecretNotFound,
            message: "no Secret".to_owned(),
        };
        let saying = condition(&Outcome::Rejected(rejection), &observed, now).unwrap();
        assert_eq!(
            (saying.truth, saying.reason),
            (Truth::False, Reason::SecretNotFound)
        );
        assert_eq!(as_reference(saying.reason), Reason::ReferenceNotFound);
    }

    #[test_case(&Outcome::Paused, 1011 => (Reason::CertificateReady, false))]
    #[test_case(&Outcome::Paused, 1010 => (Reason::Expiring, true))]
    #[test_case(&Outcome::Paused, 1000 => (Reason::Expired, true))]
    #[test_case(&Outcome::Failed(None), 1010 => (Reason::Expiring, false))]
    fn served_certificate_is_reported_without_apply(outcome: &Outcome, ends: i64) -> (Reason, bool) {
        let observed = Observed {
            certificate: Some(Validity {
                not_before: ends - 60,
                not_after: ends,
            }),
            ..Observed::default()
        };
        let saying = condition(outcome, &observed, Timestamp::from_second(1000).unwrap()).unwrap();
        (saying.reason, saying.message.contains("set spec.paused to false"))
    }
}
