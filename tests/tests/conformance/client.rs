//! The plainest client: a request, and an answer that can be asked what it is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use crate::content::Content;
use crate::ensure;

const LIMIT: Duration = Duration::from_mins(1);

/// The codes that an error may have (distribution-spec, "Error Codes").
const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];

/// A registry, or a mirror of it, with what it should have.
#[derive(Clone)]
pub(crate) struct Place {
    client: reqwest::Client,
    url: String,
    pub(crate) content: Arc<Content>,
}

/// An answer, read to its end.
pub(crate) struct Answer {
    asked: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(LIMIT)
        .build()
        .expect("a client")
}

impl Place {
    pub(crate) fn new(url: &str, content: Arc<Content>) -> Self {
        Self {
            client: client(),
            url: url.to_owned(),
            content,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer, String> {
        self.ask(Method::GET, path, &[]).await
    }

    pub(crate) async fn head(&self, path: &str) -> Result<Answer, String> {
        self.ask(Method::HEAD, path, &[]).await
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let asked = format!("{method} {path} {headers:?}");
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let failed = |error: reqwest::Error| format!("{asked}: {error}");
        let answer = request.send().await.map_err(failed)?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.bytes().await.map_err(failed)?;
        Ok(Answer {
            asked,
            status,
            headers,
            bytes,
        })
    }
}

impl Answer {
    pub(crate) fn is(self, status: u16) -> Result<Self, String> {
        self.one_of(&[status])
    }

    pub(crate) fn one_of(self, wanted: &[u16]) -> Result<Self, String> {
        ensure!(
            wanted.contains(&self.status),
            "{}: {} instead of {wanted:?}: {}",
            self.asked,
            self.status,
            String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(300)])
        );
        Ok(self)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    pub(crate) fn has(self, name: &str, value: &str) -> Result<Self, String> {
        let found = self.header(name);
        ensure!(
            found == value,
            "{}: {name} is {found:?}, not {value:?}",
            self.asked
        );
        Ok(self)
    }

    pub(crate) fn holds(self, bytes: &[u8]) -> Result<Self, String> {
        ensure!(
            self.bytes == bytes,
            "{}: other bytes: {} of {}",
            self.asked,
            self.bytes.len(),
            bytes.len()
        );
        Ok(self)
    }

    pub(crate) fn json(&self) -> Result<Value, String> {
        serde_json::from_slice(&self.bytes).map_err(|error| format!("{}: {error}", self.asked))
    }

    /// The form that a body in JSON must have where the status says that something is wrong.
    pub(crate) fn says_why(self) -> Result<Self, String> {
        if !self.header("content-type").starts_with("application/json") {
            return Ok(self);
        }
        let body = self.json()?;
        let errors = body["errors"].as_array().cloned().unwrap_or_default();
        ensure!(!errors.is_empty(), "{}: no errors in {body}", self.asked);
        for error in errors {
            let code = error["code"].as_str().unwrap_or_default();
            ensure!(CODES.contains(&code), "{}: {code:?} is no code", self.asked);
            let message = &error["message"];
            ensure!(
                message.is_string() || message.is_null(),
                "{}: {message}",
                self.asked
            );
        }
        Ok(self)
    }
}
