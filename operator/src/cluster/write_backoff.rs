//! Back-off for writes that another field manager undoes or the API server rejects.
//!
//! The operator repairs an object at once three times and then with exponential back-off: two managers that write in turn
//! would keep the API server busy, and neither would win. Rejected writes are retried with exponential back-off, because freed
//! quota or addresses emit no event, and at once if the desired state or the object changes.

use std::{collections::HashMap, time::Duration};

use kube::core::Status;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{backoff::Backoff, mirror_key::ObjectKey};

/// The number of writes of the same state without a delay: a user who edits by hand tries more than once.
const IMMEDIATE: u32 = 3;
/// The delays of repairs.
const REPAIR: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_mins(1),
};
/// The delays of writes that the API server rejects.
const REJECTED: Backoff = Backoff {
    first: Duration::from_secs(20),
    longest: Duration::from_mins(5),
};
/// The time without a write after which an object's history is forgotten.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// The desired state of an object, and the version that the write replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredState {
    /// The SHA-256 of the manifest.
    pub manifest_hash: [u8; 32],
    /// The resource version of the live object.
    pub resource_version: Option<String>,
}

/// The reason for which a write has to wait.
#[derive(Clone, Debug)]
pub enum BackoffReason {
    /// Another field manager keeps changing the object; the remaining delay.
    Conflict(Duration),
    /// The API server rejected the same write with this status.
    Rejected(Box<Status>),
}

/// The results of the last writes to each object.
#[derive(Default)]
pub struct WriteBackoff(Mutex<HashMap<ObjectKey, LastWrite>>);

struct LastWrite {
    state: DesiredState,
    /// The number of times in a row that the same state had the same result.
    count: u32,
    at: Instant,
    rejection: Option<Box<Status>>,
}

impl WriteBackoff {
    /// Returns the reason for which a write has to wait, if it has to.
    pub fn check(&self, key: &ObjectKey, state: &DesiredState, now: Instant) -> Option<BackoffReason> {
        let writes = self.0.lock();
        let last = writes.get(key)?;
        let wait = last.delay(state).checked_sub(now.duration_since(last.at))?;
        if wait.is_zero() {
            return None;
        }
        Some(match &last.rejection {
            Some(status) => BackoffReason::Rejected(status.clone()),
            None => BackoffReason::Conflict(wait),
        })
    }

    /// Records a successful write.
    pub fn record_write(&self, key: ObjectKey, state: DesiredState, now: Instant) {
        self.record(key, state, now, None);
    }

    /// Records a write that the API server rejected.
    pub fn record_rejection(&self, key: ObjectKey, state: DesiredState, now: Instant, status: Box<Status>) {
        self.record(key, state, now, Some(status));
    }

    fn record(&self, key: ObjectKey, state: DesiredState, at: Instant, rejection: Option<Box<Status>>) {
        let mut writes = self.0.lock();
        writes.retain(|_, last| at.duration_since(last.at) < FORGOTTEN);
        let same = writes.get(&key).filter(|last| {
            last.state.manifest_hash == state.manifest_hash && last.rejection.is_some() == rejection.is_some()
        });
        let count = same.map_or(0, |last| last.count) + 1;
        let last = LastWrite {
            state,
            count,
            at,
            rejection,
        };
        writes.insert(key, last);
    }
}

impl LastWrite {
    /// Returns the delay of a write of this state.
    fn delay(&self, state: &DesiredState) -> Duration {
        match self.rejection {
            Some(_) if self.state == *state => REJECTED.delay(self.count),
            // The first write is no repair.
            None if self.state.manifest_hash == state.manifest_hash => {
                REPAIR.delay(self.count.saturating_sub(IMMEDIATE))
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn object(kind: Kind) -> ObjectKey {
        ObjectKey {
            kind,
            namespace: "mirrors".to_owned(),
            name: "hub-config".to_owned(),
        }
    }

    fn key() -> ObjectKey {
        object(Kind::ConfigMap)
    }

    fn state(manifest_hash: u8, version: &str) -> DesiredState {
        DesiredState {
            manifest_hash: [manifest_hash; 32],
            resource_version: Some(version.to_owned()),
        }
    }

    fn wait(backoff: &WriteBackoff, state: &DesiredState, now: Instant) -> Option<Duration> {
        backoff.check(&key(), state, now).map(|reason| match reason {
            BackoffReason::Conflict(wait) => wait,
            BackoffReason::Rejected(_) => Duration::MAX,
        })
    }

    #[test]
    fn repairs_are_delayed_after_three() {
        let (backoff, mut now) = (WriteBackoff::default(), Instant::now());
        let mut waits = Vec::new();
        for version in 0..12 {
            backoff.record_write(key(), state(1, &version.to_string()), now);
            let wait = wait(&backoff, &state(1, "other"), now).unwrap_or_default();
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn another_state_is_no_repair() {
        let (backoff, now) = (WriteBackoff::default(), Instant::now());
        for _ in 0..9 {
            backoff.record_write(key(), state(1, "1"), now);
        }
        assert!(wait(&backoff, &state(1, "2"), now).is_some());
        assert_eq!(wait(&backoff, &state(2, "2"), now), None);
        backoff.record_write(key(), state(2, "2"), now);
        assert_eq!(wait(&backoff, &state(2, "3"), now), None);
    }

    #[test]
    fn rejection_delays_the_same_write_only() {
        let (backoff, now) = (WriteBackoff::default(), Instant::now());
        backoff.record_rejection(key(), state(1, "1"), now, Box::default());
        let held = |state, now| wait(&backoff, &state, now).is_some();
        assert!(held(state(1, "1"), now + REJECTED.first / 2));
        assert!(!held(state(1, "1"), now + REJECTED.first));
        assert!(!held(state(2, "1"), now) && !held(state(1, "2"), now));
        backoff.record_rejection(key(), state(1, "1"), now, Box::default());
        assert!(held(state(1, "1"), now + REJECTED.first));
        backoff.record_write(key(), state(1, "1"), now);
        assert!(!held(state(1, "1"), now));
    }

    #[test]
    fn old_write_is_forgotten() {
        let (backoff, now) = (WriteBackoff::default(), Instant::now());
        backoff.record_write(key(), state(1, "1"), now);
        let other = object(Kind::Secret);
        backoff.record_write(other, state(1, "1"), now + FORGOTTEN);
        assert_eq!(backoff.0.lock().len(), 1);
    }
}
