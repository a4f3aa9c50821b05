//! Transfer codings (RFC 9112, 6.1).

use http::{HeaderMap, HeaderValue, header::TRANSFER_ENCODING};

/// Returns true for a message without a transfer coding, or with a single `chunked`. The HTTP library reads only the
/// last coding of several, and another server of the chain may read a different one.
pub(crate) fn is_supported(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(only), None) => is_chunked(only),
        (Some(_), Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(&[], true; "none")]
    #[test_case(&["chunked"], true; "chunked")]
    #[test_case(&[" Chunked\t"], true; "in another case")]
    #[test_case(&["identity", "chunked"], false; "two lines")]
    #[test_case(&["chunked", "chunked"], false; "twice")]
    #[test_case(&["gzip, chunked"], false; "two in a line")]
    #[test_case(&["chunked,"], false; "an empty one")]
    #[test_case(&["identity"], false)]
    #[test_case(&[""], false; "empty")]
    fn only_a_single_chunked_is_supported(values: &[&str], expected: bool) {
        let values = values
            .iter()
            .map(|value| (TRANSFER_ENCODING, value.parse().unwrap()));
        assert_eq!(is_supported(&values.collect()), expected);
    }
}
