//! Exponential back-off with jitter.

use std::time::Duration;

/// The limits of an exponential back-off: each delay is twice the one before.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first delay.
    pub first: Duration,
    /// The longest delay.
    pub longest: Duration,
}

impl Backoff {
    /// Returns the delay after a number of failures in a row; zero after none.
    pub fn delay(self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 2_u32.saturating_pow(doublings);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// Returns a duration that is at most a fifth shorter or longer, so that simultaneous retries spread out.
pub fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_up_to_the_longest() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_mins(1));
        let backoff = Backoff { first, longest };
        let delays = [0, 1, 2, 3, 7, u32::MAX].map(|failures| backoff.delay(failures).as_secs());
        assert_eq!(delays, [0, 1, 2, 4, 60, 60]);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for _ in 0..100 {
            let duration = jittered(Duration::from_secs(100));
            assert!(duration >= Duration::from_secs(80) && duration <= Duration::from_mins(2));
        }
    }
}
