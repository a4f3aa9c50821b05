//! The media types of manifests that upstreams are asked for (RFC 9110, 12.5.1).

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};

use crate::digest::{Algorithm, Digest};
use crate::manifest::KNOWN_TYPES;

/// The most types of a client that are passed on, and the most characters of one.
const MAX_NAMED: usize = 16;
const MAX_TYPE: usize = 128;
/// Types that are not served, so upstream must not be led to prefer them.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// The types that a client names and every request does not have anyway. Strict registries have no other manifest for
/// a client that does not name its type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Accept(Vec<String>);

impl Accept {
    /// Reads a client's `Accept`. Only types in JSON pass: a client that takes pages must not be the reason that
    /// upstream sends one.
    pub fn of_client(headers: &HeaderMap) -> Self {
        let mut accept = Self::default();
        let values = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')).take(64) {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            if !parts.any(is_refusal) {
                accept.add(media_type);
            }
        }
        accept
    }

    /// Returns the types with one more: that of the copy which upstream is asked about.
    pub(crate) fn with(&self, media_type: &str) -> Self {
        let mut accept = self.clone();
        accept.add(media_type);
        accept
    }

    /// Returns a short word for the types; empty for nearly all clients.
    pub(crate) fn key(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let types = self.0.join(",");
        Digest::compute(Algorithm::Sha256, types.as_bytes())
            .hex()
            .to_owned()
    }

    fn add(&mut self, media_type: &str) {
        let media_type = media_type.to_ascii_lowercase();
        let is_new = !KNOWN_TYPES.contains(&media_type.as_str()) && !self.0.contains(&media_type);
        if is_new && is_manifest_type(&media_type) && self.0.len() < MAX_NAMED {
            self.0.push(media_type);
        }
    }

    /// Returns the header: the known types, the client's, and any other. The known types come first and in one order, so
    /// that an upstream with two forms of a manifest does not choose the one under a tag by the first client.
    pub(crate) fn header(&self) -> HeaderValue {
        let named = self.0.iter().map(String::as_str);
        let types: Vec<_> = KNOWN_TYPES.into_iter().chain(named).chain(["*/*"]).collect();
        // Tokens of RFC 9110 only.
        HeaderValue::try_from(types.join(", ")).unwrap_or(HeaderValue::from_static("*/*"))
    }
}

/// Returns true for `q=0`, `q=0.0` and the like: such a type is not wanted.
fn is_refusal(parameter: &str) -> bool {
    parameter
        .split_once('=')
        .is_some_and(|(name, value)| name.trim().eq_ignore_ascii_case("q") && value.trim().parse() == Ok(0.0))
}

fn is_manifest_type(media_type: &str) -> bool {
    let is_token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
    let subtype = media_type.strip_prefix("application/").unwrap_or_default();
    media_type.len() <= MAX_TYPE
        // Not plain JSON: a client that takes it, as Docker does, names no kind of manifest by that.
        && subtype.ends_with("+json")
        && subtype.bytes().all(is_token)
        && !subtype.contains('*')
        && !media_type.starts_with(SCHEMA_1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    const ORAS: &str = "application/vnd.oras.artifact.manifest.v1+json";

    fn accept(values: &[&str]) -> Accept {
        let values = values.iter().map(|value| (ACCEPT, value.parse().unwrap()));
        Accept::of_client(&values.collect())
    }

    #[test_case(&[], ""; "none")]
    #[test_case(&[ORAS], ORAS; "one")]
    #[test_case(&["application/json"], ""; "plain json")]
    #[test_case(&["*/*, application/*, application/json;q=0, text/html"], ""; "nothing that may be a manifest")]
    #[test_case(&["application/vnd.oci.image.index.v1+json"], ""; "known")]
    #[test_case(&["application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.docker.distribution.manifest.v1+json"], ""; "schema 1")]
    #[test_case(&["Application/Vnd.ORAS.Artifact.Manifest.v1+JSON;q=0.5", ORAS], ORAS; "twice")]
    #[test_case(&["application/x y+json, application/é+json, a/b/c+json"], ""; "malformed")]
    #[test_case(&["application/b+json,,application/a+json"], "application/b+json,application/a+json"; "in the client's order")]
    fn named(values: &[&str], expected: &str) {
        assert_eq!(accept(values).0.join(","), expected);
    }

    /// The Accept header lists the known types, then those that the client named, then any.
    #[test]
    fn accept_lists_known_then_named_then_any() {
        let header = accept(&[ORAS]).header();
        let types: Vec<_> = header.to_str().unwrap().split(", ").collect();
        assert_eq!(types[..KNOWN_TYPES.len()], KNOWN_TYPES);
        assert_eq!(types[KNOWN_TYPES.len()..], [ORAS, "*/*"]);
    }

    proptest! {
        #[test]
        fn no_accept_makes_the_header_long(value in "[ -~]{0,4000}", many in "(application/[a-z]{1,9}[+]json,){0,100}") {
            let accept = accept(&[&value, &many]);
            prop_assert!(accept.key().len() <= 64);
            let header = accept.header();
            prop_assert!(header.len() <= (MAX_TYPE + 2) * (MAX_NAMED + 6) && header != "*/*");
        }
    }
}
