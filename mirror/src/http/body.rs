//! Bodies that are read from files as the client takes them: a block at a time, no more in memory.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes as Chunk;
use futures::stream::{self, Stream, StreamExt};

use super::sendfile::Pieces;
use super::stored::Stored;
use crate::fill::{self, Cut, Fill};

/// What a body is read from.
#[derive(Clone)]
pub(super) enum Bytes {
    /// A blob in the cache, and the connection's queue of what the kernel sends, where it has one.
    Stored(Stored, Option<Pieces>),
    /// A blob on its way there, and the same.
    Filling(Arc<Fill>, Option<Pieces>),
}

impl Bytes {
    /// The next part of a range, or what stands in for it on this connection.
    async fn next(&self, range: &Range<u64>) -> Result<Chunk, Cut> {
        match self {
            Self::Stored(stored, pieces) => {
                let queue = |pieces: &Pieces| pieces.queue(&stored.blob.file, range, Some(stored));
                match pieces.as_ref().and_then(queue) {
                    Some(stand_in) => Ok(stand_in),
                    None => stored.read(range).await,
                }
            }
            Self::Filling(fill, pieces) => {
                let (source, there) = fill.there(range).await?;
                match pieces
                    .as_ref()
                    .and_then(|pieces| pieces.queue(source, &there, None))
                {
                    Some(stand_in) => Ok(stand_in),
                    None => fill::read(source, &there).await,
                }
            }
        }
    }

    /// A range that is in memory.
    fn held(&self, range: &Range<u64>) -> Option<Chunk> {
        let Self::Stored(stored, _) = self else {
            return None;
        };
        let bytes = stored.blob.bytes.as_ref()?;
        Some(bytes.slice(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?))
    }
}

/// These bytes.
pub(super) fn part(bytes: Bytes, range: Range<u64>) -> Body {
    if let Some(held) = bytes.held(&range) {
        return Body::from(held);
    }
    Body::from_stream(chunks(bytes, range))
}

fn chunks(bytes: Bytes, range: Range<u64>) -> impl Stream<Item = Result<Chunk, Cut>> + Send + 'static {
    stream::try_unfold((bytes, range), |(bytes, mut left)| async move {
        if left.is_empty() {
            return Ok(None);
        }
        let chunk = bytes.next(&left).await?;
        left.start += chunk.len() as u64;
        Ok(Some((chunk, (bytes, left))))
    })
}

/// All bytes of a fill whose size upstream did not tell.
pub(super) fn until_the_end(fill: Arc<Fill>) -> Body {
    Body::from_stream(stream::try_unfold((fill, 0_u64), |(fill, at)| async move {
        match fill.read(&(at..u64::MAX)).await {
            Ok(chunk) => {
                let next = at + chunk.len() as u64;
                Ok(Some((chunk, (fill, next))))
            }
            Err(cut) => match fill.progress() {
                progress if progress.is_whole(at) => Ok(None),
                _ => Err(cut),
            },
        }
    }))
}

/// Several parts in one body (RFC 9110, section 14.6).
pub(super) struct Multipart {
    pub(super) boundary: String,
    pub(super) length: u64,
    pub(super) body: Body,
}

pub(super) fn multipart(bytes: Bytes, parts: Vec<Range<u64>>, size: u64) -> Multipart {
    let boundary = boundary();
    let head = |part: &Range<u64>| {
        let (first, last) = (part.start, part.end - 1);
        let kind = "Content-Type: application/octet-stream";
        format!("\r\n--{boundary}\r\n{kind}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n")
    };
    let tail = format!("\r\n--{boundary}--\r\n");
    let of_parts: u64 = parts
        .iter()
        .map(|part| head(part).len() as u64 + part.end - part.start)
        .sum();
    let heads: Vec<_> = parts.into_iter().map(|part| (head(&part), part)).collect();
    let text = |text: String| stream::once(async move { Ok(Chunk::from(text)) });
    let length = of_parts + tail.len() as u64;
    let body = stream::iter(heads)
        .flat_map(move |(head, part)| text(head).chain(chunks(bytes.clone(), part)))
        .chain(text(tail));
    Multipart {
        boundary,
        length,
        body: Body::from_stream(body),
    }
}

/// Another one for each answer, so that no content can hold it on purpose.
fn boundary() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
