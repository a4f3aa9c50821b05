//! The body of a blob, counted as it arrives.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prometheus_client::metrics::counter::Counter;
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::error::{Error, describe};
use super::last_error::ErrorRecord;
use super::min_throughput::chunks;
use super::request::PermittedResponse;
use super::transport::Transport;

/// The chunks of a body.
pub(crate) type BodyStream = BoxStream<'static, Result<Bytes, Error>>;

/// The bytes of a blob as they arrive. The stream ends with an error if they end early or stall.
pub struct BlobBody {
    pub(super) chunks: BodyStream,
    /// The number of missing bytes, if it is known.
    pub(super) left: Option<u64>,
    pub(super) done: bool,
    /// The counter of bytes that the upstream sent; one of its own for those of another origin.
    pub(super) received: Counter,
    /// The record of errors of the upstream; `None` for another origin.
    pub(super) errors: Option<ErrorRecord>,
    /// The place among the downloads that may run.
    pub(super) permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobBody")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Stream for BlobBody {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let item = match ready!(self.chunks.poll_next_unpin(cx)) {
            Some(Ok(chunk)) => self.counted(chunk).map(Some),
            Some(Err(error)) => Err(error),
            None => match self.left {
                Some(left @ 1..) => Err(Error::unavailable(format!("the body ended {left} bytes early"))),
                _ => Ok(None),
            },
        };
        self.done = !matches!(item, Ok(Some(_)));
        if let Err(error) = &item {
            self.record(error);
        }
        Poll::Ready(item.transpose())
    }
}

impl BlobBody {
    pub(super) fn new(permitted: PermittedResponse, length: Option<u64>, transport: &Transport) -> Self {
        let counter = transport.metrics.received(permitted.answer.kind);
        let body = received(permitted.answer.response);
        let body = Self::from_chunks(body, length, transport.timeouts.idle, permitted.permit);
        Self {
            received: counter,
            errors: Some(transport.errors.clone()),
            ..body
        }
    }

    /// Creates the body of an answer of another origin; `left` is its length, `permit` its place among the requests.
    pub(crate) fn from_chunks(
        body: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
        left: Option<u64>,
        idle: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            chunks: chunks(body, idle).boxed(),
            left,
            done: false,
            received: Counter::default(),
            errors: None,
            permit,
        }
    }

    /// Returns a body that is labelled as a page, unless it begins as one (HTML): labels prove nothing.
    ///
    /// # Errors
    /// `page` for HTML; the error of a body that breaks before its first byte.
    pub(super) async fn unless_page(mut self, page: Error) -> Result<Self, Error> {
        let first = match self.chunks.try_next().await {
            Ok(Some(first)) if is_html(&first) => Err(page),
            Ok(Some(first)) => Ok(first),
            Ok(None) => return Ok(self),
            Err(error) => Err(error),
        };
        let first = first.inspect_err(|error| self.record(error))?;
        let rest = std::mem::replace(&mut self.chunks, stream::empty().boxed());
        self.chunks = stream::iter([Ok(first)]).chain(rest).boxed();
        Ok(self)
    }

    fn record(&self, error: &Error) {
        if let Some(errors) = &self.errors {
            errors.record(error);
        }
    }

    fn counted(&mut self, chunk: Bytes) -> Result<Bytes, Error> {
        self.received.inc_by(chunk.len() as u64);
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(chunk.len() as u64)
                .ok_or_else(|| Error::malformed("more bytes than were announced"))?;
        }
        Ok(chunk)
    }
}

/// Returns `true` for the beginning of an HTML document.
fn is_html(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let begins_with = |tag: &[u8]| {
        text.get(..tag.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(tag))
    };
    begins_with(b"<!doctype html") || begins_with(b"<html")
}

/// Returns the body of a response without its header, which may be large, for as long as the body comes.
pub(super) fn received(response: Response) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let body = response.bytes_stream();
    body.map_err(|error| Error::unavailable(describe(error)))
}
