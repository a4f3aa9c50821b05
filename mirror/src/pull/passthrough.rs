//! Pass-through responses, for content that has no space in the cache or that a fill has not reached.
//!
//! The end of the blob is held back until the digest is verified, as in a fill.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};

use super::refusals::RequestSnapshot;
use crate::block_reader;
use crate::client_address::ClientAddress;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::fill::inflight::Inflight;
use crate::fill::{Cut, Fill, HELD_BACK, Phase, Turn};
use crate::metrics::Source;
use crate::name::Repository;
use crate::origins::Origins;
use crate::pull_error::{PullError, RequestedContent};
use crate::upstream::{BlobAnswer, Error};

/// A request for a blob, with its origins.
pub(crate) struct BlobRequest<'a> {
    pub(crate) origins: Origins,
    pub(crate) repository: &'a Repository,
    pub(crate) digest: &'a Digest,
    /// The state when the request arrived, to which the response applies.
    pub(crate) start: RequestSnapshot,
    /// The client whose request it is.
    pub(crate) client: ClientAddress,
}

/// A pass-through response.
pub(crate) struct PassThrough {
    /// The size of the blob, if the upstream announced it.
    pub(crate) size: Option<u64>,
    /// The range that the body is; `None`: the whole.
    pub(crate) part: Option<Range<u64>>,
    /// The body.
    pub(crate) body: BoxStream<'static, Result<Bytes, Cut>>,
    /// The origin of the bytes.
    pub(crate) origin: Source,
}

impl<'a> BlobRequest<'a> {
    pub(crate) fn new(
        origins: Origins,
        repository: &'a Repository,
        digest: &'a Digest,
        client: ClientAddress,
        start: RequestSnapshot,
    ) -> Self {
        Self {
            origins,
            repository,
            digest,
            start,
            client,
        }
    }

    async fn ask(&self, from: u64, until: Option<u64>) -> Result<BlobAnswer, Error> {
        self.origins
            .blob_past_the_cache(&self.repository.name, self.digest, from, until)
            .await
    }
}

impl PassThrough {
    /// Returns the answer with a body that keeps the turn of its client until its end.
    pub(super) fn holding(self, turn: Turn) -> Self {
        let held = self.body.inspect(move |_| {
            let _ = &turn;
        });
        Self {
            body: held.boxed(),
            ..self
        }
    }
}

/// Requests a range that the fill has not reached; `None` if the upstream does not serve it: the fill will reach it.
pub(crate) async fn ahead(
    request: &BlobRequest<'_>,
    fill: &Arc<Fill>,
    size: u64,
    part: Range<u64>,
) -> Option<PassThrough> {
    let open = part.end == size;
    let answer = request.ask(part.start, (!open).then_some(part.end)).await.ok()?;
    if answer.start != part.start || answer.total.is_some_and(|total| total != size) {
        return None;
    }
    let (origin, body) = (answer.source, exactly(answer, part.clone()));
    let body = if open {
        held_back(same_as(body, Arc::clone(fill), part.clone())).boxed()
    } else {
        body.boxed()
    };
    Some(PassThrough {
        size: Some(size),
        part: Some(part),
        body,
        origin,
    })
}

/// Returns a range that ends before the blob does; its client verifies the whole once it has it.
pub(crate) async fn closed(
    request: &BlobRequest<'_>,
    size: u64,
    part: Range<u64>,
) -> Result<PassThrough, PullError> {
    let answer = request.ask(part.start, Some(part.end)).await;
    let answer = answer.map_err(|error| PullError::from_upstream(&error, RequestedContent::Blob))?;
    // A part of something else, such as of the blob as a server compressed it: nothing here is checked by a digest.
    if let Some(total) = answer.total.filter(|total| *total != size) {
        let what = format!("upstream has a part of {total} bytes where the blob is of {size} bytes");
        return Err(PullError::unavailable(what));
    }
    Ok(PassThrough {
        size: Some(size),
        origin: answer.source,
        body: exactly(answer, part.clone()).boxed(),
        part: Some(part),
    })
}

/// Streams a blob to its end, from its start or from within. Only the whole can be verified, so the upstream sends the
/// whole.
pub(crate) async fn to_the_end(
    request: &BlobRequest<'_>,
    ready: Option<BlobAnswer>,
    inflight: Arc<Inflight>,
    part: Option<Range<u64>>,
) -> Result<PassThrough, PullError> {
    let answer = match ready {
        Some(answer) => request.origins.past_the_cache(answer).await,
        None => request.ask(0, None).await,
    };
    let answer = answer.map_err(|error| PullError::from_upstream(&error, RequestedContent::Blob))?;
    let (size, origin) = (answer.total, answer.source);
    let whole = checked(
        exactly(answer, 0..size.unwrap_or(u64::MAX)),
        request.repository.clone(),
        request.digest.clone(),
        inflight,
    );
    let start = part.as_ref().map_or(0, |part| part.start);
    let body = skipping(held_back(whole), start);
    if size.is_none_or(|size| size > HELD_BACK) {
        return Ok(PassThrough {
            size,
            part,
            body: body.boxed(),
            origin,
        });
    }
    let collected: BytesMut = body
        .try_collect()
        .await
        .map_err(|cut| PullError::unavailable(cut.to_string()))?;
    let body = stream::once(async { Ok(collected.freeze()) }).boxed();
    Ok(PassThrough {
        size,
        part,
        body,
        origin,
    })
}

/// Returns the bytes of `part` from a response that may start before it and end after it.
/// `part.end` is `u64::MAX` where the size is unknown; else an answer that ends before it is cut.
fn exactly(answer: BlobAnswer, part: Range<u64>) -> impl Stream<Item = Result<Bytes, Cut>> + Send + 'static {
    let state = (
        answer.body,
        part.start.saturating_sub(answer.start),
        part.end - part.start,
    );
    stream::try_unfold(state, |(mut body, mut skip, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        loop {
            let chunk = body
                .next()
                .await
                .transpose()
                .map_err(|error: Error| Cut(error.to_string()))?;
            let Some(mut chunk) = chunk else {
                let unknown = left > u64::MAX / 2;
                return if unknown {
                    Ok(None)
                } else {
                    Err(Cut("upstream ended early".into()))
                };
            };
            block_reader::skip(&mut chunk, &mut skip);
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if !chunk.is_empty() {
                let left = left - chunk.len() as u64;
                return Ok(Some((chunk, (body, skip, left))));
            }
        }
    })
}

fn skipping<S>(body: S, start: u64) -> impl Stream<Item = Result<Bytes, Cut>> + Send + 'static
where
    S: Stream<Item = Result<Bytes, Cut>> + Send + 'static,
{
    body.scan(start, |skip, chunk| {
        let rest = chunk.map(|mut chunk| {
            block_reader::skip(&mut chunk, skip);
            chunk
        });
        std::future::ready(Some(rest))
    })
}

/// Ends in an error where the bytes are not those of the digest, which its upstream is not asked for again for a while.
fn checked<S>(
    body: S,
    repository: Repository,
    digest: Digest,
    inflight: Arc<Inflight>,
) -> impl Stream<Item = Result<Bytes, Cut>> + Send
where
    S: Stream<Item = Result<Bytes, Cut>> + Send + 'static,
{
    let hasher = Hasher::new(digest.algorithm());
    let state = (Box::pin(body), hasher, (repository, digest), inflight);
    stream::try_unfold(state, |(mut body, mut hasher, blob, inflight)| async move {
        if let Some(chunk) = body.try_next().await? {
            hasher.update(&chunk);
            return Ok(Some((chunk, (body, hasher, blob, inflight))));
        }
        let (repository, digest) = blob;
        let found = hasher.finish();
        if found == digest {
            return Ok(None);
        }
        tracing::warn!(%digest, %found, "upstream sent wrong bytes; the client was cut before the end of them");
        inflight.refuse(&repository, &digest);
        Err(Cut("upstream sent wrong bytes".into()))
    })
}

/// Ends in an error where the bytes are not those of this part of the fill, once that is verified: an upstream that
/// sends the whole right may send a part wrong.
fn same_as<S>(body: S, fill: Arc<Fill>, part: Range<u64>) -> impl Stream<Item = Result<Bytes, Cut>> + Send
where
    S: Stream<Item = Result<Bytes, Cut>> + Send + 'static,
{
    let state = (Box::pin(body), Hasher::new(Algorithm::Sha256), fill, part);
    stream::try_unfold(state, |(mut body, mut hasher, fill, part)| async move {
        if let Some(chunk) = body.try_next().await? {
            hasher.update(&chunk);
            return Ok(Some((chunk, (body, hasher, fill, part))));
        }
        let right = verified(&fill, part).await?;
        if hasher.finish() == right {
            return Ok(None);
        }
        tracing::warn!("upstream sent wrong bytes for a part; the client was cut before the end of them");
        Err(Cut("upstream sent wrong bytes".into()))
    })
}

/// Returns the digest of a part of a fill that ended successfully.
async fn verified(fill: &Fill, mut part: Range<u64>) -> Result<Digest, Cut> {
    let Phase::Verified = fill.ended().await.phase else {
        return Err(Cut("the blob could not be verified".into()));
    };
    let mut hasher = Hasher::new(Algorithm::Sha256);
    while !part.is_empty() {
        let chunk = fill.read(&part).await?;
        part.start += chunk.len() as u64;
        hasher.update(&chunk);
    }
    Ok(hasher.finish())
}

/// The size in bytes below which pieces are copied together: a piece of a network buffer keeps the whole buffer, so that an
/// upstream that sends single bytes would take 8 KiB for each.
const SMALL_PIECE: usize = 8 << 10;
/// The size in bytes of pieces that are copied together.
const JOINED_PIECE: usize = 64 << 10;

/// The bytes that [`held_back`] keeps.
#[derive(Default)]
struct HeldBytes {
    pieces: VecDeque<Bytes>,
    /// Small pieces, behind the others.
    joined: BytesMut,
    bytes: u64,
}

impl HeldBytes {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len() as u64;
        if piece.len() < SMALL_PIECE {
            self.joined.extend_from_slice(&piece);
            if self.joined.len() >= JOINED_PIECE {
                self.flush();
            }
        } else {
            self.flush();
            self.pieces.push_back(piece);
        }
    }

    fn flush(&mut self) {
        if !self.joined.is_empty() {
            self.pieces.push_back(self.joined.split().freeze());
        }
    }

    /// Returns the first piece if at least `kept` bytes remain without it.
    fn pop(&mut self, kept: u64) -> Option<Bytes> {
        let length = self.pieces.front()?.len() as u64;
        let remaining = self.bytes - length;
        if remaining < kept {
            return None;
        }
        self.bytes = remaining;
        self.pieces.pop_front()
    }
}

/// Keeps the last bytes until the body has ended without an error.
fn held_back<S>(body: S) -> impl Stream<Item = Result<Bytes, Cut>> + Send
where
    S: Stream<Item = Result<Bytes, Cut>> + Send + 'static,
{
    let state = (Box::pin(body), HeldBytes::default(), false);
    stream::try_unfold(state, |(mut body, mut held, mut ended)| async move {
        loop {
            let kept = if ended { 0 } else { HELD_BACK };
            if let Some(piece) = held.pop(kept) {
                return Ok(Some((piece, (body, held, ended))));
            }
            if ended {
                return Ok(None);
            }
            if let Some(piece) = body.try_next().await? {
                held.push(piece);
            } else {
                held.flush();
                ended = true;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Single bytes are copied together, so that they do not keep the buffers that they came in.
    #[test]
    fn small_pieces_are_joined() {
        let mut held = HeldBytes::default();
        for _ in 0..HELD_BACK {
            held.push(Bytes::from(vec![7; 64]).slice(..1));
        }
        held.flush();
        assert_eq!(held.pieces.len() as u64, HELD_BACK / JOINED_PIECE as u64);
        assert_eq!(held.pop(1), Some(Bytes::from(vec![7; JOINED_PIECE])));
        assert_eq!(held.pop(HELD_BACK), None);
    }

    fn chunks(count: usize, end: Option<Cut>) -> impl Stream<Item = Result<Bytes, Cut>> + Send + 'static {
        let chunk = Bytes::from(vec![7; 64 * 1024]);
        stream::iter(std::iter::repeat_n(Ok(chunk), count).chain(end.map(Err)))
    }

    async fn passed<S: Stream<Item = Result<Bytes, Cut>>>(body: S) -> (u64, bool) {
        let mut body = Box::pin(body);
        let mut passed = 0;
        loop {
            match body.next().await {
                Some(Ok(chunk)) => passed += chunk.len() as u64,
                Some(Err(_)) => return (passed, false),
                None => return (passed, true),
            }
        }
    }

    /// A body that ends well passes whole.
    #[tokio::test]
    async fn complete_body_passes_whole() {
        assert_eq!(passed(held_back(chunks(16, None))).await, (1024 * 1024, true));
        assert_eq!(passed(held_back(chunks(1, None))).await, (64 * 1024, true));
    }

    /// A body that ends with an error lacks the bytes that were held back.
    #[tokio::test]
    async fn failed_body_lacks_its_end() {
        let (bytes, whole) = passed(held_back(chunks(16, Some(Cut("bad".into()))))).await;
        assert_eq!((bytes, whole), (1024 * 1024 - HELD_BACK, false));
        assert_eq!(
            passed(held_back(chunks(4, Some(Cut("bad".into()))))).await,
            (0, false)
        );
    }

    /// A start within the first chunk skips the bytes ahead of it.
    #[tokio::test]
    async fn body_start_offset_is_skipped() {
        assert_eq!(
            passed(skipping(chunks(2, None), 100_000)).await,
            (131_072 - 100_000, true)
        );
    }
}
