//! Pieces of blobs that the kernel puts into a socket itself: `sendfile` saves the copy through our memory.
//!
//! hyper writes bytes only. So a body yields a stand-in for a piece, a slice of memory that nobody reads, and queues
//! the piece itself beside it; the connection's stream knows a stand-in by its address, and sends the piece in its
//! place. Over plain TCP and HTTP/1 alone there is such a queue: there hyper hands on the slices that a body yields,
//! while HTTP/2 and TLS would look into them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::fs::sendfile;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::stored::Stored;
use crate::block;

/// What is sent at a time. Between pieces a body counts them, and looks whether the next one is in memory.
const PIECE: u64 = 1024 * 1024;
/// Less is read: a call more costs what a copy of this costs.
const SMALLEST: u64 = 64 * 1024;

/// Never read nor written, so that the system gives no memory for it.
#[expect(clippy::cast_possible_truncation, reason = "far below 4 GiB")]
static STAND_IN: LazyLock<Bytes> = LazyLock::new(|| vec![0; (PIECE + SMALLEST) as usize].into());

/// The pieces that one connection is to send, in the order of their stand-ins.
#[derive(Clone, Default)]
pub(super) struct Pieces(Arc<Mutex<VecDeque<Piece>>>);

struct Piece {
    file: Arc<File>,
    left: Range<u64>,
    /// What is to be dropped where it can't be read; a download under way is looked after by itself.
    stored: Option<Stored>,
}

impl Pieces {
    /// Queues the first piece of this range and returns what stands in for it; `None` where it is to be read instead:
    /// as it is small, or as the kernel would wait for the disk and hold up everybody else on this thread.
    pub(super) fn queue(
        &self,
        file: &Arc<File>,
        range: &Range<u64>,
        stored: Option<&Stored>,
    ) -> Option<Bytes> {
        let whole = range.end - range.start;
        // No rest is left that would be too small.
        let length = if whole < PIECE + SMALLEST { whole } else { PIECE };
        let left = range.start..range.start + length;
        if length < SMALLEST || !block::is_cached(file, &left) {
            return None;
        }
        let stand_in = STAND_IN.slice(..usize::try_from(length).ok()?);
        self.lock().push_back(Piece {
            file: Arc::clone(file),
            left,
            stored: stored.cloned(),
        });
        Some(stand_in)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Piece>> {
        // Nothing is done under this lock that could leave the queue half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends of the first piece what the socket takes. `expected` is what is left of its stand-in.
    fn send(&self, stream: &TcpStream, expected: usize) -> io::Result<usize> {
        let mut pieces = self.lock();
        let same = |piece: &&mut Piece| piece.left.end - piece.left.start == expected as u64;
        let Some(piece) = pieces.front_mut().filter(same) else {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "no piece for this stand-in",
            ));
        };
        let mut offset = piece.left.start;
        let sent = stream.try_io(Interest::WRITABLE, || {
            match sendfile(stream, &piece.file, Some(&mut offset), expected)? {
                0 => Err(ErrorKind::UnexpectedEof.into()),
                sent => Ok(sent),
            }
        })?;
        piece.left.start += sent as u64;
        if piece.left.is_empty() {
            pieces.pop_front();
        }
        Ok(sent)
    }

    /// Sending failed. Whether the socket or the file is to blame, reading tells.
    fn failed(&self) {
        let failed = self.lock().pop_front();
        if let Some(Piece {
            left,
            stored: Some(stored),
            ..
        }) = failed
        {
            tokio::spawn(async move { stored.read(&left).await });
        }
    }
}

/// A TCP connection that sends pieces in place of what stands in for them.
pub(super) struct Direct {
    stream: TcpStream,
    pieces: Pieces,
}

impl Direct {
    pub(super) fn new(stream: TcpStream) -> Self {
        let pieces = Pieces::default();
        Self { stream, pieces }
    }

    /// The first bytes, once there are some; they stay to be read.
    pub(super) async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(bytes).await
    }

    pub(super) fn pieces(&self) -> Pieces {
        self.pieces.clone()
    }

    fn poll_send(&self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.pieces.send(&self.stream, length) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => {
                    self.pieces.failed();
                    return Poll::Ready(Err(error));
                }
                sent => return Poll::Ready(sent),
            }
        }
    }
}

/// True for what a body yields in place of a piece, or for a rest of it.
fn stands_in(slice: &[u8]) -> bool {
    STAND_IN.as_ptr_range().contains(&slice.as_ptr()) && !slice.is_empty()
}

impl AsyncRead for Direct {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Direct {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices.iter().position(|slice| stands_in(slice)) {
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
