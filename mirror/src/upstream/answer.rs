//! An upstream's answer, and what its status and words mean.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Response;
use serde::Deserialize;

use super::access::Access;
use super::error::{Error, describe};
use super::wire::Wire;

/// What a registry says about an error is shorter.
const MOST_WORDS: usize = 64 * 1024;
const MOST_SHOWN: usize = 300;

/// An answer's header has come; its body has not.
pub(super) struct Answer {
    pub(super) response: Response,
    /// The `Authorization` that it was asked with.
    pub(super) shown: Option<HeaderValue>,
    /// It came from the upstream itself, not from where a redirect led.
    pub(super) home: bool,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The media type without parameters, in lower case.
    pub(super) fn media_type(&self) -> Option<String> {
        let value = self.headers().get(CONTENT_TYPE)?.to_str().ok()?;
        let essence = value
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        (!essence.is_empty()).then_some(essence)
    }

    /// The content's length as announced; right for a HEAD, too. Nothing counts where the answer comes in chunks (RFC
    /// 9112, 6.3), and the length of what is compressed is another one.
    pub(super) fn length(&self) -> Option<u64> {
        if self.headers().contains_key(TRANSFER_ENCODING) || self.check_encoding().is_err() {
            return None;
        }
        self.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The size of the blob that this answer with 200 is, where it tells. A page, as of a login, is no blob.
    pub(super) fn blob_size(&self) -> Result<Option<u64>, Error> {
        if self.media_type().as_deref() == Some("text/html") {
            return Err(Error::malformed("it is a page (text/html) and no blob"));
        }
        Ok(self.length())
    }

    /// Refuses a body that is not the content itself.
    pub(super) fn check_encoding(&self) -> Result<(), Error> {
        match self.headers().get(CONTENT_ENCODING) {
            Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(
                Error::malformed("it is compressed, though identity was asked for"),
            ),
            _ => Ok(()),
        }
    }

    /// The whole body, if it is of at most `limit` bytes.
    pub(super) async fn read(self, limit: usize, within: Duration) -> Result<Bytes, Error> {
        let too_large = || Error::malformed(format!("it is larger than {limit} bytes"));
        if self.length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut response = self.response;
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = response
                .chunk()
                .await
                .map_err(|e| Error::unavailable(describe(e)))?
            {
                if chunk.len() > limit - body.len() {
                    return Err(too_large());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body.freeze())
        };
        tokio::time::timeout(within, read).await.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "the body took longer than {} s",
                within.as_secs()
            )))
        })
    }

    /// What the body says about an error, without the secrets that a careless server might repeat.
    pub(super) async fn words(self, wire: &Wire, access: &Access) -> Words {
        let (status, shown) = (self.status(), self.shown.clone());
        let body = self
            .read(MOST_WORDS, wire.timeouts.body)
            .await
            .unwrap_or_default();
        Words::read(status, &body, |text| access.scrub(text, shown.as_ref()))
    }
}

/// What a registry says about an error (distribution-spec, "Error Codes").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Words {
    status: StatusCode,
    said: Option<(String, String)>,
}

#[derive(Deserialize)]
struct Body {
    errors: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    code: String,
    #[serde(default)]
    message: Option<String>,
}

impl Words {
    /// Scrubbed before it is cut to what is shown: half a secret is one, too.
    fn read(status: StatusCode, body: &[u8], scrub: impl Fn(&str) -> String) -> Self {
        let said = serde_json::from_slice::<Body>(body)
            .ok()
            .and_then(|body| body.errors.into_iter().next());
        let said = said.map(|said| {
            let message = scrub(&said.message.unwrap_or_default());
            (scrub(&said.code), plain(&message))
        });
        Self { status, said }
    }

    /// The registry's message, else the status.
    pub(super) fn message(&self) -> String {
        match &self.said {
            Some((code, message)) if !message.is_empty() => format!("{} ({message})", plain(code)),
            Some((code, _)) => plain(code),
            None => self.status.to_string(),
        }
    }

    /// What a 404 with these words means.
    pub(super) fn not_found(&self) -> Error {
        const CODES: [&str; 7] = [
            "MANIFEST_UNKNOWN",
            "MANIFEST_BLOB_UNKNOWN",
            "NAME_UNKNOWN",
            "NAME_INVALID",
            "BLOB_UNKNOWN",
            "TAG_INVALID",
            // Harbor's.
            "NOT_FOUND",
        ];
        match &self.said {
            Some((code, message)) if CODES.contains(&code.as_str()) => Error::NotFound {
                code: code.clone(),
                message: message.clone(),
            },
            _ => Error::StrangeNotFound,
        }
    }
}

/// A stranger's text in one printable line.
fn plain(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MOST_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn words(body: &str) -> Words {
        Words::read(StatusCode::NOT_FOUND, body.as_bytes(), str::to_owned)
    }

    #[test_case(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"m","detail":{}}]}"# => true)]
    #[test_case(r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"# => true)]
    #[test_case(r#"{"errors":[{"code":"NOT_FOUND","message":"x"}]}"# => true; "harbor")]
    #[test_case(r#"{"errors":[]}"# => false; "no error")]
    #[test_case(r#"{"errors":[{"code":"no_route","title":"t"}]}"# => false; "another API")]
    #[test_case(r#"{"message":"no Route matched"}"# => false; "a gateway")]
    #[test_case("<html><body>404</body></html>" => false; "a page")]
    #[test_case("" => false; "nothing")]
    fn only_a_registrys_own_words_make_a_404_final(body: &str) -> bool {
        matches!(words(body).not_found(), Error::NotFound { .. })
    }

    #[test]
    fn the_message_is_the_registrys_in_one_line_else_the_status() {
        let said = words("{\"errors\":[{\"code\":\"DENIED\",\"message\":\"pay\\nfirst\"}]}");
        assert_eq!(said.message(), "DENIED (pay first)");
        assert_eq!(words("<html>").message(), "404 Not Found");
    }

    proptest! {
        #[test]
        fn no_body_makes_the_reader_panic_or_talk_endlessly(body: Vec<u8>, message: String) {
            let _ = Words::read(StatusCode::FORBIDDEN, &body, str::to_owned);
            let body = serde_json::json!({ "errors": [{ "code": "DENIED", "message": message }] });
            prop_assert!(words(&body.to_string()).message().chars().count() <= MOST_SHOWN + 20);
        }
    }
}
