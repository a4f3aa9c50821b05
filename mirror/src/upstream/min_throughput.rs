//! Minimum throughput of bodies.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::coalesce::coalesced;
use super::error::Error;

/// Minimum throughput in bytes per second, measured only while waiting (cf. curl's low-speed limit); package managers
/// use about the same. A slower link never completes a layer; another connection may.
const MIN_RATE: u64 = 1024;

/// Returns `true` if this many bytes suffice for this waiting time; a time below a second counts as one.
pub(crate) fn meets_minimum(bytes: u64, waited: Duration) -> bool {
    bytes >= MIN_RATE.saturating_mul(waited.as_secs().max(1))
}

/// Returns the chunks of a body. Each must arrive within `idle`, and each period of `idle` must meet the minimum
/// ([`meets_minimum`]). The time that a slow reader takes between chunks does not count.
pub(super) fn chunks<S>(body: S, idle: Duration) -> impl Stream<Item = Result<Bytes, Error>>
where
    S: Stream<Item = Result<Bytes, Error>>,
{
    let body = coalesced(Box::pin(body));
    let state = (Box::pin(body), MinimumThroughput::over(idle));
    futures::stream::try_unfold(state, move |(mut body, mut throughput)| async move {
        let (wanted, seconds) = (Instant::now(), idle.as_secs());
        match tokio::time::timeout(idle, body.next()).await {
            Ok(Some(Ok(chunk))) if throughput.is_fast_enough(chunk.len(), wanted.elapsed()) => {
                Ok(Some((chunk, (body, throughput))))
            }
            Ok(Some(Ok(_))) => Err(Error::unavailable(format!(
                "the body came by drops for {seconds} s"
            ))),
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(error),
            Err(_) => Err(Error::unavailable(format!(
                "the body stopped coming for {seconds} s"
            ))),
        }
    })
}

/// The throughput of a body, measured in consecutive periods of waiting.
#[derive(Debug)]
struct MinimumThroughput {
    stretch: Duration,
    waited: Duration,
    bytes: u64,
}

impl MinimumThroughput {
    /// Creates a measurement with periods of this length.
    fn over(stretch: Duration) -> Self {
        Self {
            stretch,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Adds bytes and waiting time; returns `false` if a complete period was too slow. A wait of two periods was caused
    /// by the reader, because waits for the upstream end after one.
    fn is_fast_enough(&mut self, bytes: usize, waited: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.stretch {
            return true;
        }
        let enough = waited >= self.stretch * 2 || meets_minimum(self.bytes, self.waited);
        *self = Self::over(self.stretch);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRETCH: Duration = Duration::from_secs(30);

    fn is_fast_enough(chunks: &[(usize, u64)]) -> bool {
        let mut throughput = MinimumThroughput::over(STRETCH);
        chunks
            .iter()
            .all(|(bytes, seconds)| throughput.is_fast_enough(*bytes, Duration::from_secs(*seconds)))
    }

    /// An upstream that sends a byte now and then is below the minimum throughput.
    #[test]
    fn occasional_bytes_are_too_slow() {
        assert!(!is_fast_enough(&[(1, 29), (1, 29)]));
        assert!(!is_fast_enough(&[(1, 1); 30]));
        assert!(
            !is_fast_enough(&[(1_000_000, 1), (1, 29), (1, 29), (1, 29)]),
            "after a good start"
        );
    }

    /// A slow link, a link that stalls and a slow reader keep the minimum throughput.
    #[test]
    fn slow_links_and_slow_readers_keep_up() {
        assert!(is_fast_enough(&[(1024, 1); 300]));
        assert!(is_fast_enough(&[(1, 29), (100_000, 1)].repeat(10)));
        assert!(is_fast_enough(&[(1, 300); 10]));
    }

    /// A short wait requires the bytes of one second.
    #[test]
    fn short_wait_requires_one_seconds_bytes() {
        assert!(!meets_minimum(1, Duration::from_millis(1)));
        assert!(meets_minimum(1024, Duration::from_millis(1)));
    }
}
