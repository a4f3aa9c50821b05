//! Small chunks of a body, joined before they are hashed, written and sent.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::time::{Instant, timeout_at};

/// A chunk of fewer bytes is joined with those that follow; a longer one is passed without a copy.
const SMALL: usize = 4 * 1024;
/// The bytes that are enough for a joined chunk.
const ENOUGH: usize = 16 * 1024;
/// The time in which chunks are joined: a write to the disk takes about as long where it is slow.
const WAIT: Duration = Duration::from_millis(10);

/// Returns the bytes of a body in chunks of which few are small: at most one in [`WAIT`], except before a longer chunk,
/// an error and the end.
pub(super) fn coalesced<E>(
    chunks: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> impl Stream<Item = Result<Bytes, E>> {
    let state = (chunks.fuse(), None);
    futures::stream::unfold(state, |(mut chunks, stashed)| async move {
        let first = match stashed {
            Some(item) => Some(item),
            None => chunks.next().await,
        };
        match first? {
            Ok(chunk) if chunk.len() < SMALL => {
                let (joined, next) = join(&chunk, &mut chunks).await;
                Some((Ok(joined), (chunks, next)))
            }
            item => Some((item, (chunks, None))),
        }
    })
}

/// Joins a small chunk with those that follow in time. Returns also the next item, if it is no part of them.
async fn join<E>(
    first: &Bytes,
    chunks: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
) -> (Bytes, Option<Result<Bytes, E>>) {
    let (mut joined, end) = (BytesMut::from(&first[..]), Instant::now() + WAIT);
    while joined.len() < ENOUGH {
        match timeout_at(end, chunks.next()).await {
            Ok(Some(Ok(chunk))) if chunk.len() < SMALL => joined.extend_from_slice(&chunk),
            Ok(Some(other)) => return (joined.freeze(), Some(other)),
            Ok(None) | Err(_) => break,
        }
    }
    (joined.freeze(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use proptest::prelude::*;

    /// A body in single bytes, at once or one by one, is joined into few chunks.
    #[tokio::test]
    async fn single_bytes_are_joined() {
        let bytes = stream::iter(0..100_000).map(|_| Ok::<_, ()>(Bytes::from_static(b"x")));
        let joined: Vec<_> = coalesced(bytes).collect().await;
        assert!(joined.len() <= 1_000, "{} chunks", joined.len());
        let slow = stream::iter(0..200).then(|_| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, ()>(Bytes::from_static(b"x"))
        });
        let joined: Vec<_> = coalesced(Box::pin(slow)).collect().await;
        assert!(joined.len() <= 100, "{} chunks", joined.len());
    }

    proptest! {
        /// All bytes stay, in order, and an error ends them where it was.
        #[test]
        fn joined_chunks_have_the_same_bytes(
            lengths in prop::collection::vec(0_usize..3 * SMALL, 0..20),
            fails in any::<bool>(),
        ) {
            let chunk = |(index, length): (usize, &usize)| Bytes::from(vec![u8::try_from(index).unwrap(); *length]);
            let chunks: Vec<_> = lengths.iter().enumerate().map(chunk).collect();
            let mut items: Vec<_> = chunks.iter().cloned().map(Ok).collect();
            items.extend(fails.then_some(Err(())));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let found = runtime.block_on(coalesced(stream::iter(items)).collect::<Vec<_>>());
            let end = found.len() - usize::from(fails);
            prop_assert!(found[..end].iter().all(Result::is_ok) && found[end..].iter().all(Result::is_err));
            let bytes: Vec<_> = found.into_iter().flatten().collect();
            prop_assert_eq!(bytes.concat(), chunks.concat());
        }
    }
}
