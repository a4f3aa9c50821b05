//! How often a mirror is looked at, at most: someone who changes its objects without a pause must not keep the operator and
//! the API server busy.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many looks follow each other at once: more than the making of a mirror takes.
const BURST: u32 = 40;
/// From then on there is one each time this has passed.
const EVERY: Duration = Duration::from_millis(250);

/// The looks at each mirror, by its UID.
#[derive(Default)]
pub struct Pace(Mutex<HashMap<String, Instant>>);

impl Pace {
    /// How long the next look at a mirror has to wait; `None`: not at all, and it counts as one.
    ///
    /// What is kept is the time at which all looks would have been due, one each time: it runs ahead of the clock by no
    /// more than the burst.
    pub fn wait(&self, mirror: &str, now: Instant) -> Option<Duration> {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.get(mirror).copied().unwrap_or(now).max(now) + EVERY;
        let ahead = next.duration_since(now);
        if ahead > EVERY * BURST {
            return Some(ahead.saturating_sub(EVERY * BURST));
        }
        due.insert(mirror.to_owned(), next);
        None
    }

    /// Forgets a mirror.
    pub fn forget(&self, mirror: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(mirror);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_follow_at_once_and_then_at_a_pace() {
        let (pace, mut now) = (Pace::default(), Instant::now());
        assert!((0..BURST).all(|_| pace.wait("a", now).is_none()));
        assert_eq!(pace.wait("a", now), Some(EVERY));
        assert_eq!(pace.wait("b", now), None, "nobody waits for another");
        now += EVERY;
        assert_eq!(pace.wait("a", now), None);
        assert_eq!(pace.wait("a", now), Some(EVERY));
        now += EVERY * 3;
        assert_eq!((0..9).filter(|_| pace.wait("a", now).is_none()).count(), 3);
    }

    #[test]
    fn who_was_left_alone_or_forgotten_starts_anew() {
        let (pace, now) = (Pace::default(), Instant::now());
        while pace.wait("a", now).is_none() {}
        let later = now + EVERY * BURST * 3;
        assert_eq!(
            (0..99).filter(|_| pace.wait("a", later).is_none()).count(),
            BURST as usize
        );
        pace.forget("a");
        assert_eq!(pace.wait("a", later), None);
    }
}
