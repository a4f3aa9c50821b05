//! Durations in Go's syntax: `168h`, `1h30m`, `250ms`; a bare number counts nanoseconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::{Designator, Spacing, SpanParser, SpanPrinter};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::overlay::Overlay;

static PARSER: SpanParser = SpanParser::new();
static PRINTER: SpanPrinter = SpanPrinter::new()
    .spacing(Spacing::None)
    .designator(Designator::Compact);

/// A duration as Distribution's configuration writes it; may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(SignedDuration);

/// The text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration: expected a form like 168h, 1h30m or 250ms")]
pub struct InvalidDuration;

impl GoDuration {
    /// Returns the duration if it is above zero.
    pub fn positive(self) -> Option<Duration> {
        self.0.is_positive().then(|| self.0.unsigned_abs())
    }
}

impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> Self {
        Self(duration.try_into().unwrap_or(SignedDuration::MAX))
    }
}

impl FromStr for GoDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        if matches!(text, "0" | "+0" | "-0") {
            return Ok(Self::default());
        }
        PARSER.parse_duration(text).map(Self).map_err(|_| InvalidDuration)
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&PRINTER.duration_to_string(&self.0))
    }
}

impl Overlay for GoDuration {
    const VALUES: &'static str = "a duration such as 168h or 1h30m, or a number of nanoseconds";
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNanoseconds)
    }
}

struct TextOrNanoseconds;

impl Visitor<'_> for TextOrNanoseconds {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like 168h, or a number of nanoseconds")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<GoDuration, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, nanoseconds: i64) -> Result<GoDuration, E> {
        Ok(GoDuration(SignedDuration::from_nanos(nanoseconds)))
    }

    fn visit_u64<E: Error>(self, nanoseconds: u64) -> Result<GoDuration, E> {
        let nanoseconds = i64::try_from(nanoseconds).map_err(E::custom)?;
        self.visit_i64(nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("168h" => 604_800_000_000_000)]
    #[test_case("1h30m" => 5_400_000_000_000)]
    #[test_case("1.5h" => 5_400_000_000_000)]
    #[test_case("300ms" => 300_000_000)]
    #[test_case("10us" => 10_000)]
    #[test_case("10µs" => 10_000; "micro sign")]
    #[test_case("-1s" => -1_000_000_000)]
    #[test_case("0" => 0)]
    #[test_case("0s" => 0)]
    #[test_case("300" => 300; "a number counts nanoseconds")]
    #[test_case("-5" => -5)]
    fn yaml_gives_nanoseconds(yaml: &str) -> i128 {
        serde_saphyr::from_str::<GoDuration>(yaml).unwrap().0.as_nanos()
    }

    #[test_case("soon")]
    #[test_case("1 lightyear")]
    #[test_case("'12'"; "a text without a unit")]
    #[test_case("''")]
    #[test_case("[1h]")]
    #[test_case("99999999999999999999h")]
    fn other_yaml_is_refused(yaml: &str) {
        assert!(serde_saphyr::from_str::<GoDuration>(yaml).is_err());
    }

    #[test_case("168h" => "168h")]
    #[test_case("90s" => "1m30s")]
    #[test_case("0" => "0s")]
    #[test_case("1.5s" => "1s500ms")]
    fn is_written_in_go_syntax(text: &str) -> String {
        text.parse::<GoDuration>().unwrap().to_string()
    }

    proptest! {
        /// A value that is written parses back to the same value.
        #[test]
        fn written_value_parses_back(nanoseconds: i64) {
            let duration = GoDuration(SignedDuration::from_nanos(nanoseconds));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<GoDuration>();
        }
    }
}
