//! How long a certificate is good.

/// From when to when, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its first second.
    pub starts: i64,
    /// When it is over.
    pub ends: i64,
}

impl Life {
    /// From when on somebody should be told: what renews certificates does so at two thirds of their life, and has had a
    /// sixth of it to do so. Of one that is good for years, 30 days before.
    pub fn late(self) -> i64 {
        let sixth = self.ends.saturating_sub(self.starts) / 6;
        self.ends.saturating_sub(sixth.min(MONTH))
    }
}

const MONTH: i64 = 30 * 24 * 3600;

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(40, 100 => 90; "a sixth before its end")]
    #[test_case(0, 1_000_000_000 => 1_000_000_000 - MONTH; "a month before its end")]
    fn somebody_is_told(starts: i64, ends: i64) -> i64 {
        Life { starts, ends }.late()
    }
}
