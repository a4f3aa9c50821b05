//! Decides from validities and the time alone when CAs and certificates are replaced. All times are in seconds since 1970.

use super::CertificateLifetimes;
use crate::observed::Validity;

/// The time by which a certificate's validity begins before it is made, for clients with a slow clock.
pub(super) const SKEW: i64 = 3600;

impl Validity {
    /// Returns the validity of a certificate that is made at `now` with a lifetime in seconds.
    pub(super) fn starting(now: i64, lifetime: i64) -> Self {
        Self {
            not_before: now.saturating_sub(SKEW),
            not_after: now.saturating_add(lifetime),
        }
    }

    fn issued_at(self) -> i64 {
        self.not_before.saturating_add(SKEW)
    }

    /// Returns a fraction of the lifetime.
    fn fraction(self, divisor: i64) -> i64 {
        self.not_after.saturating_sub(self.issued_at()) / divisor
    }

    /// Returns the end of the first third of the lifetime.
    fn first_third(self) -> i64 {
        self.issued_at().saturating_add(self.fraction(3))
    }

    /// Returns the time of renewal: two thirds of the lifetime.
    fn renewal_time(self) -> i64 {
        self.not_after - self.fraction(3)
    }

    fn is_over(self, now: i64) -> bool {
        self.not_after <= now
    }
}

/// A step in the rotation of a mirror's CAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaRotation {
    /// The current CA signs on.
    Keep,
    /// There is no CA that can sign: create one.
    Create,
    /// Create the next CA, for clients to trust.
    Stage,
    /// The next CA signs from now on.
    Promote,
}

/// Returns the step that is due for the CA that signs and the next one.
pub(super) fn due_step(
    current: Option<Validity>,
    next: Option<Validity>,
    now: i64,
    lifetimes: &CertificateLifetimes,
) -> CaRotation {
    let is_valid = |validity: &Validity| !validity.is_over(now);
    match (current.filter(is_valid), next.filter(is_valid)) {
        (None, None) => CaRotation::Create,
        (None, Some(_)) => CaRotation::Promote,
        (Some(current), None) if now >= current.first_third() => CaRotation::Stage,
        (Some(current), Some(next)) if now >= promotion_time(current, next, lifetimes) => CaRotation::Promote,
        (Some(_), _) => CaRotation::Keep,
    }
}

/// Returns the time at which the next CA is promoted: after a third of its lifetime, in which clients learn to trust it, and
/// at the latest when a certificate of the current CA would outlive that CA.
fn promotion_time(current: Validity, next: Validity, lifetimes: &CertificateLifetimes) -> i64 {
    next.first_third()
        .min(current.not_after.saturating_sub(seconds(lifetimes.serving)))
}

/// The state of a serving certificate.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafState {
    pub(super) validity: Validity,
    /// Clients trust its CA.
    pub(super) is_trusted: bool,
    /// It names exactly the mirror's names.
    pub(super) names_match: bool,
}

/// Returns whether another serving certificate has to be issued.
pub(super) fn is_due(leaf: LeafState, now: i64) -> bool {
    !leaf.is_trusted || !leaf.names_match || now >= leaf.validity.renewal_time()
}

/// Returns the time of the next change: a rotation step, a renewal, or the end of a CA that clients need not trust any more.
pub(super) fn next_change(
    current: Validity,
    next: Option<Validity>,
    leaf: Validity,
    retired: impl Iterator<Item = i64>,
    lifetimes: &CertificateLifetimes,
) -> i64 {
    let step = next.map_or(current.first_third(), |next| {
        promotion_time(current, next, lifetimes)
    });
    retired.fold(step.min(leaf.renewal_time()), i64::min)
}

pub(super) fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use test_case::test_case;

    use super::*;

    /// Lifetimes of 90 and 10, both without skew.
    const LIFETIMES: CertificateLifetimes = CertificateLifetimes {
        ca: Duration::from_secs(90),
        serving: Duration::from_secs(10),
    };

    fn made_at(now: i64) -> Validity {
        Validity::starting(now, 90)
    }

    #[test_case(None, None, 0 => CaRotation::Create; "there is none")]
    #[test_case(Some(0), None, 29 => CaRotation::Keep; "young")]
    #[test_case(Some(0), None, 30 => CaRotation::Stage; "after a third of its lifetime")]
    #[test_case(Some(0), Some(30), 59 => CaRotation::Keep; "clients learn of the next CA")]
    #[test_case(Some(0), Some(30), 60 => CaRotation::Promote; "clients had a third of its lifetime")]
    #[test_case(Some(0), Some(66), 79 => CaRotation::Keep; "staged late")]
    #[test_case(Some(0), Some(66), 80 => CaRotation::Promote; "its certificates would outlive it")]
    #[test_case(Some(0), None, 89 => CaRotation::Stage; "no reconcile until its last day")]
    #[test_case(Some(0), None, 90 => CaRotation::Create; "no reconcile until it had ended")]
    #[test_case(Some(0), Some(40), 90 => CaRotation::Promote; "ended with a successor")]
    #[test_case(None, Some(40), 41 => CaRotation::Promote; "its key was lost")]
    #[test_case(Some(40), None, 0 => CaRotation::Keep; "a clock that went back")]
    #[test_case(Some(0), Some(40), 200 => CaRotation::Create; "both ended")]
    fn due_rotation_step(current: Option<i64>, next: Option<i64>, now: i64) -> CaRotation {
        due_step(current.map(made_at), next.map(made_at), now, &LIFETIMES)
    }

    #[test_case(true, true, 5 => false; "good")]
    #[test_case(true, true, 6 => false; "just before two thirds of its lifetime")]
    #[test_case(true, true, 7 => true; "at two thirds of its lifetime")]
    #[test_case(true, true, 11 => true; "ended")]
    #[test_case(false, true, 0 => true; "CA that clients do not trust")]
    #[test_case(true, false, 0 => true; "for other names")]
    fn leaf_is_due(is_trusted: bool, names_match: bool, now: i64) -> bool {
        let validity = Validity::starting(0, 10);
        is_due(
            LeafState {
                validity,
                is_trusted,
                names_match,
            },
            now,
        )
    }

    #[test_case(0, None, 5, &[] => 12; "the certificate")]
    #[test_case(0, None, 28, &[] => 30; "a staged CA")]
    #[test_case(0, Some(30), 58, &[] => 60; "a promotion")]
    #[test_case(60, None, 79, &[82] => 82; "a CA that ends")]
    fn next_change_is_the_earliest(current: i64, next: Option<i64>, leaf: i64, others: &[i64]) -> i64 {
        let leaf = Validity::starting(leaf, 10);
        next_change(
            made_at(current),
            next.map(made_at),
            leaf,
            others.iter().copied(),
            &LIFETIMES,
        )
    }

    /// Over ten years, with a reconcile at each change, there is always a certificate, and clients had a year to trust its
    /// CA.
    #[test]
    fn rotation_over_ten_years_never_expires() {
        const DAY: i64 = 24 * 3600;
        let lifetimes = CertificateLifetimes::default();
        let (ca, serving) = (seconds(lifetimes.ca), seconds(lifetimes.serving));
        let (mut now, mut current, mut next) = (0, Validity::starting(0, ca), None);
        let mut leaf = Validity::starting(0, serving);
        let mut signer = current;
        let (mut staged, mut steps) = (i64::MIN, 0);
        while now < 3650 * DAY {
            loop {
                match due_step(Some(current), next, now, &lifetimes) {
                    CaRotation::Stage => (next, staged) = (Some(Validity::starting(now, ca)), now),
                    CaRotation::Promote => {
                        assert!(now - staged >= 365 * DAY, "clients had a year");
                        current = next.take().unwrap();
                    }
                    CaRotation::Keep => break,
                    CaRotation::Create => panic!("at {now} there is no CA"),
                }
            }
            if now >= leaf.renewal_time() {
                (leaf, signer) = (Validity::starting(now, serving), current);
            }
            assert!(
                leaf.not_after <= signer.not_after,
                "a certificate outlives its CA"
            );
            let change = next_change(current, next, leaf, std::iter::empty(), &lifetimes);
            assert!(change > now && change < leaf.not_after, "the change is in time");
            (now, steps) = (change, steps + 1);
        }
        assert!((60..120).contains(&steps), "{steps} changes in ten years");
    }
}
