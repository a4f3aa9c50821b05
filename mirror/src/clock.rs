//! The time of day, which tests can move.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// Tells the time. Clones of one clock move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that is behind the system's.
    pub fn behind(by: Duration) -> Self {
        let clock = Self::default();
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 4);
        clock.ahead_ms.store(-by, Ordering::Relaxed);
        clock
    }

    /// The time now, to the millisecond.
    pub fn now(&self) -> Timestamp {
        let ms = Timestamp::now()
            .as_millisecond()
            .saturating_add(self.ahead_ms.load(Ordering::Relaxed));
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
    }

    /// How long ago `then` was; zero where it lies ahead (clocks jump).
    pub fn since(&self, then: Timestamp) -> Duration {
        Duration::try_from(self.now().duration_since(then)).unwrap_or_default()
    }

    /// Moves this clock ahead of the system's.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(
            i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 4),
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advanced_clock_tells_the_later_time_to_all_its_clones() {
        let clock = Clock::system();
        let (before, other) = (clock.now(), clock.clone());
        clock.advance(Duration::from_hours(1));
        assert!(other.since(before) >= Duration::from_hours(1));
        assert_eq!(Clock::system().since(other.now()), Duration::ZERO);
        let behind = Clock::behind(Duration::from_hours(1));
        assert!(Clock::system().since(behind.now()) >= Duration::from_hours(1));
    }
}
