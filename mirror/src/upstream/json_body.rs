//! The JSON that an upstream sends, in bounded memory: one size limit for each kind, few large ones at a time, and no
//! work of more than a moment on the threads that serve clients.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{Error, describe};
use super::response::UpstreamResponse;
use super::transport::Transport;

/// The most bytes of a document that is small: it is parsed where it was read, which takes less than a millisecond.
pub(crate) const MAX_SMALL: usize = 64 * 1024;
/// The most large documents of one upstream that are in memory at a time, from their first 64 KiB until they
/// are parsed, and manifests until they are stored.
pub(crate) const MAX_LARGE_DOCUMENTS: usize = 4;
/// The first bytes of what gzip compressed (RFC 1952, 2.3.1); no document in JSON begins with them.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A place among the large documents of an upstream; empty until one is needed. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub(crate) struct DocumentPlace(Option<Arc<OwnedSemaphorePermit>>);

impl DocumentPlace {
    /// Waits for a place, unless it is one already; for no longer than a body may take. Returns the length of the wait.
    pub(super) async fn take(&mut self, transport: &Transport) -> Result<Duration, Error> {
        if self.0.is_some() {
            return Ok(Duration::ZERO);
        }
        let begun = Instant::now();
        let permit = transport.large_documents.clone().acquire_owned();
        match timeout(transport.timeouts.body, permit).await {
            Ok(Ok(permit)) => self.0 = Some(Arc::new(permit)),
            Ok(Err(_)) => {
                return Err(Error::unavailable(
                    "the configuration of this upstream was replaced",
                ));
            }
            Err(_) => {
                return Err(Error::unavailable(
                    "too many large documents of it are being read",
                ));
            }
        }
        Ok(begun.elapsed())
    }
}

/// A document as it came, and its place while it is large.
pub(super) struct JsonBody {
    bytes: Bytes,
    limit: usize,
    place: DocumentPlace,
    /// The error for a page, if the document cannot be parsed.
    page: Option<Error>,
}

impl UpstreamResponse {
    /// Reads a document of at most `limit` bytes.
    pub(super) async fn read(self, transport: &Transport, limit: usize) -> Result<JsonBody, Error> {
        self.read_into(transport, limit, &mut DocumentPlace::default())
            .await
    }

    /// Reads a document of at most `limit` bytes; takes a place for it where it is large, and there is none yet.
    pub(super) async fn read_into(
        self,
        transport: &Transport,
        limit: usize,
        place: &mut DocumentPlace,
    ) -> Result<JsonBody, Error> {
        let announced = self.length().unwrap_or_default();
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(too_large(limit));
        }
        let within = transport.timeouts.body;
        let received = transport.metrics.received(self.kind);
        let too_slow = |_| Error::unavailable(format!("the body took longer than {} s", within.as_secs()));
        let page = self.page();
        let (mut response, mut body) = (self.response, BytesMut::new());
        let mut deadline = Instant::now() + within;
        if announced > MAX_SMALL {
            // Before its first byte, as hyper buffers up to 400 KiB of a body from then on.
            deadline += place.take(transport).await?;
        }
        loop {
            let chunk = timeout_at(deadline, response.chunk()).await.map_err(too_slow)?;
            let Some(chunk) = chunk.map_err(|e| Error::unavailable(describe(e)))? else {
                break;
            };
            received.inc_by(chunk.len() as u64);
            if chunk.len() > limit - body.len() {
                return Err(too_large(limit));
            }
            body.extend_from_slice(&chunk);
            if body.len() > MAX_SMALL || body.starts_with(&GZIP) {
                // The wait is none of this document's server: it does not count.
                deadline += place.take(transport).await?;
                // Exactly, as caches keep the bytes: growing would make room for twice as many.
                body.reserve(announced.saturating_sub(body.len()));
            }
        }
        if announced == 0 && body.len() > MAX_SMALL {
            body = BytesMut::from(&body[..]);
        }
        let (bytes, place) = (body.freeze(), place.clone());
        Ok(JsonBody {
            bytes,
            limit,
            place,
            page,
        })
    }
}

impl JsonBody {
    /// Returns the place of the document, for a caller that keeps it in memory after it is parsed.
    pub(super) fn place(&self) -> DocumentPlace {
        self.place.clone()
    }

    /// Decompresses the document where a server compressed it unasked, and parses it; a large one on a thread that may
    /// be busy, and it keeps its place until then, also if no request waits any more.
    pub(super) async fn parse<T: Send + 'static>(
        self,
        parse: impl FnOnce(Bytes) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Self {
            bytes,
            limit,
            place,
            page,
        } = self;
        let explain = |error| match (error, page) {
            (Error::Malformed { .. }, Some(page)) => page,
            (error, _) => error,
        };
        if place.0.is_none() {
            return parse(bytes).map_err(explain);
        }
        let work = move || {
            let parsed = decompressed(bytes, limit).and_then(parse);
            drop(place);
            parsed.map_err(explain)
        };
        let parsed = tokio::task::spawn_blocking(work).await;
        parsed.unwrap_or_else(|_| Err(Error::unavailable("reading its answer was given up")))
    }
}

/// Returns the error for a document above its limit.
pub(super) fn too_large(limit: usize) -> Error {
    Error::malformed(format!("it is larger than {limit} bytes"))
}

/// Returns a document as it was before gzip; the bytes tell, as labels are not to be relied on.
fn decompressed(bytes: Bytes, limit: usize) -> Result<Bytes, Error> {
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let failed = |_| Error::malformed("it is compressed, and cannot be decompressed");
    let reader = || MultiGzDecoder::new(&bytes[..]).take(limit as u64 + 1);
    // Measured first: what is too large takes no memory, and the rest no more than its length.
    let length = io::copy(&mut reader(), &mut io::sink()).map_err(failed)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > limit {
        return Err(too_large(limit));
    }
    let mut document = vec![0; length];
    reader().read_exact(&mut document).map_err(failed)?;
    Ok(document.into())
}
