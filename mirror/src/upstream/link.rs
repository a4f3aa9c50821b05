//! The link to the next page of a list (RFC 8288).

use http::{HeaderMap, HeaderValue, header::LINK};

use super::error::Error;
use crate::query;

/// The most bytes of the query of a next page; tokens of known registries have up to 1 KiB.
pub(crate) const MAX_NEXT: usize = 2 * 1024;

/// Returns the query of the next page, encoded again and without two pairs. `ns` names an upstream to clients. `n=0` means
/// no limit to GHCR, which sends it in each link, and no entries to this server (distribution-spec, end-8b). The kept
/// libraries for this header break at a comma inside a URL and at a query without `=`.
///
/// # Errors
/// The query is longer than [`MAX_NEXT`]: without it the list would seem to be whole.
pub(super) fn next_page(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let values = headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let next = values.flat_map(links).find(|(_, parameters)| is_next(parameters));
    let Some((_, query)) = next.and_then(|(target, _)| target.split_once('?')) else {
        return Ok(None);
    };
    let query = query.split('#').next().unwrap_or_default();
    let too_long = || {
        Error::malformed(format!(
            "a link to the next page whose query is longer than {MAX_NEXT} bytes"
        ))
    };
    if query.len() > MAX_NEXT {
        return Err(too_long());
    }
    let query = query::encoded_without(query, "ns");
    let pairs = query.split('&').filter(|pair| *pair != "n=0");
    let query = pairs.collect::<Vec<_>>().join("&");
    match query.len() {
        0 => Ok(None),
        1..=MAX_NEXT => Ok(Some(query)),
        _ => Err(too_long()),
    }
}

/// Returns the query of the next page of a list of which no part may be missing.
///
/// # Errors
/// As [`next_page`], and if the headers name a next page in a way that it can't read.
pub(super) fn required_next_page(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let next = next_page(headers)?;
    let names_next = |value: &HeaderValue| {
        value
            .as_bytes()
            .to_ascii_lowercase()
            .windows(4)
            .any(|part| part == b"next")
    };
    if next.is_none() && headers.get_all(LINK).iter().any(names_next) {
        return Err(Error::malformed(
            "a link to the next page that has no query or can't be parsed",
        ));
    }
    Ok(next)
}

/// Returns the targets of a Link header, each with the text of its parameters.
fn links(mut rest: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::from_fn(move || {
        let (target, after) = rest.split_once('<')?.1.split_once('>')?;
        let end = after.find('<').unwrap_or(after.len());
        let (parameters, next) = after.split_at(end);
        rest = next;
        Some((target, parameters))
    })
}

fn is_next(parameters: &str) -> bool {
    parameters.split([';', ',']).any(|parameter| {
        parameter.split_once('=').is_some_and(|(key, value)| {
            let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
            key.trim().eq_ignore_ascii_case("rel") && relations.any(|r| r.eq_ignore_ascii_case("next"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn next(link: &str) -> Option<String> {
        next_page(&HeaderMap::from_iter([(LINK, link.parse().unwrap())])).unwrap()
    }

    /// The next page is requested with the query of the link.
    #[test_case(r#"</v2/a/tags/list?n=2&last=b>; rel="next""# => Some("n=2&last=b".to_owned()))]
    #[test_case("<https://r.example/v2/a/tags/list?last=b,c&x>; rel=next" => Some("last=b%2Cc&x".to_owned()); "absolute, with a comma")]
    #[test_case(r#"</p?a=1>; rel="prev", </p?a=2>; title="t"; rel="last next""# => Some("a=2".to_owned()); "the second")]
    #[test_case("</v2/a/tags/list?last=b&n=0>; rel=\"next\"" => Some("last=b".to_owned()); "of GHCR")]
    #[test_case(r#"</p?a=1>; rel="prev""# => None; "none")]
    #[test_case(r#"</p>; rel="next""# => None; "no query")]
    #[test_case("nonsense" => None; "nonsense")]
    fn next_page_is_requested_by(link: &str) -> Option<String> {
        next(link)
    }

    /// A part of a list would seem to be whole.
    #[test_case(br#"</p>; rel="next""#; "no query")]
    #[test_case(b"</p?last=\xe4>; rel=next"; "not ASCII")]
    #[test_case(b"/p?last=a; rel=NEXT"; "no target")]
    #[test_case(br#"</p?ns=a.example>; rel="next""#; "only ns")]
    fn unreadable_next_page_is_an_error(link: &[u8]) {
        let link = HeaderValue::from_bytes(link).unwrap();
        assert!(required_next_page(&HeaderMap::from_iter([(LINK, link)])).is_err());
        assert_eq!(required_next_page(&HeaderMap::new()).unwrap(), None);
    }

    /// Clients would ask another upstream, or read a second link.
    #[test_case(r#"</p?ns=evil.example&last=a&%6es=evil.example>; rel="next""#, "last=a"; "ns")]
    #[test_case(r#"</p?last=a"; rel="next", x>; rel="next", </evil?b=1>; rel="next""#, "last=a%22%3B%20rel%3D%22next%22%2C%20x"; "another link")]
    #[test_case(r#"</p?last=a%3E%0d%0a>; rel="next""#, "last=a%3E%0D%0A"; "encoded line breaks")]
    fn query_of_a_link_is_encoded_again(link: &str, expected: &str) {
        assert_eq!(next(link).as_deref(), Some(expected));
    }

    #[test]
    fn long_query_of_a_link_is_an_error() {
        for (text, length) in [("x", MAX_NEXT), ("%", MAX_NEXT / 2)] {
            let link = format!("</p?a={}>; rel=next", text.repeat(length));
            let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
            assert!(next_page(&headers).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_link_makes_the_parser_panic(link in "[ -~]{0,100}") {
            let _ = next(&link);
        }
    }
}
