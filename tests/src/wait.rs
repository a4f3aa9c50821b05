//! Waiting for a condition instead of a time.

use std::future::Future;
use std::time::{Duration, Instant};

/// The condition did not hold in time.
#[derive(Debug, thiserror::Error)]
#[error("after {} s there was still no {what}", .limit.as_secs_f32())]
pub struct TimedOut {
    what: String,
    limit: Duration,
}

/// Asks `probe` until it answers, at most for `limit`.
///
/// `what` completes the sentence "there was still no …".
pub async fn until<T, F, P>(what: &str, limit: Duration, mut probe: F) -> Result<T, TimedOut>
where
    F: FnMut() -> P,
    P: Future<Output = Option<T>>,
{
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(answer) = probe().await {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            return Err(TimedOut {
                what: what.to_owned(),
                limit,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_the_first_answer() {
        let mut asked = 0;
        let answer = until("third question", Duration::from_secs(5), || {
            asked += 1;
            let answer = (asked == 3).then_some(asked);
            async move { answer }
        })
        .await;
        assert_eq!(answer.unwrap(), 3);
    }

    /// The error of a timeout names what did not happen.
    #[tokio::test]
    async fn timeout_error_names_the_wait() {
        let error = until::<(), _, _>("dawn", Duration::from_millis(20), || async { None })
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "after 0.02 s there was still no dawn");
    }
}
