//! Responses of an upstream before their bodies are read.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Response;

use super::auth::Authorizer;
use super::auth::trust::Audience;
use super::error::Error;
use super::error_body::ErrorBody;
use super::transport::Transport;
use crate::digest::Digest;
use crate::manifest::MAX_MEDIA_TYPE;
use crate::metrics::Kind;

/// The most bytes of an error's body that are read.
pub(crate) const MAX_ERROR_BODY: usize = 64 * 1024;
const API_VERSION: &str = "docker-distribution-api-version";

/// A response whose header arrived.
pub(super) struct UpstreamResponse {
    pub(super) response: Response,
    /// The `Authorization` of the request.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) server: ServerKind,
    /// The kind of content that the request was for.
    pub(super) kind: Kind,
}

/// The kind of server that sent a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerKind {
    /// The upstream, or a host that may receive its credential.
    Upstream,
    /// The API of another registry that redirects lead to.
    Registry,
    /// A storage, or another host that redirects lead to.
    Elsewhere,
}

impl UpstreamResponse {
    /// Returns the audience that sent the response.
    pub(super) fn audience(&self) -> Audience {
        Audience::new(self.response.url(), self.server == ServerKind::Upstream)
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns the media type without parameters, in lower case; `None` where it is longer than types are (RFC 6838,
    /// 4.2), as messages and the cache have it.
    pub(super) fn media_type(&self) -> Option<String> {
        let value = self.headers().get(CONTENT_TYPE)?.to_str().ok()?;
        let essence = value
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        (1..=MAX_MEDIA_TYPE).contains(&essence.len()).then_some(essence)
    }

    /// Returns the announced length of the content, for a HEAD too; `None` where the answer comes in chunks (RFC 9112,
    /// 6.3). `Content-Encoding` does not count: storages keep it as a label of bytes that nothing compressed.
    pub(super) fn length(&self) -> Option<u64> {
        if self.headers().contains_key(TRANSFER_ENCODING) {
            return None;
        }
        self.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// Returns the size of the blob that this answer with 200 is, where it names one. A page is no blob.
    pub(super) fn blob_size(&self) -> Result<Option<u64>, Error> {
        match self.page() {
            Some(error) => Err(error),
            None => Ok(self.length()),
        }
    }

    /// Returns the host that answered.
    pub(super) fn host(&self) -> &str {
        self.response.url().host_str().unwrap_or_default()
    }

    /// Returns the error for a page in place of content; `None` for any other answer.
    pub(super) fn page(&self) -> Option<Error> {
        self.is_page().then(|| {
            let redirected = if self.server == ServerKind::Upstream {
                ""
            } else {
                ", where it redirects to,"
            };
            Error::malformed(format!(
                "{}{redirected} sent a page (text/html), such as that of a login or of a proxy in place of the registry",
                self.host()
            ))
        })
    }

    /// Returns true for a page, such as that of a login or of a firewall, which no registry sends.
    pub(super) fn is_page(&self) -> bool {
        self.media_type().as_deref() == Some("text/html")
    }

    /// Returns `true` if the header names this digest (`Docker-Content-Digest`).
    pub(super) fn has_digest(&self, digest: &Digest) -> bool {
        let named = self.headers().get("docker-content-digest");
        named.is_some_and(|named| named.as_bytes() == digest.to_string().as_bytes())
    }

    /// Returns `true` if the header names the registry API, as Distribution does in every response.
    pub(super) fn is_marked(&self) -> bool {
        self.headers().contains_key(API_VERSION)
    }

    /// Returns `true` if the body names HTTPS, as web servers and Go write to a client that speaks plain HTTP to a port for
    /// TLS.
    pub(super) async fn names_https(self, transport: &Transport) -> bool {
        let Ok(body) = self.read(transport, MAX_ERROR_BODY).await else {
            return false;
        };
        let names = |body: Bytes| Ok(body.windows(5).any(|word| word.eq_ignore_ascii_case(b"https")));
        body.parse(names).await.unwrap_or(false)
    }

    /// Reads the body of an error, without the secrets that a careless server might repeat.
    pub(super) async fn error_body(self, transport: &Transport, authorizer: &Authorizer) -> ErrorBody {
        let (status, marked, media_type) = (self.status(), self.is_marked(), self.media_type());
        let shown = self.authorization.clone();
        let body = match self.read(transport, MAX_ERROR_BODY).await {
            Ok(body) => body.parse(Ok).await.unwrap_or_default(),
            Err(_) => Bytes::new(),
        };
        ErrorBody::read(status, marked, media_type.as_deref(), &body, |text| {
            authorizer.scrub(text, shown.as_ref())
        })
    }
}
