//! A client's stream and the bodies sent to it, which record how far the connection got.
//!
//! [`super::timeouts`] reads these counters. They are relaxed atomics, because the same task writes and reads them;
//! [`super::limit`] reads them from another thread, and needs no order among them.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::client_memory::{Permit, hold};
use super::header_meter::HeaderMeter;
use crate::http::access_log::RecordedBody;

/// The end of a request header (RFC 9112, 2.1).
const HEADER_END: u32 = u32::from_be_bytes(*b"\r\n\r\n");
/// The longest data of an HTTP/2 response that its stream's place pays for; longer data has memory of its own.
const MAX_SMALL_DATA: usize = 16 * 1024;
/// A write to an HTTP/2 client of at most this many bytes may hold only pings and their acknowledgements: no progress.
const MAX_CONTROL_FRAMES: usize = 256;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// The client sends the header of a request.
    ReadingRequest,
    /// The client waits for the server.
    Processing,
    /// The server waits until the client takes more of a response.
    WritingResponse,
    /// The client took all responses and has sent nothing since.
    Idle,
}

/// The counters of one connection.
#[derive(Debug, Default)]
pub(super) struct ConnectionProgress {
    requests: AtomicU32,
    active: AtomicU32,
    /// The active requests that wait for the server: for a response, or for more of it.
    processing: AtomicU32,
    /// The last four bytes from the client.
    tail: AtomicU32,
    /// `true` for HTTP/2, whose headers do not end in [`HEADER_END`]. A client that leaves a header unfinished there
    /// cannot answer pings, and hyper closes its connection.
    is_http2: AtomicBool,
    /// `true` while a write waits for the client.
    blocked: AtomicBool,
    /// The number of writes that the client took.
    writes: AtomicU32,
    /// The responses that wait for memory, which the client's address holds.
    waiting_for_memory: AtomicU32,
    /// The places of HTTP/2 requests whose responses may not be sent yet.
    unsent: Mutex<Vec<Arc<Permit>>>,
    /// `true` if the connection has to make room for another one.
    evicted: AtomicBool,
    /// `true` if a request of the connection found no place.
    overloaded: AtomicBool,
}

impl ConnectionProgress {
    /// Records a request, which is active until the returned guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>, version: Version) -> TrackedRequest {
        self.is_http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        self.processing.fetch_add(1, Ordering::Relaxed);
        TrackedRequest {
            progress: Arc::clone(self),
            processing: true,
            place: None,
            answered: None,
        }
    }

    /// Records that a response waits for memory, until the returned guard is dropped.
    pub(super) fn wait_for_memory(&self) -> WaitingBody<'_> {
        self.waiting_for_memory.fetch_add(1, Ordering::Relaxed);
        WaitingBody(&self.waiting_for_memory)
    }

    /// Returns the state of the connection.
    pub(super) fn state(&self) -> ConnectionState {
        let is_http2 = self.is_http2.load(Ordering::Relaxed);
        let is_between_headers = || is_http2 || self.tail.load(Ordering::Relaxed) == HEADER_END;
        if self.blocked.load(Ordering::Relaxed) {
            ConnectionState::WritingResponse
        } else if self.active.load(Ordering::Relaxed) > 0 {
            let waiting = self.waiting_for_memory.load(Ordering::Relaxed);
            let processing = self.processing.load(Ordering::Relaxed);
            // An HTTP/2 stream may take bytes while the client opens no window for those of a response. A response that
            // waits for memory waits for its client to take others.
            if (is_http2 && processing <= waiting) || (!is_http2 && waiting > 0) {
                ConnectionState::WritingResponse
            } else {
                ConnectionState::Processing
            }
        } else if self.requests.load(Ordering::Relaxed) > 0 && is_between_headers() {
            ConnectionState::Idle
        } else {
            ConnectionState::ReadingRequest
        }
    }

    /// Returns the number of steps that the client made: requests sent, and writes taken.
    pub(super) fn steps(&self) -> u32 {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        count(&self.requests).wrapping_add(count(&self.writes))
    }

    /// Marks the connection as one that has to make room for another one.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if the connection has to make room for another one.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Marks the connection as one whose client has more requests than places.
    pub(super) fn overload(&self) {
        self.overloaded.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if a request of the connection found no place.
    pub(super) fn is_overloaded(&self) -> bool {
        self.overloaded.load(Ordering::Relaxed)
    }

    fn record_read(&self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(4)..];
        let tail = last.iter().fold(self.tail.load(Ordering::Relaxed), |tail, byte| {
            tail << 8 | u32::from(*byte)
        });
        self.tail.store(tail, Ordering::Relaxed);
    }
}

/// A guard of a request that is not over.
#[derive(Debug)]
pub(super) struct TrackedRequest {
    progress: Arc<ConnectionProgress>,
    /// `true` while the client waits for the server.
    processing: bool,
    /// The place of an HTTP/2 request.
    place: Option<Arc<Permit>>,
    /// Closed once the request is answered.
    answered: Option<oneshot::Sender<Infallible>>,
}

impl TrackedRequest {
    /// Returns another guard of the request, and a receiver that is closed once this one is dropped.
    pub(super) fn share(&mut self) -> (Self, oneshot::Receiver<Infallible>) {
        self.progress.active.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = oneshot::channel();
        self.answered = Some(sender);
        let shared = Self {
            progress: Arc::clone(&self.progress),
            processing: false,
            place: self.place.clone(),
            answered: None,
        };
        (shared, answered)
    }

    /// Adds the place of an HTTP/2 request, which is held until the response is sent.
    pub(super) fn holding(mut self, place: Option<Permit>) -> Self {
        self.place = place.map(Arc::new);
        self
    }

    /// Returns the bytes of a response, which hold the request's place until the connection has sent them.
    fn keep_place(&self, bytes: Bytes) -> Bytes {
        match &self.place {
            Some(place) if bytes.len() <= MAX_SMALL_DATA => hold(bytes, Arc::clone(place)),
            _ => bytes,
        }
    }

    /// Records that the server has bytes for the client.
    pub(super) fn on_response(&mut self) {
        if std::mem::take(&mut self.processing) {
            self.progress.processing.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Records that the client took all bytes that the server had.
    pub(super) fn on_wait(&mut self) {
        if !std::mem::replace(&mut self.processing, true) {
            self.progress.processing.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for TrackedRequest {
    fn drop(&mut self) {
        self.on_response();
        self.progress.active.fetch_sub(1, Ordering::Relaxed);
        if let Some(place) = self.place.take() {
            self.progress.unsent.lock().push(place);
        }
    }
}

/// A guard of a response that waits for memory.
pub(super) struct WaitingBody<'a>(&'a AtomicU32);

impl Drop for WaitingBody<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's stream that records the progress of its connection.
pub(super) struct TrackedIo<S> {
    pub(super) stream: S,
    pub(super) progress: Arc<ConnectionProgress>,
    pub(super) meter: HeaderMeter,
}

impl<S> TrackedIo<S> {
    /// Counts bytes from the client; fails if there is no memory for them.
    fn record_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let progress = &self.progress;
        progress.record_read(bytes);
        let (requests, active) = (&progress.requests, &progress.active);
        let is_active = active.load(Ordering::Relaxed) > 0;
        if self
            .meter
            .record(bytes, requests.load(Ordering::Relaxed), is_active)
        {
            return Ok(());
        }
        Err(io::Error::other(
            "the client's address has too many unfinished headers",
        ))
    }

    fn record_write(&self, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let is_http2 = self.progress.is_http2.load(Ordering::Relaxed);
        if matches!(wrote, Poll::Ready(Ok(length)) if !is_http2 || length > MAX_CONTROL_FRAMES) {
            self.progress.writes.fetch_add(1, Ordering::Relaxed);
        }
        self.record_blocked(wrote)
    }

    fn record_blocked<T>(&self, wrote: Poll<T>) -> Poll<T> {
        self.progress.blocked.store(wrote.is_pending(), Ordering::Relaxed);
        wrote
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TrackedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let recorded = self.record_read(&buffer.filled()[before..]);
        read.map(|read| read.and(recorded))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrackedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.record_write(wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.record_write(wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() && self.progress.is_http2.load(Ordering::Relaxed) {
            self.progress.unsent.lock().clear();
        }
        self.record_blocked(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of a response, whose request is active until the body is dropped.
pub(super) struct TrackedBody {
    pub(super) body: RecordedBody,
    pub(super) request: TrackedRequest,
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() {
            self.request.on_wait();
        } else {
            self.request.on_response();
        }
        frame.map_ok(|frame| frame.map_data(|data| self.request.keep_place(data)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
