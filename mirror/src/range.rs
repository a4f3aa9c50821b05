//! Byte ranges (RFC 9110, section 14).

use std::num::NonZeroUsize;
use std::ops::Range;

use http::{HeaderMap, header};
use http_range_header::{SyntacticallyCorrectRange, parse_range_header_with_max_ranges};

/// More ranges than this in one request are answered with the whole (RFC 9110, section 14.2 leaves it to us).
const MAX_RANGES: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// The parts of a representation that a request asks for, before its size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// Some ranges, in the order asked.
    Ranges(Vec<SyntacticallyCorrectRange>),
}

/// A request's ranges resolved against a size.
#[derive(Debug, PartialEq, Eq)]
pub enum Resolved {
    /// 200.
    Whole,
    /// 206, or 206 `multipart/byteranges` where there are several; never empty.
    Parts(Vec<Range<u64>>),
    /// 416.
    Unsatisfiable,
}

impl Wanted {
    /// Reads `Range` and `If-Range`. What is malformed, in another unit or excessive counts as not sent.
    pub fn parse(headers: &HeaderMap, etag: impl AsRef<[u8]>) -> Self {
        let mut values = headers.get_all(header::RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Self::Whole;
        };
        // Only a strong comparison will do (section 13.1.5); a date never matches, as we send none.
        if headers
            .get(header::IF_RANGE)
            .is_some_and(|tag| tag.as_bytes() != etag.as_ref())
        {
            return Self::Whole;
        }
        let Ok(text) = value.to_str() else {
            return Self::Whole;
        };
        match parse_range_header_with_max_ranges(text, MAX_RANGES) {
            Ok(parsed) => Self::Ranges(parsed.into_ranges()),
            Err(_) => Self::Whole,
        }
    }

    /// Returns the single requested range of a representation of this size; `None` for the whole, or for several
    /// ranges.
    pub fn single(&self, size: u64) -> Option<Range<u64>> {
        match self.resolve(size) {
            Resolved::Parts(parts) => <[_; 1]>::try_from(parts).ok().map(|[part]| part),
            _ => None,
        }
    }

    /// Returns `true` if a representation of this size has no byte of the requested parts.
    pub(crate) fn is_beyond(&self, size: u64) -> bool {
        self.resolve(size) == Resolved::Unsatisfiable
    }

    /// Holds the ranges against the size; those beyond the end drop out.
    pub fn resolve(&self, size: u64) -> Resolved {
        let Self::Ranges(ranges) = self else {
            return Resolved::Whole;
        };
        // Of nothing there is no part; clients that send a Range with every request want it all the same, and get it
        // from Distribution.
        if size == 0 {
            return Resolved::Whole;
        }
        let parts: Vec<_> = ranges.iter().filter_map(|range| within(range, size)).collect();
        let bytes = parts
            .iter()
            .fold(0, |sum: u64, part| sum.saturating_add(part.end - part.start));
        match parts.len() {
            0 => Resolved::Unsatisfiable,
            // Parts that overlap so much would cost more than the whole (section 14.2).
            2.. if bytes > size => Resolved::Whole,
            _ => Resolved::Parts(parts),
        }
    }
}

fn within(range: &SyntacticallyCorrectRange, size: u64) -> Option<Range<u64>> {
    let resolved = match *range {
        SyntacticallyCorrectRange::FromStart(start) => start..size,
        SyntacticallyCorrectRange::FromLast(length) => size.saturating_sub(length)..size,
        SyntacticallyCorrectRange::Indexed(start, last) => start..size.min(last.saturating_add(1)),
    };
    (resolved.start < resolved.end).then_some(resolved)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is the usual case")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn wanted(range: &str) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, range.parse().unwrap());
        Wanted::parse(&headers, "\"e\"")
    }

    fn parts(of: &[Range<u64>]) -> Resolved {
        Resolved::Parts(of.to_vec())
    }

    #[test_case("bytes=0-9", &[0..10]; "closed")]
    #[test_case("bytes=90-", &[90..100]; "open")]
    #[test_case("bytes=-10", &[90..100]; "suffix")]
    #[test_case("bytes=-1000", &[0..100]; "suffix longer than the whole")]
    #[test_case("bytes=50-1000", &[50..100]; "end beyond the size")]
    #[test_case("bytes=0-0,99-99", &[0..1, 99..100]; "two")]
    #[test_case("bytes=0-0,200-300", &[0..1]; "one of two beyond the size")]
    fn satisfiable(range: &str, expected: &[Range<u64>]) {
        assert_eq!(wanted(range).resolve(100), parts(expected));
    }

    #[test_case("bytes=100-"; "starts at the size")]
    #[test_case("bytes=-0"; "empty suffix")]
    fn unsatisfiable(range: &str) {
        assert_eq!(wanted(range).resolve(100), Resolved::Unsatisfiable);
    }

    #[test_case("bytes=5-1"; "reversed")]
    #[test_case("items=0-1"; "another unit")]
    #[test_case("bytes=a-b"; "not numbers")]
    #[test_case("bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8,9-9,10-10,11-11,12-12,13-13,14-14,15-15,16-16"; "17 ranges")]
    fn ignored(range: &str) {
        assert_eq!(wanted(range).resolve(100), Resolved::Whole);
    }

    /// Any range of empty content is the whole.
    #[test]
    fn range_of_empty_content_is_whole() {
        assert_eq!(wanted("bytes=0-").resolve(0), Resolved::Whole);
    }

    /// Ranges that add up to more than the whole are the whole.
    #[test_case("bytes=0-,0-"; "the whole twice")]
    #[test_case("bytes=0-59,40-99"; "more than the whole")]
    fn oversized_ranges_are_the_whole(range: &str) {
        assert_eq!(wanted(range).resolve(100), Resolved::Whole);
    }

    /// An `If-Range` that differs from the entity tag requests the whole.
    #[test]
    fn differing_if_range_requests_the_whole() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, "bytes=0-1".parse().unwrap());
        headers.insert(header::IF_RANGE, "\"other\"".parse().unwrap());
        assert_eq!(Wanted::parse(&headers, "\"e\""), Wanted::Whole);
        headers.insert(header::IF_RANGE, "\"e\"".parse().unwrap());
        assert_eq!(Wanted::parse(&headers, "\"e\"").resolve(10), parts(&[0..2]));
    }

    proptest! {
        #[test]
        fn every_part_lies_within_the_size(range in "bytes=[0-9,-]{0,40}", size: u64) {
            if let Resolved::Parts(parts) = wanted(&range).resolve(size) {
                prop_assert!(!parts.is_empty());
                for part in parts {
                    prop_assert!(part.start < part.end && part.end <= size);
                }
            }
        }

        #[test]
        fn no_header_makes_the_parser_panic(text in "\\PC*") {
            let mut headers = HeaderMap::new();
            if let Ok(value) = text.parse() {
                headers.insert(header::RANGE, value);
            }
            let _ = Wanted::parse(&headers, "\"e\"").resolve(7);
        }
    }
}
