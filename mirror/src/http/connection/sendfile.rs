//! Parts of blobs that the kernel copies to a socket: `sendfile` saves the copy through the memory of the process.
//!
//! hyper writes bytes only. So a body yields a placeholder for a part, a slice of memory that is never read, and queues
//! the part itself; the connection's stream recognizes a placeholder by its address, and sends the part in its place.
//! Only plain TCP with HTTP/1 has such a queue: there hyper passes the slices of a body on unchanged, while HTTP/2 and
//! TLS would copy them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::sendfile;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::block_reader;
use crate::http::endpoints::StoredBlob;

/// The largest part, in bytes. Between parts a body counts them, and checks that the page cache has the next one.
const MAX_PART: u64 = 1024 * 1024;
/// The smallest part, in bytes: for less, the system call costs as much as a copy.
const MIN_PART: u64 = 64 * 1024;

/// Memory that is never read nor written, so that the system never allocates pages for it.
#[expect(clippy::cast_possible_truncation, reason = "far below 4 GiB")]
static PLACEHOLDER: LazyLock<Bytes> = LazyLock::new(|| vec![0; (MAX_PART + MIN_PART) as usize].into());

/// The parts that one connection has to send, in the order of their placeholders.
#[derive(Clone, Default)]
pub(in crate::http) struct SendfileQueue(Arc<Mutex<VecDeque<FilePart>>>);

struct FilePart {
    file: Arc<File>,
    left: Range<u64>,
    /// The stored blob, which is dropped from the cache if it cannot be read; `None` for a fill, which handles its own
    /// errors.
    stored: Option<StoredBlob>,
}

impl SendfileQueue {
    /// Queues the first part of this range and returns its placeholder; `None` if the range must be read instead, because
    /// it is small, or because the kernel would wait for the disk and block all connections of this thread.
    pub(in crate::http) fn push(
        &self,
        file: &Arc<File>,
        range: &Range<u64>,
        stored: Option<&StoredBlob>,
    ) -> Option<Bytes> {
        let whole = range.end - range.start;
        // The last part takes a remainder that would be too small.
        let length = if whole < MAX_PART + MIN_PART {
            whole
        } else {
            MAX_PART
        };
        let left = range.start..range.start + length;
        if length < MIN_PART || !block_reader::is_cached(file, &left) {
            return None;
        }
        let placeholder = PLACEHOLDER.slice(..usize::try_from(length).ok()?);
        self.0.lock().push_back(FilePart {
            file: Arc::clone(file),
            left,
            stored: stored.cloned(),
        });
        Some(placeholder)
    }

    /// Sends the bytes of the first part that the socket takes. `expected` is the remaining length of its placeholder.
    fn send(&self, stream: &TcpStream, expected: usize) -> io::Result<usize> {
        let mut parts = self.0.lock();
        let is_expected = |part: &&mut FilePart| part.left.end - part.left.start == expected as u64;
        let Some(part) = parts.front_mut().filter(is_expected) else {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "no part for this placeholder",
            ));
        };
        let mut offset = part.left.start;
        let sent = stream.try_io(Interest::WRITABLE, || {
            match sendfile(stream, &part.file, Some(&mut offset), expected)? {
                0 => Err(ErrorKind::UnexpectedEof.into()),
                sent => Ok(sent),
            }
        })?;
        part.left.start += sent as u64;
        if part.left.is_empty() {
            parts.pop_front();
        }
        Ok(sent)
    }

    /// Drops the first part after a failure, and reads it: that shows if the file is damaged, or the socket failed.
    fn on_failure(&self) {
        let failed = self.0.lock().pop_front();
        if let Some(FilePart {
            left,
            stored: Some(stored),
            ..
        }) = failed
        {
            tokio::spawn(async move { stored.read(&left).await });
        }
    }
}

/// A TCP stream that sends parts of files in place of their placeholders.
pub(super) struct SendfileStream {
    stream: TcpStream,
    queue: SendfileQueue,
}

impl SendfileStream {
    pub(super) fn new(stream: TcpStream) -> Self {
        let queue = SendfileQueue::default();
        Self { stream, queue }
    }

    /// Waits for the first bytes and copies them; they remain in the socket.
    pub(super) async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(bytes).await
    }

    pub(super) fn queue(&self) -> SendfileQueue {
        self.queue.clone()
    }

    fn poll_send(&self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.queue.send(&self.stream, length) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => {
                    self.queue.on_failure();
                    return Poll::Ready(Err(error));
                }
                sent => return Poll::Ready(sent),
            }
        }
    }
}

/// Returns `true` for a placeholder, or for the remainder of one.
fn is_placeholder(slice: &[u8]) -> bool {
    PLACEHOLDER.as_ptr_range().contains(&slice.as_ptr()) && !slice.is_empty()
}

impl AsyncRead for SendfileStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SendfileStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices.iter().position(|slice| is_placeholder(slice)) {
            Some(0) => self.poll_send(cx, slices[0].len()),
            plain => {
                let before = &slices[..plain.unwrap_or(slices.len())];
                Pin::new(&mut self.stream).poll_write_vectored(cx, before)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
