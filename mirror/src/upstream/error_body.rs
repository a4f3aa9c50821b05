//! Error bodies of registries and token servers.

use http::StatusCode;
use serde::de::MapAccess;

use super::error::Error;
use crate::json::{self, JsonList, ListEntry, Members, Object, Scalar};

/// The maximum length of a message in characters.
const MAX_SHOWN: usize = 200;
/// The codes of the distribution-spec ("Error Codes") that say that content is not there.
const UNKNOWN_CODES: [&str; 3] = ["MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN"];

/// The body of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ErrorBody {
    status: StatusCode,
    from_registry: bool,
    text: ErrorText,
}

/// A code and a message, each in one printable line; empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ErrorText {
    code: String,
    message: String,
}

/// The members of all kinds of error bodies: of registries (`errors`), of OAuth 2 (RFC 6749, 5.2: `error`,
/// `error_description`), of Docker Hub (`details`), and of gateways (`message`).
#[derive(Default)]
struct Fields {
    errors: JsonList<ErrorEntry>,
    error: ErrorEntry,
}

impl Members for Fields {
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, values: &mut A) -> Result<(), A::Error> {
        match name {
            "errors" => json::assign(&mut self.errors, values),
            _ => self.error.read(name, values),
        }
    }
}

json::members! {
    /// An entry of `errors` (distribution-spec, "Error Codes"), or the body of another API in its place.
    ErrorEntry {
        "code" | "error" => code: Scalar,
        "message" | "error_description" | "details" => message: Scalar,
    }
}

impl ListEntry for ErrorEntry {
    type Json = Object<Self>;

    fn from_json(json: Object<Self>) -> Option<Self> {
        json.0.filter(|entry| {
            let is_text = |value: &Scalar| matches!(value, Scalar::Text(text) if !text.is_empty());
            is_text(&entry.code) || is_text(&entry.message)
        })
    }
}

impl ErrorEntry {
    fn names_unknown_content(&self) -> bool {
        let Scalar::Text(code) = &self.code else {
            return false;
        };
        UNKNOWN_CODES.iter().any(|known| known.eq_ignore_ascii_case(code))
    }

    /// Removes secrets before truncation, because half of a secret is a secret too.
    fn into_text(self, scrub: impl Fn(&str) -> String) -> ErrorText {
        let shown = |value: Scalar| one_line(&scrub(&value.text().unwrap_or_default()));
        ErrorText {
            code: shown(self.code),
            message: shown(self.message),
        }
    }
}

impl ErrorBody {
    /// Reads a body. `marked` tells that the answer's header names the registry API. `media_type` is in lower case.
    pub(super) fn read(
        status: StatusCode,
        marked: bool,
        media_type: Option<&str>,
        body: &[u8],
        scrub: impl Fn(&str) -> String,
    ) -> Self {
        let fields = json::read::<Object<Fields>>(body).and_then(|object| object.0);
        let is_object = fields.is_some();
        let Fields { errors, error } = fields.unwrap_or_default();
        let from_registry = marked || matches!(errors, JsonList::Entries(_));
        let text = match best_of(errors.entries()) {
            Some(entry) => entry.into_text(scrub),
            None if is_object => error.into_text(scrub),
            None => ErrorText {
                message: one_line(&scrub(&plain_text(media_type, body))),
                ..ErrorText::default()
            },
        };
        Self {
            status,
            from_registry,
            text,
        }
    }

    /// Returns the code and the message, else the status.
    pub(super) fn message(&self) -> String {
        let ErrorText { code, message } = &self.text;
        let text = match (code.is_empty(), message.is_empty()) {
            (true, true) => self.status.to_string(),
            (true, false) => message.clone(),
            (false, true) => code.clone(),
            (false, false) => format!("{code} ({message})"),
        };
        text.chars().take(MAX_SHOWN).collect()
    }

    /// Classifies a 404 or a 410: the registry's own, or one of whatever answers in its place.
    pub(super) fn not_found(&self) -> Error {
        if !self.from_registry {
            return Error::StrangeNotFound { host: None };
        }
        Error::NotFound {
            code: self.text.code.to_ascii_uppercase(),
            message: self.message(),
        }
    }
}

/// Returns the entry that says most: one that names unknown content, else one with code and message, else the first.
fn best_of(mut entries: Vec<ErrorEntry>) -> Option<ErrorEntry> {
    let is_whole = |entry: &ErrorEntry| entry.code != Scalar::Absent && entry.message != Scalar::Absent;
    let best = entries.iter().position(ErrorEntry::names_unknown_content);
    let best = best.or_else(|| entries.iter().position(is_whole)).unwrap_or(0);
    (best < entries.len()).then(|| entries.swap_remove(best))
}

/// Returns a body in text, such as Amazon ECR's; nothing where it is a page or holds no text.
fn plain_text(media_type: Option<&str>, body: &[u8]) -> String {
    let markup = |name: &str| name.contains("html") || name.contains("xml");
    let is_text =
        media_type.is_none_or(|name| (name.starts_with("text/") || name.contains("json")) && !markup(name));
    match std::str::from_utf8(body) {
        Ok(text) if is_text && !text.trim_start().starts_with('<') => text.to_owned(),
        _ => String::new(),
    }
}

/// Returns an upstream's text in one printable line. Queries and users of URLs are left out: they may be secret.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || !is_printable(c));
    let words: Vec<_> = words.filter(|word| !word.is_empty()).map(bare_url).collect();
    words.join(" ").chars().take(MAX_SHOWN).collect()
}

fn is_printable(c: char) -> bool {
    // Marks that take no room, or turn the direction of the text.
    let hidden = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !hidden
}

/// Returns a word without the query and all that follows it, and without the users of all URLs in it.
fn bare_url(word: &str) -> String {
    let is_query = |rest: &str| word.contains("://") || rest.contains('=');
    let bare = match word.split_once(['?', '#']) {
        Some((bare, rest)) if is_query(rest) => bare,
        _ => word,
    };
    let mut parts = bare.split("://");
    let scheme = parts.next().unwrap_or_default().to_owned();
    parts.fold(scheme, |text, part| {
        let (authority, path) = part.split_at(part.find('/').unwrap_or(part.len()));
        let host = authority.rsplit('@').next().unwrap_or_default();
        format!("{text}://{host}{path}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn body(media_type: Option<&str>, text: &str) -> ErrorBody {
        ErrorBody::read(
            StatusCode::NOT_FOUND,
            false,
            media_type,
            text.as_bytes(),
            str::to_owned,
        )
    }

    /// Any list of errors is a registry's, whatever is in it.
    #[test_case(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"m","detail":{}}]}"# => "MANIFEST_UNKNOWN (m)")]
    #[test_case(r#"{"errors":[{"code":"TAG_EXPIRED","message":"m"}]}"# => "TAG_EXPIRED (m)"; "quay")]
    #[test_case(r#"{"errors":[{"code":"NOT_FOUND","message":"m"}]}"# => "NOT_FOUND (m)"; "harbor")]
    #[test_case(r#"{"errors":[{"status":404,"message":"m"}]}"# => "m"; "jfrog")]
    #[test_case(r#"{"errors":[{"code":"manifest_unknown"}]}"# => "manifest_unknown"; "lower case")]
    #[test_case(r#"{"errors":[{"code":"UNKNOWN"},{"code":"NAME_UNKNOWN","message":"m"}]}"# => "NAME_UNKNOWN (m)"; "the second entry")]
    #[test_case(r#"{"errors":[null,7,[],"x",{},{"code":404,"message":"m"}]}"# => "m"; "odd entries")]
    #[test_case(r#"{"errors":[]}"# => "404 Not Found"; "no entry")]
    #[test_case(r#"{"Errors":[{"Code":"A"}],"errors":[{"code":"B"}]}"# => "B"; "two lists")]
    fn error_list_makes_404_final(text: &str) -> String {
        let body = body(Some("application/json"), text);
        assert!(matches!(body.not_found(), Error::NotFound { .. }));
        body.message()
    }

    /// No registry writes these, so nothing is known about the content; their words are passed on where there are any.
    #[test_case(r#"{"message":"no Route matched"}"# => "no Route matched"; "a gateway")]
    #[test_case(r#"{"errors":{"code":"MANIFEST_UNKNOWN"}}"# => "404 Not Found"; "errors without a list")]
    #[test_case(r#"{"errors":null}"# => "404 Not Found"; "null")]
    #[test_case(r#"[{"code":"MANIFEST_UNKNOWN"}]"# => "[{\"code\":\"MANIFEST_UNKNOWN\"}]"; "a list alone")]
    #[test_case(r#"{"errors":[{"code":"MANIFEST_UNKNOWN""# => "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\""; "cut JSON")]
    #[test_case("<html><body>404</body></html>" => "404 Not Found"; "a page")]
    #[test_case("404 page not found" => "404 page not found"; "text")]
    #[test_case("" => "404 Not Found"; "nothing")]
    fn unlisted_404_is_not_final(text: &str) -> String {
        let body = body(None, text);
        assert_eq!(body.not_found(), Error::StrangeNotFound { host: None });
        body.message()
    }

    /// A 404 that is marked as the registry's is final, with any body.
    #[test]
    fn marked_404_is_final_with_any_body() {
        for text in ["", "<html>", "{}"] {
            let body = ErrorBody::read(StatusCode::GONE, true, None, text.as_bytes(), str::to_owned);
            assert!(matches!(body.not_found(), Error::NotFound { message, .. } if message == "410 Gone"));
        }
    }

    /// The message of an upstream's error is one printable line.
    #[test_case(Some("text/plain"), "Your token\r\nhas  expired." => "Your token has expired."; "text")]
    #[test_case(Some("text/html"), "Sign in" => "404 Not Found"; "a page without a tag")]
    #[test_case(Some("application/octet-stream"), "abc" => "404 Not Found"; "bytes")]
    #[test_case(Some("application/json"), "unauthorized" => "unauthorized"; "text called JSON")]
    #[test_case(Some("application/json"), r#"{"error":"invalid_grant","error_description":"ended"}"# => "invalid_grant (ended)"; "oauth")]
    #[test_case(Some("application/json"), r#"{"details":"incorrect username"}"# => "incorrect username"; "docker hub")]
    #[test_case(None, "a\u{202e}b \u{7}c" => "a b c"; "marks")]
    #[test_case(None, "at https://u:p@h.example/a?sig=s#f now" => "at https://h.example/a now"; "a signed url")]
    #[test_case(None, "https://a.example/x,https://u:p@b.example/y?sig=s" => "https://a.example/x,https://b.example/y"; "two urls in one word")]
    #[test_case(None, "at /x?X-Amz-Signature=s why?" => "at /x why?"; "a url without a host")]
    #[test_case(None, "https://h.example?sig=s" => "https://h.example"; "a url without a path")]
    fn error_message_is_one_printable_line(media_type: Option<&str>, text: &str) -> String {
        body(media_type, text).message()
    }

    /// A secret at the point where the message is cut is scrubbed whole.
    #[test]
    fn secret_at_the_cut_is_scrubbed() {
        let text = format!("{} secret", "x".repeat(MAX_SHOWN - 3));
        let scrub = |text: &str| text.replace("secret", "[secret]");
        let body = ErrorBody::read(StatusCode::FORBIDDEN, false, None, text.as_bytes(), scrub);
        assert!(!body.message().contains("se"), "{}", body.message());
    }

    proptest! {
        /// No body makes the message long or unprintable.
        #[test]
        fn any_error_body_gives_short_message(bytes: Vec<u8>, code: String, message: String) {
            let listed = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
            for bytes in [&bytes[..], listed.as_bytes(), message.as_bytes()] {
                let read = ErrorBody::read(StatusCode::FORBIDDEN, false, None, bytes, str::to_owned);
                let shown = read.message();
                prop_assert!(shown.chars().count() <= MAX_SHOWN && shown.chars().all(is_printable), "{shown:?}");
            }
        }
    }
}
