//! How slowly a body may come.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use reqwest::Response;

use super::error::{Error, describe};

/// What a body brings at the least while it is waited for, in bytes a second; package managers cut below about as much.
/// A link that is slower for long brings no layer to its end: another connection may.
const LEAST_RATE: u64 = 1024;

/// Whether so many bytes are enough for the time that they were waited for. A time below a second counts as one.
pub(crate) fn is_enough(bytes: u64, waited: Duration) -> bool {
    bytes >= LEAST_RATE.saturating_mul(waited.as_secs().max(1))
}

/// A body's chunks. Each may take `idle` from when it is wanted, and those that were waited for so long have to bring
/// enough ([`is_enough`]): how long a slow reader takes between two of them does not count.
pub(super) fn chunks(response: Response, idle: Duration) -> impl Stream<Item = Result<Bytes, Error>> {
    let state = (response, Pace::over(idle));
    futures::stream::try_unfold(state, move |(mut response, mut pace)| async move {
        let (wanted, seconds) = (Instant::now(), idle.as_secs());
        match tokio::time::timeout(idle, response.chunk()).await {
            Ok(Ok(Some(chunk))) if pace.keeps_up(chunk.len(), wanted.elapsed()) => {
                Ok(Some((chunk, (response, pace))))
            }
            Ok(Ok(Some(_))) => Err(Error::unavailable(format!(
                "the body came by drops for {seconds} s"
            ))),
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(Error::unavailable(describe(error))),
            Err(_) => Err(Error::unavailable(format!(
                "the body stopped coming for {seconds} s"
            ))),
        }
    })
}

/// How fast a body comes, one stretch of waiting after the other.
#[derive(Debug)]
struct Pace {
    stretch: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Judged whenever it was waited for so long.
    fn over(stretch: Duration) -> Self {
        Self {
            stretch,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Some bytes came; whether they keep up. A wait of two stretches was the reader's, who did not look in between:
    /// those for the upstream end after one.
    fn keeps_up(&mut self, bytes: usize, waited: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.stretch {
            return true;
        }
        let enough = waited >= self.stretch * 2 || is_enough(self.bytes, self.waited);
        *self = Self::over(self.stretch);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRETCH: Duration = Duration::from_secs(30);

    fn keeps_up(chunks: &[(usize, u64)]) -> bool {
        let mut pace = Pace::over(STRETCH);
        chunks
            .iter()
            .all(|(bytes, seconds)| pace.keeps_up(*bytes, Duration::from_secs(*seconds)))
    }

    #[test]
    fn a_byte_now_and_then_does_not_keep_up() {
        assert!(!keeps_up(&[(1, 29), (1, 29)]));
        assert!(!keeps_up(&[(1, 1); 30]));
        assert!(
            !keeps_up(&[(1_000_000, 1), (1, 29), (1, 29), (1, 29)]),
            "after a good start"
        );
    }

    #[test]
    fn a_slow_link_one_that_stalls_and_a_slow_reader_do() {
        assert!(keeps_up(&[(1024, 1); 300]));
        assert!(keeps_up(&[(1, 29), (100_000, 1)].repeat(10)));
        assert!(keeps_up(&[(1, 300); 10]));
    }

    #[test]
    fn a_short_time_has_to_bring_a_seconds_bytes() {
        assert!(!is_enough(1, Duration::from_millis(1)));
        assert!(is_enough(1024, Duration::from_millis(1)));
    }
}
