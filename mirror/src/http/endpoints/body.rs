//! Bodies that read files at the pace of the client: a block at a time, with no more in memory.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};

use super::fill_blob::FillBlob;
use super::stored_blob::StoredBlob;
use crate::fill::{self, Cut};
use crate::http::connection::{ConnectionMemory, SendfileQueue, hold};

/// A blob that a body reads, and the connection that it reads it for.
#[derive(Clone)]
pub(super) struct BlobReader {
    pub(super) blob: BodyBlob,
    /// The sendfile queue of the connection, if it has one.
    pub(super) sendfile: Option<SendfileQueue>,
    pub(super) memory: Arc<ConnectionMemory>,
}

/// The source of a blob in the cache.
#[derive(Clone)]
pub(super) enum BodyBlob {
    /// A stored blob.
    Stored(StoredBlob),
    /// A fill that still runs.
    Filling(FillBlob),
}

impl BlobReader {
    /// Returns the next bytes of a range, or the placeholder of a part that sendfile sends.
    async fn next(&self, range: &Range<u64>) -> Result<Bytes, Cut> {
        let (file, there, stored) = match &self.blob {
            BodyBlob::Stored(stored) => (Arc::clone(&stored.blob.file), range.clone(), Some(stored)),
            BodyBlob::Filling(filling) => {
                let (file, there) = filling.fill.there(range).await?;
                (file, there, None)
            }
        };
        let push = |queue: &SendfileQueue| queue.push(&file, &there, stored);
        if let Some(placeholder) = self.sendfile.as_ref().and_then(push) {
            return Ok(placeholder);
        }
        let held = self.memory.block(there.end - there.start).await;
        let part = there.start..there.start + held.length as u64;
        let bytes = match stored {
            Some(stored) => stored.read(&part).await?,
            None => fill::read(&file, &part).await?,
        };
        Ok(hold(bytes, held.permit))
    }

    /// Returns the bytes of a range from the upstream, if this is a fill that ran out of room.
    async fn past_the_cache(&self, range: &Range<u64>) -> Result<Option<PassedBytes>, Cut> {
        let BodyBlob::Filling(filling) = &self.blob else {
            return Ok(None);
        };
        let passed = filling.past_the_cache(range).await?;
        Ok(passed.map(|source| held(source, Arc::clone(&self.memory))))
    }

    /// Returns a range of a blob whose bytes are in memory.
    fn in_memory(&self, range: &Range<u64>) -> Option<Bytes> {
        let BodyBlob::Stored(stored) = &self.blob else {
            return None;
        };
        let bytes = stored.blob.bytes.as_ref()?;
        Some(bytes.slice(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?))
    }
}

/// Returns a body with this range of a blob.
pub(super) fn part(reader: BlobReader, range: Range<u64>) -> Body {
    if let Some(bytes) = reader.in_memory(&range) {
        return Body::from(bytes);
    }
    Body::from_stream(chunks(reader, range))
}

fn chunks(reader: BlobReader, range: Range<u64>) -> impl Stream<Item = Result<Bytes, Cut>> + Send + 'static {
    let state = (ByteSource::Cache(reader), range);
    stream::try_unfold(state, |(mut source, mut left)| async move {
        if left.is_empty() {
            return Ok(None);
        }
        let Some(chunk) = source.next(&left).await? else {
            return Err(Cut("upstream ended early".into()));
        };
        left.start += chunk.len() as u64;
        Ok(Some((chunk, (source, left))))
    })
}

/// Bytes that come from the upstream past the cache.
type PassedBytes = BoxStream<'static, Result<Bytes, Cut>>;

/// The source of the next bytes of a body: the cache, and the upstream once a fill ran out of room.
enum ByteSource {
    Cache(BlobReader),
    Past(PassedBytes),
}

impl ByteSource {
    /// Returns the next bytes of a range; `None` at the end of what the upstream sent.
    async fn next(&mut self, range: &Range<u64>) -> Result<Option<Bytes>, Cut> {
        if let Self::Cache(reader) = self {
            let cut = match reader.next(range).await {
                Ok(chunk) => return Ok(Some(chunk)),
                Err(cut) => cut,
            };
            // Boxed, because each body that waits for its client would keep space for it.
            let passed = Box::pin(reader.past_the_cache(range)).await?;
            *self = Self::Past(passed.ok_or(cut)?);
        }
        match self {
            Self::Past(bytes) => bytes.next().await.transpose(),
            Self::Cache(_) => Ok(None),
        }
    }
}

/// Returns a body with all bytes of a fill whose size the upstream did not announce.
pub(super) fn whole_fill(filling: FillBlob, memory: Arc<ConnectionMemory>) -> Body {
    let fill = Arc::clone(&filling.fill);
    let reader = BlobReader {
        blob: BodyBlob::Filling(filling),
        // Chunks of a body without a length are framed, which a placeholder is not.
        sendfile: None,
        memory,
    };
    let state = (ByteSource::Cache(reader), fill, 0_u64);
    Body::from_stream(stream::try_unfold(state, |(mut source, fill, at)| async move {
        match source.next(&(at..u64::MAX)).await {
            Ok(Some(chunk)) => {
                let next = at + chunk.len() as u64;
                Ok(Some((chunk, (source, fill, next))))
            }
            Ok(None) => Ok(None),
            Err(_) if fill.progress().is_whole(at) => Ok(None),
            Err(cut) => Err(cut),
        }
    }))
}

/// Returns a body with the bytes of an upstream that are not cached.
pub(super) fn passed(source: PassedBytes, memory: Arc<ConnectionMemory>) -> Body {
    Body::from_stream(held(source, memory))
}

/// Returns the bytes of an upstream with memory of the client: no more are taken while that is used up.
fn held(source: PassedBytes, memory: Arc<ConnectionMemory>) -> PassedBytes {
    let held = source.and_then(move |chunk| {
        let memory = Arc::clone(&memory);
        async move {
            let permit = memory.document(chunk.len()).await;
            Ok(hold(chunk, permit))
        }
    });
    held.boxed()
}

/// A body with several parts (RFC 9110, 14.6).
pub(super) struct Multipart {
    pub(super) boundary: String,
    pub(super) length: u64,
    pub(super) body: Body,
}

/// Returns a multipart body with these ranges of a blob of `size` bytes.
pub(super) fn multipart(reader: BlobReader, parts: Vec<Range<u64>>, size: u64) -> Multipart {
    let boundary = boundary();
    let head = |part: &Range<u64>| {
        let (first, last) = (part.start, part.end - 1);
        let kind = "Content-Type: application/octet-stream";
        format!("\r\n--{boundary}\r\n{kind}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n")
    };
    let tail = format!("\r\n--{boundary}--\r\n");
    let parts_length: u64 = parts
        .iter()
        .map(|part| head(part).len() as u64 + part.end - part.start)
        .sum();
    let heads: Vec<_> = parts.into_iter().map(|part| (head(&part), part)).collect();
    let text = |text: String| stream::once(async move { Ok(Bytes::from(text)) });
    let length = parts_length + tail.len() as u64;
    let body = stream::iter(heads)
        .flat_map(move |(head, part)| text(head).chain(chunks(reader.clone(), part)))
        .chain(text(tail));
    Multipart {
        boundary,
        length,
        body: Body::from_stream(body),
    }
}

/// Returns a random boundary, so that no content can contain it on purpose.
fn boundary() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
