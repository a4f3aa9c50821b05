//! One line and one count for each request, when its body has ended.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tracing::info;

use crate::metrics::{Kind, Metrics, Outcome, Source};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are not kept: they are written to the log.
const LONGEST_ID: usize = 128;

/// What is said of a request.
pub(super) struct Record {
    pub(super) metrics: Metrics,
    pub(super) log: bool,
    pub(super) started: Instant,
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) client: String,
    pub(super) agent: String,
    pub(super) id: HeaderValue,
    pub(super) kind: Kind,
    pub(super) outcome: Outcome,
    pub(super) source: Source,
}

/// The client's id for the request, or one of ours.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sent = headers
        .get(&REQUEST_ID)
        .filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
    sent.cloned().unwrap_or_else(|| {
        use std::hash::{BuildHasher, Hasher, RandomState};
        let text = format!("{:016x}", RandomState::new().build_hasher().finish());
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// A header as text for the log.
pub(super) fn text(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// Lets the record be written when the last byte has gone, or the client has.
pub(super) fn recorded(response: Response, record: Record) -> Response {
    let status = response.status();
    record.metrics.requests_active.inc();
    response.map(|body| {
        Body::new(Recorded {
            body,
            bytes: 0,
            status,
            ended: false,
            record,
        })
    })
}

struct Recorded {
    body: Body,
    bytes: u64,
    status: StatusCode,
    ended: bool,
    record: Record,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(error)) => info!(id = ?self.record.id, %error, "an answer was cut short"),
            None => {}
        }
        self.ended = matches!(frame, None | Some(Err(_))) || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let (record, took) = (&self.record, self.record.started.elapsed());
        record.metrics.requests_active.dec();
        record
            .metrics
            .request(&record.method, record.kind, self.status, record.outcome, took);
        record.metrics.served(record.source, self.bytes);
        if record.log {
            self.line(took);
        }
    }
}

impl Recorded {
    fn line(&self, took: Duration) {
        let record = &self.record;
        info!(
            target: "access",
            method = %record.method,
            target = %record.target,
            status = self.status.as_u16(),
            outcome = record.outcome.as_str(),
            bytes = self.bytes,
            seconds = took.as_secs_f64(),
            whole = self.ended || self.body.is_end_stream(),
            client = %record.client,
            agent = %record.agent,
            id = record.id.to_str().unwrap_or_default(),
            "request"
        );
    }
}
