//! The time of day, which tests can move.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

/// The tolerated backward step: 2 s.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);
/// The largest change between two readings that counts as an adjustment by a time server, in ms. A larger one means
/// that an administrator set the clock.
const MAX_ADJUSTMENT_MS: i64 = 60_000;
/// The time in ms for which a clock must run undisturbed after it was set, before irreversible steps depend on it.
const SETTLE_MS: i64 = 3_600_000;

/// Counts up whatever the system's clock is set to.
static STEADY: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Tells the time. Clones of one clock move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
    passed_ms: Arc<AtomicI64>,
    trusted: Arc<Mutex<Option<Trusted>>>,
}

/// By how many ms the time of day is ahead of the steady count.
#[derive(Clone, Copy, Debug)]
struct Trusted {
    /// The trusted offset.
    offset: i64,
    /// The time of the last reading.
    seen: i64,
    /// The steady time since which the clock was not set.
    since: i64,
}

impl Clock {
    /// Returns a clock that follows the system.
    pub fn system() -> Self {
        Self::default()
    }

    /// Returns a clock that is behind the system.
    pub fn behind(by: Duration) -> Self {
        let clock = Self::default();
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 4);
        clock.ahead_ms.store(-by, Ordering::Relaxed);
        clock
    }

    /// Returns the current time in milliseconds.
    pub fn now(&self) -> Timestamp {
        let ms = Timestamp::now()
            .as_millisecond()
            .saturating_add(self.ahead_ms.load(Ordering::Relaxed));
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
    }

    /// Returns a time that is safe for irreversible decisions: after the clock was set forward, the previous time
    /// continues for an hour; a clock that was set back counts at once. Call it often, because each call observes the
    /// clock.
    pub fn settled(&self) -> Timestamp {
        let (trusted, steady) = self.observe();
        Timestamp::from_millisecond(steady.saturating_add(trusted.offset)).unwrap_or(Timestamp::MAX)
    }

    /// Returns `true` if the clock was not set within the last hour.
    pub fn is_settled(&self) -> bool {
        let (trusted, steady) = self.observe();
        steady - trusted.since >= SETTLE_MS
    }

    fn observe(&self) -> (Trusted, i64) {
        let steady = i64::try_from(STEADY.elapsed().as_millis()).unwrap_or(i64::MAX / 4);
        let steady = steady.saturating_add(self.passed_ms.load(Ordering::Relaxed));
        let offset = self.now().as_millisecond().saturating_sub(steady);
        let mut trusted = self.trusted.lock();
        let trusted = trusted.get_or_insert(Trusted {
            offset,
            seen: offset,
            since: steady,
        });
        if offset.abs_diff(trusted.seen) > MAX_ADJUSTMENT_MS.unsigned_abs() {
            let seconds = offset.saturating_sub(trusted.seen) / 1000;
            tracing::warn!(
                seconds,
                "the clock was set; content expires by its time in an hour, unless the clock is set again"
            );
            trusted.since = steady;
        }
        trusted.seen = offset;
        let near = offset.abs_diff(trusted.offset) <= MAX_ADJUSTMENT_MS.unsigned_abs();
        if near || steady - trusted.since >= SETTLE_MS {
            trusted.offset = offset;
        }
        (*trusted, steady)
    }

    /// Returns the time since `then`; zero if `then` lies in the future, because clocks jump.
    pub fn since(&self, then: Timestamp) -> Duration {
        Duration::try_from(self.now().duration_since(then)).unwrap_or_default()
    }

    /// Returns `true` if a period of `length` that began at `then` is over. A period that began in the future is over
    /// too: the clock was set back, and the period must not last for as long as the clock was wrong.
    pub fn is_over(&self, then: Timestamp, length: Duration) -> bool {
        let age = self.now().duration_since(then);
        age < -TOLERANCE || Duration::try_from(age).unwrap_or_default() >= length
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.passed_ms.fetch_add(milliseconds(by), Ordering::Relaxed);
        self.set_ahead(by);
    }

    /// Sets this clock ahead, while no time passes.
    pub fn set_ahead(&self, by: Duration) {
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

    /// A duration is over in time, and at once if the clock is set back.
    #[test]
    fn duration_ends_in_time_or_on_clock_reset() {
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
    fn clock_set_ahead_is_trusted_after_hour_set_back_at_once() {
        let (clock, year, hour) = (
            Clock::system(),
            Duration::from_hours(8_760),
            Duration::from_hours(1),
        );
        let ahead = |of: &Clock| of.settled().duration_since(Timestamp::now()).as_hours();
        assert_eq!(ahead(&clock), 0);
        clock.set_ahead(year);
        assert_eq!(ahead(&clock), 0);
        clock.advance(hour / 2);
        assert!(clock.settled() < clock.now() - year / 2);
        clock.set_back(year);
        assert!(clock.since(clock.settled()) < TOLERANCE.unsigned_abs());
        assert!(!clock.is_settled());
        clock.advance(hour);
        assert!(clock.is_settled());
        clock.set_ahead(year);
        assert!(clock.settled() < clock.now() - year / 2);
        clock.advance(hour);
        assert!(clock.since(clock.settled()) < TOLERANCE.unsigned_abs());
    }

    /// A clock that is adjusted by seconds, or that advances, is trusted.
    #[test]
    fn nudged_clock_is_trusted() {
        let clock = Clock::system();
        clock.settled();
        for _ in 0..100 {
            clock.set_ahead(Duration::from_secs(50));
            clock.advance(Duration::from_hours(100));
            assert!(clock.since(clock.settled()) < TOLERANCE.unsigned_abs());
        }
        assert!(clock.is_settled());
    }

    /// An advanced clock gives the later time to all its clones.
    #[test]
    fn advanced_clock_advances_its_clones() {
        let clock = Clock::system();
        let (before, other) = (clock.now(), clock.clone());
        clock.advance(Duration::from_hours(1));
        assert!(other.since(before) >= Duration::from_hours(1));
        assert_eq!(Clock::system().since(other.now()), Duration::ZERO);
        let behind = Clock::behind(Duration::from_hours(1));
        assert!(Clock::system().since(behind.now()) >= Duration::from_hours(1));
    }
}
