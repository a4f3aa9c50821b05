//! Answers between peers: the text that a member signs, and the errors of upstreams that it passes on.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AGE, CONTENT_LENGTH, CONTENT_TYPE, LINK, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::upstream::Error;

/// The signature of an answer, in hexadecimal.
pub(crate) const ANSWER_SIGNATURE: HeaderName = HeaderName::from_static("mirror-signature");
/// The error of the upstream that an answer passes on: JSON in base64.
pub(crate) const PEER_ERROR: HeaderName = HeaderName::from_static("mirror-error");
/// The headers that a signature covers.
const SIGNED: [HeaderName; 6] = [
    HeaderName::from_static("docker-content-digest"),
    CONTENT_TYPE,
    AGE,
    LINK,
    RETRY_AFTER,
    PEER_ERROR,
];

/// Returns the text that a member signs: status, headers and body of an answer. The length counts for HEAD alone: the
/// body itself is signed otherwise.
pub(crate) fn answer_text(method: &Method, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {}\n", status.as_u16()).into_bytes();
    let length = (*method == Method::HEAD).then_some(CONTENT_LENGTH);
    for name in SIGNED.iter().chain(&length) {
        for value in headers.get_all(name) {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
    }
    text.push(b'\n');
    text.extend_from_slice(body);
    text
}

/// Returns the header for an error that the owner's answer passes on: the content is not there, or the registry refuses or
/// limits. `None` for any other error, after which a member asks the upstream itself.
pub(crate) fn encode_error(error: &Error) -> Option<HeaderValue> {
    if !is_passed_on(error) {
        return None;
    }
    let json = serde_json::to_vec(error).ok()?;
    HeaderValue::try_from(STANDARD.encode(json)).ok()
}

/// Returns the error of a header.
pub(super) fn decode_error(headers: &HeaderMap) -> Option<Error> {
    let json = STANDARD.decode(headers.get(PEER_ERROR)?.as_bytes()).ok()?;
    serde_json::from_slice(&json).ok().filter(is_passed_on)
}

fn is_passed_on(error: &Error) -> bool {
    matches!(
        error,
        Error::NotFound { .. } | Error::Denied { .. } | Error::RateLimited { .. }
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn headers(value: HeaderValue) -> HeaderMap {
        HeaderMap::from_iter([(PEER_ERROR, value)])
    }

    /// A passed error arrives as it was, whatever its words.
    #[test]
    fn passed_error_arrives_unchanged() {
        let denied = Error::Denied {
            status: 403,
            message: "nein, \u{1f512}\r\nX: y".into(),
            withheld: true,
            lasting: false,
        };
        let retry_after = Duration::from_millis(1500);
        let host = Some("cdn.example".to_owned());
        for error in [denied, Error::RateLimited { retry_after, host }] {
            assert_eq!(decode_error(&headers(encode_error(&error).unwrap())), Some(error));
        }
        let what = "down".to_owned();
        assert_eq!(encode_error(&Error::Unavailable { what }), None);
    }

    proptest! {
        #[test]
        fn any_error_header_is_read_without_panic(text in "[ -~]{0,80}") {
            if let Ok(value) = HeaderValue::try_from(text) {
                let _ = decode_error(&headers(value));
            }
        }
    }
}
