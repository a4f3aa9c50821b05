//! The validity of a certificate (RFC 5280, 4.1.2.5).

/// The time in which a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

impl Validity {
    /// Returns the time from which a missing renewal is reported: the last sixth of the lifetime, at most 30 days. Issuers
    /// renew at two thirds of the lifetime, and have had a sixth of it to succeed.
    pub fn expiring_from(self) -> i64 {
        let sixth = self.not_after.saturating_sub(self.not_before) / 6;
        self.not_after.saturating_sub(sixth.min(MONTH))
    }
}

const MONTH: i64 = 30 * 24 * 3600;

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(40, 100 => 90; "a sixth before its end")]
    #[test_case(0, 1_000_000_000 => 1_000_000_000 - MONTH; "a month before its end")]
    fn missing_renewal_is_reported_from(not_before: i64, not_after: i64) -> i64 {
        Validity {
            not_before,
            not_after,
        }
        .expiring_from()
    }
}
