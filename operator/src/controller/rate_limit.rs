//! A rate limit on the reconciles of a mirror: a user or a program that changes its objects without a pause does not keep the
//! operator and the API server busy.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The number of reconciles without a delay, above what the creation of a mirror takes.
const BURST: u32 = 40;
/// The interval between reconciles after the burst.
const INTERVAL: Duration = Duration::from_millis(250);

/// A rate limiter (GCRA) for each mirror, by its UID. Holds the theoretical arrival time of the next reconcile.
#[derive(Default)]
pub(super) struct ReconcileRateLimiter(Mutex<HashMap<String, Instant>>);

impl ReconcileRateLimiter {
    /// Admits a reconcile, or returns the delay after which it is admitted.
    pub(super) fn admit(&self, mirror: &str, now: Instant) -> Result<(), Duration> {
        let mut arrivals = self.0.lock();
        let next = arrivals.get(mirror).copied().unwrap_or(now).max(now) + INTERVAL;
        let ahead = next.duration_since(now);
        if ahead > INTERVAL * BURST {
            return Err(ahead.saturating_sub(INTERVAL * BURST));
        }
        arrivals.insert(mirror.to_owned(), next);
        Ok(())
    }

    /// Forgets a mirror.
    pub(super) fn forget(&self, mirror: &str) {
        self.0.lock().remove(mirror);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_admitted_then_one_each_interval() {
        let (limiter, mut now) = (ReconcileRateLimiter::default(), Instant::now());
        assert!((0..BURST).all(|_| limiter.admit("a", now).is_ok()));
        assert_eq!(limiter.admit("a", now), Err(INTERVAL));
        assert_eq!(limiter.admit("b", now), Ok(()), "limits are per mirror");
        now += INTERVAL;
        assert_eq!(limiter.admit("a", now), Ok(()));
        assert_eq!(limiter.admit("a", now), Err(INTERVAL));
        now += INTERVAL * 3;
        assert_eq!((0..9).filter(|_| limiter.admit("a", now).is_ok()).count(), 3);
    }

    #[test]
    fn idle_or_forgotten_mirror_has_a_full_burst() {
        let (limiter, now) = (ReconcileRateLimiter::default(), Instant::now());
        while limiter.admit("a", now).is_ok() {}
        let later = now + INTERVAL * BURST * 3;
        let admitted = (0..99).filter(|_| limiter.admit("a", later).is_ok()).count();
        assert_eq!(admitted, BURST as usize);
        limiter.forget("a");
        assert_eq!(limiter.admit("a", later), Ok(()));
    }
}
