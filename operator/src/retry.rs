//! When to try again.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kube::{ResourceExt, runtime::watcher::DefaultBackoff};

use crate::cluster::watch::Stored;

/// What to do after a failure.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// How often it failed in a row, from 1.
    pub attempt: u32,
    /// How long to wait: longer each time, and not the same for all.
    pub after: Duration,
}

/// The failures of each mirror, none of which delays another.
#[derive(Default)]
pub struct Retries(Mutex<HashMap<String, (u32, DefaultBackoff)>>);

impl Retries {
    /// Counts a failure.
    pub fn next(&self, mirror: &Stored) -> Retry {
        let mut retries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (attempts, backoff) = retries.entry(mirror.uid().unwrap_or_default()).or_default();
        *attempts = attempts.saturating_add(1);
        // It has no end; the fallback is its longest delay.
        Retry {
            attempt: *attempts,
            after: backoff.next().unwrap_or(Duration::from_secs(30)),
        }
    }

    /// How often it failed in a row.
    pub fn attempts(&self, mirror: &Stored) -> u32 {
        let retries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = mirror.uid().unwrap_or_default();
        retries.get(&uid).map_or(0, |(attempts, _)| *attempts)
    }

    /// Forgets the failures of a mirror.
    pub fn forget(&self, mirror: &Stored) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&mirror.uid().unwrap_or_default());
    }
}

/// A duration up to a fifth shorter or longer, so that what was started together does not stay together.
pub fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use kube::core::{DeserializeGuard, error_boundary::InvalidObject};

    use super::*;

    fn mirror(uid: &str) -> Stored {
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
    fn each_failure_waits_longer_than_the_first_and_no_longer_than_a_minute() {
        let retries = Retries::default();
        let waits: Vec<_> = (0..10).map(|_| retries.next(&mirror("a")).after).collect();
        assert!(waits[5] > waits[0], "{waits:?}");
        assert!(
            waits.iter().all(|wait| *wait <= Duration::from_mins(1)),
            "{waits:?}"
        );
    }

    #[test]
    fn mirrors_fail_on_their_own_account() {
        let retries = Retries::default();
        retries.next(&mirror("a"));
        assert_eq!(
            (
                retries.next(&mirror("a")).attempt,
                retries.next(&mirror("b")).attempt
            ),
            (2, 1)
        );
    }

    #[test]
    fn a_success_starts_over() {
        let retries = Retries::default();
        retries.next(&mirror("a"));
        assert_eq!(retries.attempts(&mirror("a")), 1);
        retries.forget(&mirror("a"));
        assert_eq!(retries.attempts(&mirror("a")), 0);
        assert_eq!(retries.next(&mirror("a")).attempt, 1);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for _ in 0..100 {
            let duration = jittered(Duration::from_secs(100));
            assert!(duration >= Duration::from_secs(80) && duration <= Duration::from_mins(2));
        }
    }
}
