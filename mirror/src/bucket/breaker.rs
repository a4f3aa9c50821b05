//! The circuit breaker of the bucket.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::Error;

/// The first pause after a failure, in which the bucket is skipped; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// A circuit breaker: after a failure requests are skipped for a pause, and then one request tries.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Option<Pause>>);

#[derive(Clone, Copy, Debug)]
struct Pause {
    length: Duration,
    until: Instant,
    /// The pause is over, and a request tries.
    trying: bool,
}

impl Breaker {
    /// Returns `true` if a request may be sent now. After a pause only the first caller gets `true`, until its request
    /// has ended or as much time has passed again.
    fn admit(&self) -> bool {
        let mut pause = self.0.lock();
        let now = Instant::now();
        match &mut *pause {
            None => true,
            Some(open) if open.until > now => false,
            Some(open) => {
                open.until = now + open.length;
                open.trying = true;
                true
            }
        }
    }

    /// Returns an error if no request may be sent now.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.admit() {
            Ok(())
        } else {
            Err(Error::unavailable("it failed shortly before"))
        }
    }

    /// Ends or starts a pause after a request; an object that is missing is an answer.
    pub(super) fn record<T>(&self, result: &Result<T, Error>) {
        match result {
            Ok(_) | Err(Error::NotFound) => self.close(),
            Err(_) => self.open(),
        }
    }

    /// Starts a pause after a failure, twice as long as the last one.
    pub(crate) fn open(&self) {
        let mut pause = self.0.lock();
        let now = Instant::now();
        let length = match *pause {
            None => FIRST_PAUSE,
            Some(last) if last.trying || last.until <= now => (last.length * 2).min(LONGEST_PAUSE),
            // Requests that were sent together fail together, which is one failure.
            Some(_) => return,
        };
        *pause = Some(Pause {
            length,
            until: now + length,
            trying: false,
        });
    }

    /// Ends the pause, after a success.
    pub(crate) fn close(&self) {
        *self.0.lock() = None;
    }

    /// Returns whether the last request succeeded, or none failed yet.
    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Returns the time until the end of the pause.
    pub(crate) fn remaining(&self) -> Duration {
        let pause = *self.0.lock();
        pause.map_or(Duration::ZERO, |pause| {
            pause.until.saturating_duration_since(Instant::now())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_pause(breaker: &Breaker) {
        if let Some(pause) = &mut *breaker.0.lock() {
            pause.until = Instant::now();
        }
    }

    /// After a pause one request tries; the pause doubles with each failure, up to its limit, and ends with a success.
    #[test]
    fn pause_doubles_up_to_its_limit() {
        let breaker = Breaker::default();
        let mut expected = FIRST_PAUSE;
        for _ in 0..10 {
            assert!(breaker.admit());
            breaker.open();
            assert!(!breaker.admit());
            let left = breaker.remaining();
            assert!(left <= expected && left > expected / 2, "{left:?} {expected:?}");
            expected = (expected * 2).min(LONGEST_PAUSE);
            end_pause(&breaker);
        }
        breaker.close();
        assert!(breaker.admit() && breaker.admit());
    }

    /// Requests that fail together are one failure, and only one request tries after the pause.
    #[test]
    fn failures_at_once_are_one_failure() {
        let breaker = Breaker::default();
        for _ in 0..5 {
            breaker.open();
        }
        assert!(breaker.remaining() <= FIRST_PAUSE);
        end_pause(&breaker);
        assert!(breaker.admit() && !breaker.admit());
    }
}
