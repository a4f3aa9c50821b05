//! The delay after which a mirror is reconciled again.

use std::{collections::HashMap, time::Duration};

use kube::ResourceExt;
use parking_lot::Mutex;

use crate::{
    apply,
    backoff::{Backoff, jittered},
    cluster::triggers::StoredMirror,
    observed::Observed,
    status::{self, Acted, Outcome},
};

/// The delays after failures in a row.
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(800),
    longest: Duration::from_secs(30),
};
/// The delay after which a rejected spec is validated again: some changes emit no watch event, e.g. a released name.
const REJECTED_RETRY: Duration = Duration::from_secs(30);

/// A retry after a failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    /// The number of failures in a row, from 1.
    pub(super) attempt: u32,
    /// The delay, with jitter.
    pub(super) after: Duration,
}

/// The failures in a row of each mirror, by its UID.
#[derive(Default)]
pub(super) struct Retries(Mutex<HashMap<String, u32>>);

impl Retries {
    /// Counts a failure, and returns the retry.
    pub(super) fn next(&self, mirror: &StoredMirror) -> Retry {
        let mut failures = self.0.lock();
        let attempt = failures.entry(mirror.uid().unwrap_or_default()).or_default();
        *attempt = attempt.saturating_add(1);
        Retry {
            attempt: *attempt,
            after: jittered(RETRY.delay(*attempt)),
        }
    }

    /// Returns the number of failures in a row.
    pub(super) fn attempts(&self, mirror: &StoredMirror) -> u32 {
        let uid = mirror.uid().unwrap_or_default();
        self.0.lock().get(&uid).copied().unwrap_or_default()
    }

    /// Forgets the failures of a mirror.
    pub(super) fn forget(&self, mirror: &StoredMirror) {
        self.0.lock().remove(&mirror.uid().unwrap_or_default());
    }
}

/// Returns the delay after a reconcile that did not fail. The deadlines of its certificate are kept to the second.
pub(super) fn requeue_after(outcome: &Outcome, observed: &Observed, resync: Duration) -> Duration {
    let delay = jittered(next_check(outcome, observed, resync));
    let change = match outcome {
        Outcome::Acted(acted) => acted
            .certificate
            .as_ref()
            .and_then(|c| c.next_change(observed.at)),
        Outcome::Paused | Outcome::Rejected(_) | Outcome::Failed(_) => observed
            .certificate
            .and_then(|validity| status::next_validity_change(validity, observed.at)),
    };
    change.map_or(delay, |change| delay.min(change))
}

/// Returns the delay to the next check: a released quota and a claim that an admin creates emit no watch event.
fn next_check(outcome: &Outcome, observed: &Observed, resync: Duration) -> Duration {
    match outcome {
        Outcome::Rejected(_) => resync.min(REJECTED_RETRY),
        Outcome::Acted(Acted { applied, .. })
            if !applied.is_whole() || !applied.refused_claims.is_empty() || observed.lacks_claim() =>
        {
            resync.min(REJECTED_RETRY)
        }
        outcome if outcome.is_reload_pending() => apply::NOTIFY_AGAIN.first,
        Outcome::Paused | Outcome::Acted(_) | Outcome::Failed(_) => resync,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{DeserializeGuard, error_boundary::InvalidObject};

    use super::*;

    fn mirror(uid: &str) -> StoredMirror {
        let metadata = kube::api::ObjectMeta {
            uid: Some(uid.to_owned()),
            ..Default::default()
        };
        DeserializeGuard(Err(InvalidObject {
            error: String::new(),
            metadata,
        }))
    }

    #[test]
    fn retry_delay_grows_up_to_a_minute() {
        let retries = Retries::default();
        let waits: Vec<_> = (0..10).map(|_| retries.next(&mirror("a")).after).collect();
        assert!(waits[5] > waits[0], "{waits:?}");
        let is_short = |wait: &Duration| *wait <= Duration::from_mins(1);
        assert!(waits.iter().all(is_short), "{waits:?}");
    }

    #[test]
    fn failures_are_counted_per_mirror() {
        let retries = Retries::default();
        retries.next(&mirror("a"));
        let next = |uid| retries.next(&mirror(uid)).attempt;
        assert_eq!((next("a"), next("b")), (2, 1));
    }

    #[test]
    fn success_resets_the_failures() {
        let retries = Retries::default();
        retries.next(&mirror("a"));
        assert_eq!(retries.attempts(&mirror("a")), 1);
        retries.forget(&mirror("a"));
        assert_eq!(retries.attempts(&mirror("a")), 0);
        assert_eq!(retries.next(&mirror("a")).attempt, 1);
    }
}
