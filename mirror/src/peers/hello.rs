//! `GET /peer/v1/hello`: a member says what it is.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

/// The path of the hello.
pub(crate) const HELLO_PATH: &str = "/peer/v1/hello";
/// The version of the protocol between peers.
pub(super) const PROTOCOL: u32 = 1;

/// The hello of the sender, in the header of its request for that of another member.
pub(super) const SENDER: HeaderName = HeaderName::from_static("mirror-hello");

/// The answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The random id of the member.
    pub(super) id: String,
    /// The version of the program.
    pub(super) version: String,
    /// The version of the protocol.
    pub(super) protocol: u32,
    /// The phase of its life.
    pub(super) state: HelloState,
    /// A hash of its upstreams.
    pub(super) upstreams: String,
}

/// The phase of a member's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum HelloState {
    /// It answers no client yet.
    Starting,
    /// It serves clients.
    Serving,
    /// It ends once its requests have ended.
    Draining,
}

impl Hello {
    /// Returns the hello of this program.
    pub(super) fn new(id: String, state: HelloState, upstreams: String) -> Self {
        Self {
            id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            state,
            upstreams,
        }
    }

    /// Returns the body of the answer.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the header of a request for the hello of another member.
    pub(super) fn to_headers(&self) -> HeaderMap {
        let value = HeaderValue::try_from(self.to_json()).ok();
        value.into_iter().map(|value| (SENDER, value)).collect()
    }

    /// Parses the body of an answer; ids and hashes that are longer than this program makes them are refused.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let hello: Self = serde_json::from_slice(body).ok()?;
        let is_plain = |text: &str| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric());
        (is_plain(&hello.id) && !hello.id.is_empty() && is_plain(&hello.upstreams)).then_some(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hello has the field names of the protocol.
    #[test]
    fn hello_has_protocol_field_names() {
        let hello = Hello::new("ab".into(), HelloState::Draining, "cd".into());
        let json: serde_json::Value = serde_json::from_str(&hello.to_json()).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        let expected = serde_json::json!({
            "id": "ab", "version": version, "protocol": 1, "state": "draining", "upstreams": "cd",
        });
        assert_eq!(json, expected);
        assert_eq!(Hello::parse(hello.to_json().as_bytes()), Some(hello));
    }

    #[test]
    fn malformed_hello_is_refused() {
        let long = format!(
            "{{\"id\":\"{}\",\"version\":\"1\",\"protocol\":1,\"state\":\"serving\",\"upstreams\":\"\"}}",
            "a".repeat(65)
        );
        for text in ["", "{}", "[]", "{\"id\":\"\"}", &long] {
            assert_eq!(Hello::parse(text.as_bytes()), None, "{text}");
        }
    }
}
