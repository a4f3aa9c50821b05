//! Sizes: Kubernetes quantities or percentages.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::overlay::Overlay;

/// The limit for the cache: `50Gi`, `2e9`, `90%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxSize {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the file system, 1 to 100.
    Percent(u8),
}

/// The text is neither a quantity of bytes nor a percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a size: expected bytes as a quantity like 50Gi, or 1% to 100% of the file system")]
pub struct InvalidSize;

/// The suffixes of a quantity that make sense for bytes, and what they multiply by.
const SUFFIXES: [(&str, u64); 13] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
    ("", 1),
];

/// The size of a blob: `16Mi`, `2e9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobSize(pub u64);

impl FromStr for BlobSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        match text.parse()? {
            MaxSize::Bytes(bytes) => Ok(Self(bytes)),
            MaxSize::Percent(_) => Err(InvalidSize),
        }
    }
}

impl FromStr for MaxSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(InvalidSize),
            };
        }
        SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
            .and_then(|(number, factor)| bytes(number, factor))
            .filter(|bytes| *bytes > 0)
            .map(Self::Bytes)
            .ok_or(InvalidSize)
    }
}

/// Returns the product, rounded up as Kubernetes does; `None` if it is too large, or the number is malformed.
fn bytes(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    // f64 would also read "inf", "nan" and other words.
    let plain = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+');
    if !number.starts_with(|c: char| c.is_ascii_digit()) || !number.bytes().all(plain) {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "suffixes are exact as f64")]
    let product = (number.parse::<f64>().ok()? * factor as f64).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "in range: checked right here"
    )]
    (0.0..9e18).contains(&product).then_some(product as u64)
}

impl fmt::Display for MaxSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => {
                let binary = SUFFIXES[..6].iter().rev();
                let (suffix, factor) = binary
                    .copied()
                    .find(|(_, factor)| *bytes > 0 && bytes % factor == 0)
                    .unwrap_or(("", 1));
                write!(f, "{}{suffix}", bytes / factor)
            }
        }
    }
}

impl Overlay for MaxSize {
    const VALUES: &'static str = "a size such as 50Gi, or 1% to 100% of the file system";
}

impl Serialize for MaxSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MaxSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Overlay for BlobSize {
    const VALUES: &'static str = "a size such as 16Mi";
}

impl Serialize for BlobSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&MaxSize::Bytes(self.0))
    }
}

impl<'de> Deserialize<'de> for BlobSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|_| de::Error::custom("not a size: expected bytes as a quantity like 16Mi"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("50Gi" => Ok(MaxSize::Bytes(50 << 30)))]
    #[test_case("1.5Ki" => Ok(MaxSize::Bytes(1536)))]
    #[test_case("0.1Ki" => Ok(MaxSize::Bytes(103)); "rounded up")]
    #[test_case("10G" => Ok(MaxSize::Bytes(10_000_000_000)))]
    #[test_case("2e9" => Ok(MaxSize::Bytes(2_000_000_000)))]
    #[test_case("123" => Ok(MaxSize::Bytes(123)))]
    #[test_case("90%" => Ok(MaxSize::Percent(90)))]
    #[test_case("0%" => Err(InvalidSize))]
    #[test_case("101%" => Err(InvalidSize))]
    #[test_case("0" => Err(InvalidSize))]
    #[test_case("-1Gi" => Err(InvalidSize))]
    #[test_case("100m" => Err(InvalidSize); "thousandths of a byte")]
    #[test_case("inf" => Err(InvalidSize))]
    #[test_case("Gi" => Err(InvalidSize))]
    #[test_case("17Ei" => Err(InvalidSize); "too large")]
    #[test_case("1e300" => Err(InvalidSize))]
    #[test_case("" => Err(InvalidSize))]
    fn texts(text: &str) -> Result<MaxSize, InvalidSize> {
        text.parse()
    }

    proptest! {
        /// A value that is written parses back to the same value.
        #[test]
        fn written_value_parses_back(bytes in 1..u64::MAX) {
            let size = MaxSize::Bytes(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<MaxSize>();
        }
    }
}
