//! The circuit breaker of a mirror on one node.

/// The number of failed probes in a row after which nodes bypass the mirror.
const MAX_FAILURES: u32 = 2;
/// The number of successful probes in a row after which nodes use the mirror again.
const MIN_SUCCESSES: u32 = 3;

/// A circuit breaker: closed while the node pulls through the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CircuitBreaker {
    /// The mirror never answered this node.
    New,
    /// The node uses the mirror, and this number of probes in a row failed.
    Closed(u32),
    /// The node bypasses the mirror, and this number of probes in a row succeeded.
    Open(u32),
}

impl CircuitBreaker {
    /// Returns the breaker of a mirror whose file is on the node already, from a previous run of the agent.
    pub(super) fn closed() -> Self {
        Self::Closed(0)
    }

    pub(super) fn is_closed(self) -> bool {
        matches!(self, Self::Closed(_))
    }

    /// Returns whether the node uses the mirror although the last probe failed.
    pub(super) fn is_failing(self) -> bool {
        matches!(self, Self::Closed(failures) if failures > 0)
    }

    /// Updates the state with the result of a probe.
    pub(super) fn record(&mut self, has_answered: bool) {
        *self = match (*self, has_answered) {
            (Self::Open(successes), true) if successes + 1 < MIN_SUCCESSES => Self::Open(successes + 1),
            (_, true) => Self::Closed(0),
            (Self::New, false) => Self::New,
            (Self::Closed(failures), false) if failures + 1 < MAX_FAILURES => Self::Closed(failures + 1),
            (Self::Closed(_) | Self::Open(_), false) => Self::Open(0),
        };
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(CircuitBreaker::New, "" => false; "never probed")]
    #[test_case(CircuitBreaker::New, "0000" => false; "never answered")]
    #[test_case(CircuitBreaker::New, "01" => true; "first answer")]
    #[test_case(CircuitBreaker::Closed(0), "0" => true; "one failure")]
    #[test_case(CircuitBreaker::Closed(0), "010" => true; "failures apart")]
    #[test_case(CircuitBreaker::Closed(0), "00" => false; "two failures")]
    #[test_case(CircuitBreaker::Closed(0), "0011" => false; "two answers")]
    #[test_case(CircuitBreaker::Closed(0), "0011011" => false; "answers apart")]
    #[test_case(CircuitBreaker::Closed(0), "00111" => true; "three answers")]
    fn breaker_closes_and_opens(mut breaker: CircuitBreaker, probes: &str) -> bool {
        probes.chars().for_each(|probe| breaker.record(probe == '1'));
        breaker.is_closed()
    }
}
