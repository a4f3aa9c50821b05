//! What the answers with content have in common: its digest as name and validator (RFC 9110, sections 8.8 and 13).

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::digest::Digest;

/// Room for all that an answer with content has, so that the map never grows.
const HEADERS: usize = 12;
/// `Cache-Control` of content that is asked for by its digest: it never changes, so it may be kept for a year.
pub(super) const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The content's `ETag`: its digest in quotes.
pub(super) fn etag(digest: &Digest) -> Bytes {
    ["\"", digest.as_str(), "\""].concat().into()
}

/// An empty answer with the content's names: 304 where the client has it already, else 200.
pub(super) fn response(headers: &HeaderMap, etag: &Bytes) -> Response {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = HeaderMap::with_capacity(HEADERS);
    if is_known(headers, etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let own = response.headers_mut();
    // Two views of one text: the digest is what stands in the quotes.
    let digest = etag.slice(1..etag.len() - 1);
    for (name, text) in [(CONTENT_DIGEST, digest), (header::ETAG, etag.clone())] {
        if let Ok(value) = HeaderValue::from_maybe_shared(text) {
            own.insert(name, value);
        }
    }
    response
}

/// `If-None-Match`: a list, of weak validators too, or `*`.
fn is_known(headers: &HeaderMap, etag: &[u8]) -> bool {
    let values = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("\"sha256:1\"" => true)]
    #[test_case("W/\"sha256:1\"" => true; "weak")]
    #[test_case("\"x\", \"sha256:1\"" => true; "in a list")]
    #[test_case("*" => true; "anything")]
    #[test_case("\"x\"" => false)]
    #[test_case("sha256:1" => false; "without quotes")]
    fn known(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, value.parse().unwrap());
        is_known(&headers, b"\"sha256:1\"")
    }
}
