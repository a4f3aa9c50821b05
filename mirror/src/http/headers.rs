//! The headers that all responses with content have: the digest as name and validator (RFC 9110, 8.8 and 13).

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;

use super::error::RegistryError;
use crate::digest::Digest;
use crate::secret::Secret;

/// The capacity for the headers of a response with content, so that the map never grows.
const CAPACITY: usize = 12;
/// The `Cache-Control` of content that a client requests by digest: it never changes, so caches may keep it for a year.
pub(super) const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Removes the body of the response to HEAD, and announces its length: hyper does so for HTTP/1.1 only (RFC 9113, 8.1.1).
pub(super) fn without_body(method: &Method, mut response: Response) -> Response {
    if *method != Method::HEAD || response.body().is_end_stream() {
        return response;
    }
    let body = std::mem::take(response.body_mut());
    if let Some(length) = body.size_hint().exact() {
        let length = HeaderValue::from(length);
        response
            .headers_mut()
            .entry(header::CONTENT_LENGTH)
            .or_insert(length);
    }
    response
}

/// Returns the `ETag` of content: its digest in quotes.
pub(super) fn etag(digest: &Digest) -> Bytes {
    ["\"", digest.as_str(), "\""].concat().into()
}

/// Returns an empty response with the digest and validator of content: 304 if the client has it already, else 200.
pub(super) fn response(headers: &HeaderMap, etag: &Bytes) -> Response {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = HeaderMap::with_capacity(CAPACITY);
    if is_known(headers, etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let own = response.headers_mut();
    // Two slices of one text: the digest is the part inside the quotes.
    let digest = etag.slice(1..etag.len() - 1);
    for (name, text) in [(CONTENT_DIGEST, digest), (header::ETAG, etag.clone())] {
        if let Ok(value) = HeaderValue::from_maybe_shared(text) {
            own.insert(name, value);
        }
    }
    response
}

/// Returns an error if `If-Match` names no validator of the response (RFC 9110, 13.1.1): `*` or this `ETag`, compared
/// strongly. `If-Unmodified-Since` is ignored, as no response has a `Last-Modified`.
pub(super) fn check_if_match(headers: &HeaderMap, etag: Option<&[u8]>) -> Result<(), RegistryError> {
    if !headers.contains_key(header::IF_MATCH) {
        return Ok(());
    }
    let values = headers
        .get_all(header::IF_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let is_match = values
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || Some(tag.as_bytes()) == etag);
    is_match
        .then_some(())
        .ok_or_else(RegistryError::precondition_failed)
}

/// Returns a redirect to a signed URL of content, which no cache may keep and nothing prints; `None` if a header cannot
/// carry the URL.
pub(super) fn redirect(digest: &Digest, url: &Secret) -> Option<Response> {
    let mut location = HeaderValue::from_str(url.expose()).ok()?;
    location.set_sensitive(true);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let own = response.headers_mut();
    own.insert(header::LOCATION, location);
    own.insert(CONTENT_DIGEST, HeaderValue::from_str(digest.as_str()).ok()?);
    own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    own.insert(header::CONTENT_LENGTH, 0.into());
    Some(response)
}

/// Returns `true` if `If-None-Match` matches: a list, which may hold weak validators, or `*`.
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

    /// The signed URL of a redirect is in no debug output.
    #[test]
    fn signed_url_is_never_printed() {
        let digest = Digest::compute(crate::digest::Algorithm::Sha256, b"");
        let url = Secret::new("https://a/b?X-Amz-Signature=hunter2");
        let response = redirect(&digest, &url).unwrap();
        assert_eq!(response.headers()[header::LOCATION], url.expose());
        assert!(!format!("{response:?}").contains("hunter2"));
    }

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

    #[test_case("\"sha256:1\"" => true)]
    #[test_case("\"x\" , \"sha256:1\"" => true; "in a list")]
    #[test_case("*" => true; "anything")]
    #[test_case("W/\"sha256:1\"" => false; "weak")]
    #[test_case("\"x\"" => false)]
    #[test_case("sha256:1" => false; "without quotes")]
    #[test_case("" => false; "empty")]
    fn if_match_is_compared_strongly(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, value.parse().unwrap());
        check_if_match(&headers, Some(b"\"sha256:1\"")).is_ok()
    }
}
