//! Bodies of requests, which no endpoint reads: discarded for a moment, so that the client reads its response.
//!
//! A server that closes a connection, or resets a stream, on which the client still sends can make the client lose the
//! response (RFC 9112, 9.6; RFC 9113, 8.1).

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Version, request};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::tracked_io::TrackedRequest;

/// The time for which the body is discarded after the response.
const LINGER: Duration = Duration::from_secs(1);

/// The most bytes of a body that are discarded; the flow control of HTTP/2 holds the others back.
const MAX_DISCARDED: usize = 64 * 1024 * 1024;

/// A body of a request that came with the header, or follows it.
struct UnreadBody {
    body: Incoming,
    /// Counts the request as active, so that the bytes of its body are not those of a header.
    _request: TrackedRequest,
}

/// Discards the body of a request in a task of its own until [`LINGER`] after its response, if there is one.
pub(super) fn discard(body: Incoming, parts: &request::Parts, request: &mut TrackedRequest) {
    // A client that waits for 100 (Continue) may send another request in place of the body: its connection closes.
    if body.is_end_stream() || parts.headers.contains_key(EXPECT) {
        return;
    }
    let (shared, answered) = request.share();
    let unread = UnreadBody {
        body,
        _request: shared,
    };
    let is_http2 = parts.version == Version::HTTP_2;
    tokio::spawn(unread.discard(answered, is_http2));
}

impl UnreadBody {
    /// Reads the body to its end, or until [`LINGER`] after `answered` is closed.
    async fn discard(mut self, answered: oneshot::Receiver<Infallible>, is_http2: bool) {
        if is_http2 {
            // From the start: the connection would keep the bytes.
            let linger = async {
                let _ = answered.await;
                sleep(LINGER).await;
            };
            tokio::select! {
                () = self.read() => {}
                () = linger => {}
            }
        } else {
            let _ = answered.await;
            let _ = timeout(LINGER, self.read()).await;
        }
    }

    async fn read(&mut self) {
        let mut left = MAX_DISCARDED;
        while let Some(Ok(frame)) = self.body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                std::future::pending::<()>().await;
            }
        }
    }
}
