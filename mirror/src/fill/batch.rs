//! The bytes of one response in batches: one is received while the previous one is written.

use std::pin::pin;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};

use crate::block_reader;
use crate::upstream::Error;

/// The bytes after which a batch takes no further chunk. Each batch costs two switches to another thread and back, so that
/// larger ones cost less; a fill has two in memory.
const MAX_BATCH: u64 = 512 << 10;

/// Chunks of a response, in order.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) chunks: Vec<Bytes>,
    /// The end of the response after these chunks: with an error if it broke.
    pub(super) end: Option<Result<(), Error>>,
}

/// The body of a response without the bytes that are there already.
pub(super) struct BatchBody<S> {
    body: S,
    /// The number of bytes to skip.
    skip: u64,
}

impl Batch {
    /// Returns the number of bytes.
    pub(super) fn length(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    fn has_room(&self) -> bool {
        self.end.is_none() && self.length() < MAX_BATCH
    }
}

impl<S: Stream<Item = Result<Bytes, Error>> + Unpin> BatchBody<S> {
    pub(super) fn new(body: S, skip: u64) -> Self {
        Self { body, skip }
    }

    /// Waits for a chunk, or the end of the body, if the batch has neither, and adds the chunks that are ready.
    pub(super) async fn fill(&mut self, batch: &mut Batch) {
        if batch.chunks.is_empty() && batch.end.is_none() {
            let item = self.body.next().await;
            self.add(batch, item);
        }
        while batch.has_room()
            && let Some(item) = self.body.next().now_or_never()
        {
            self.add(batch, item);
        }
    }

    /// Receives a batch until some work is done. Returns what the work returns, and the batch, which may be empty.
    pub(super) async fn receive_during<T>(&mut self, work: impl Future<Output = T>) -> (T, Batch) {
        let (mut work, mut batch) = (pin!(work), Batch::default());
        loop {
            let item = tokio::select! {
                biased;
                done = &mut work => return (done, batch),
                item = self.body.next(), if batch.has_room() => item,
            };
            self.add(&mut batch, item);
        }
    }

    fn add(&mut self, batch: &mut Batch, item: Option<Result<Bytes, Error>>) {
        match item {
            Some(Ok(mut chunk)) => {
                block_reader::skip(&mut chunk, &mut self.skip);
                batch.chunks.push(chunk);
            }
            Some(Err(error)) => batch.end = Some(Err(error)),
            None => batch.end = Some(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    fn broken() -> Error {
        Error::Unavailable { what: "x".to_owned() }
    }

    /// The bytes that a blob has already are skipped, also across chunks.
    #[tokio::test]
    async fn present_bytes_are_skipped_across_chunks() {
        let chunks = ["abc", "defg", "h"].map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())));
        let (mut body, mut batch) = (BatchBody::new(stream::iter(chunks), 5), Batch::default());
        body.fill(&mut batch).await;
        assert_eq!(
            (batch.chunks.concat(), batch.end),
            (b"fgh".to_vec(), Some(Ok(())))
        );
    }

    /// The chunks that arrive ahead of an error are kept.
    #[tokio::test]
    async fn chunks_ahead_of_an_error_are_kept() {
        let chunks = [
            Ok(Bytes::from_static(b"abc")),
            Err(broken()),
            Ok(Bytes::from_static(b"d")),
        ];
        let (mut body, mut batch) = (BatchBody::new(stream::iter(chunks), 0), Batch::default());
        body.fill(&mut batch).await;
        assert_eq!(
            (batch.chunks.concat(), batch.end),
            (b"abc".to_vec(), Some(Err(broken())))
        );
    }

    /// Chunks arrive while the previous ones are written, up to a bound, and none is lost.
    #[tokio::test]
    async fn batch_is_received_during_work_up_to_a_bound() {
        let chunk = Bytes::from(vec![1; 100 << 10]);
        let chunks = stream::iter(vec![Ok(chunk.clone()); 20]).chain(stream::pending());
        let mut body = BatchBody::new(chunks, 0);
        let work = async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            7
        };
        let (done, mut batch) = body.receive_during(work).await;
        let most = MAX_BATCH + chunk.len() as u64;
        assert!(done == 7 && (MAX_BATCH..most).contains(&batch.length()));
        let mut received = 0;
        while received < 2_000 << 10 {
            body.fill(&mut batch).await;
            assert!(batch.length() < most && batch.end.is_none());
            received += std::mem::take(&mut batch).length();
        }
        assert_eq!(received, 2_000 << 10);
    }
}
