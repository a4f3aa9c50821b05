//! An answer of an upstream, before its body is read.

use std::io::Read;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Response;

use super::access::Access;
use super::error::{Error, describe};
use super::error_body::ErrorBody;
use super::trust::Audience;
use super::wire::Wire;

/// The most bytes of an error's body that are read.
const MAX_ERROR_BODY: usize = 256 * 1024;
const API_VERSION: &str = "docker-distribution-api-version";
/// The first bytes of what gzip compressed (RFC 1952, 2.3.1); no document in JSON begins with them.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An answer's header has come; its body has not.
pub(super) struct Answer {
    pub(super) response: Response,
    /// The `Authorization` that it was asked with.
    pub(super) shown: Option<HeaderValue>,
    pub(super) server: ServerKind,
}

/// The kind of server that an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerKind {
    /// The upstream, or a host that may see its credentials.
    Upstream,
    /// The API of another registry, which redirects led to.
    Registry,
    /// A storage, or anything else that redirects led to.
    Elsewhere,
}

impl Answer {
    /// Returns the audience that answered.
    pub(super) fn audience(&self) -> Audience {
        Audience::new(self.response.url(), self.server == ServerKind::Upstream)
    }

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
        if self.is_page() {
            return Err(Error::malformed("it is a page (text/html) and no blob"));
        }
        Ok(self.length())
    }

    /// Returns true for a page, such as that of a login or of a firewall, which no registry sends.
    pub(super) fn is_page(&self) -> bool {
        self.media_type().as_deref() == Some("text/html")
    }

    /// Reads a document of at most `limit` bytes, and decompresses it where a server compressed it unasked.
    pub(super) async fn read(self, limit: usize, within: Duration) -> Result<Bytes, Error> {
        if self.length().is_some_and(|length| length > limit as u64) {
            return Err(too_large(limit));
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
                    return Err(too_large(limit));
                }
                body.extend_from_slice(&chunk);
            }
            decompressed(body.freeze(), limit)
        };
        tokio::time::timeout(within, read).await.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "the body took longer than {} s",
                within.as_secs()
            )))
        })
    }

    /// Tells whether the header names the registry API, as Distribution's does in every answer.
    pub(super) fn is_marked(&self) -> bool {
        self.headers().contains_key(API_VERSION)
    }

    /// Reads the body of an error, without the secrets that a careless server might repeat.
    pub(super) async fn error_body(self, wire: &Wire, access: &Access) -> ErrorBody {
        let (status, marked, media_type) = (self.status(), self.is_marked(), self.media_type());
        let shown = self.shown.clone();
        let body = self
            .read(MAX_ERROR_BODY, wire.timeouts.body)
            .await
            .unwrap_or_default();
        ErrorBody::read(status, marked, media_type.as_deref(), &body, |text| {
            access.scrub(text, shown.as_ref())
        })
    }
}

fn too_large(limit: usize) -> Error {
    Error::malformed(format!("it is larger than {limit} bytes"))
}

/// Returns a document as it was before gzip; the bytes tell, as labels are not to be relied on.
fn decompressed(bytes: Bytes, limit: usize) -> Result<Bytes, Error> {
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let mut document = Vec::new();
    let mut reader = MultiGzDecoder::new(&bytes[..]).take(limit as u64 + 1);
    match reader.read_to_end(&mut document) {
        Ok(length) if length > limit => Err(too_large(limit)),
        Ok(_) => Ok(document.into()),
        Err(_) => Err(Error::malformed("it is compressed, and cannot be decompressed")),
    }
}
