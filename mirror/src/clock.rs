//! The time of day, which tests can move.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// What a clock may be set back by without anybody minding.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

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

    /// Whether what began at `then` and lasts for `length` is over. Also where it began in the future: the clock was
    /// set back, and nothing may last for as long as it was wrong.
    pub fn is_over(&self, then: Timestamp, length: Duration) -> bool {
        let age = self.now().duration_since(then);
        age < -TOLERANCE || Duration::try_from(age).unwrap_or_default() >= length
    }

    /// Moves this clock ahead.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(milliseconds(by), Ordering::Relaxed);
    }

    /// Sets this clock back.
    pub fn set_back(&self, by: Duration) {
        self.ahead_ms.fetch_sub(milliseconds(by), Ordering::Relaxed);
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_over_in_time_and_where_the_clock_is_set_back() {
        let (clock, hour) = (Clock::system(), Duration::from_hours(1));
        let begun = clock.now();
        assert!(!clock.is_over(begun, hour));
        assert!(clock.is_over(begun, Duration::ZERO));
        clock.advance(hour);
        assert!(clock.is_over(begun, hour));
        clock.set_back(2 * hour);
        assert!(clock.is_over(begun, hour));
        assert_eq!(clock.since(begun), Duration::ZERO);
    }

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
