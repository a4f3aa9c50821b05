//! The queries of lists, pair by pair (WHATWG URL, "application/x-www-form-urlencoded").

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// All but the unreserved characters of RFC 3986, 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Returns the pairs of another name than `name`, byte for byte.
pub(crate) fn without(query: &str, name: &str) -> String {
    let pairs = query.split('&').filter(|pair| !is_named(pair, name));
    pairs.collect::<Vec<_>>().join("&")
}

/// Returns a query with a further pair, whose value is encoded.
pub(crate) fn with(query: &str, name: &str, value: &str) -> String {
    let separator = if query.is_empty() { "" } else { "&" };
    format!(
        "{query}{separator}{name}={}",
        percent_encode(value.as_bytes(), RESERVED)
    )
}

/// Returns the decoded value of the first pair with this name.
pub(crate) fn value(query: &str, name: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
}

/// Returns the value of the first pair with this name that is not empty, as the client encoded it.
pub(crate) fn encoded_value<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let pairs = query.split('&').filter(|pair| is_named(pair, name));
    let mut values = pairs.filter_map(|pair| pair.split_once('=').map(|(_, value)| value));
    values.find(|value| !value.is_empty())
}

/// Returns the pairs of another name than `name`, each encoded again: the result has letters, digits and `-._~%+=&`
/// only, and decodes to the same bytes. A `+` stays as it is, because some servers read it as a space and some do not.
pub(crate) fn encoded_without(query: &str, name: &str) -> String {
    let pairs = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !is_named(pair, name));
    let pairs = pairs.map(|pair| match pair.split_once('=') {
        Some((key, value)) => format!("{}={}", encoded(key), encoded(value)),
        None => encoded(pair),
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// Returns a key or a value, encoded again.
pub(crate) fn encoded(text: &str) -> String {
    let parts = text.split('+').map(|part| {
        let bytes: Vec<u8> = percent_decode_str(part).collect();
        percent_encode(&bytes, RESERVED).to_string()
    });
    parts.collect::<Vec<_>>().join("+")
}

fn is_named(pair: &str, name: &str) -> bool {
    let key = pair.split_once('=').map_or(pair, |(key, _)| key);
    percent_decode_str(key).eq(name.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("ns=docker.io", ""; "alone")]
    #[test_case("n=2&ns=docker.io&last=a%2Fb", "n=2&last=a%2Fb"; "among others")]
    #[test_case("%6Es=docker.io&n%73&ns", ""; "encoded")]
    #[test_case("nsx=1&x=ns", "nsx=1&x=ns"; "another key")]
    fn pairs_of_a_name_are_left_out(query: &str, expected: &str) {
        assert_eq!(without(query, "ns"), expected);
        assert_eq!(encoded_without(query, "ns"), expected);
    }

    #[test_case("x=1&ns=docker.io&ns=quay.io" => Some("docker.io"); "the first one")]
    #[test_case("ns=&ns&n%73=%71uay.io" => Some("%71uay.io"); "an encoded name after empty ones")]
    #[test_case("NS=docker.io&nsx=a&x=ns" => None; "other names")]
    fn value_is_found_by_its_decoded_name(query: &str) -> Option<&str> {
        encoded_value(query, "ns")
    }

    #[test_case("last=b,c&x", "last=b%2Cc&x"; "a comma")]
    #[test_case("last=a%2fb%2B+%C3%28", "last=a%2Fb%2B+%C3%28"; "as encoded before")]
    #[test_case("a=b=c&&=d", "a=b%3Dc&=d"; "signs of equality")]
    #[test_case("a=\">; rel=x,%zz\u{fc}", "a=%22%3E%3B%20rel%3Dx%2C%25zz%C3%BC"; "the syntax of Link")]
    fn pairs_are_encoded_again(query: &str, expected: &str) {
        assert_eq!(encoded_without(query, "ns"), expected);
    }

    proptest! {
        #[test]
        fn encoding_is_stable_and_keeps_the_bytes(query in "[ -~\u{fc}]{0,60}") {
            let once = encoded_without(&query, "ns");
            prop_assert!(once.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%+=&".contains(&byte)));
            prop_assert_eq!(encoded_without(&once, "ns"), once.clone());
            let bytes = |text: &str| percent_decode_str(text).collect::<Vec<_>>();
            if !query.contains("&&") && !query.starts_with('&') && !query.ends_with('&') {
                prop_assert_eq!(bytes(&once), bytes(&without(&query, "ns")));
            }
        }
    }
}
