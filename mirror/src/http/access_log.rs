//! The access log: a line and a count for each request, when its body has ended or its client has left.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tracing::{Level, Span, info};
use url::form_urlencoded;

use super::failures::{Failed, Kind};
use super::{App, EndpointResponse, Peer, headers, span};
use crate::digest::Digest;
use crate::logging;
use crate::metrics::{self, Outcome, RequestRecord};
use crate::name::{Host, Repository};
use crate::secret::{mask_user, mask_user_in_path};
use crate::traces;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The maximum length of a request id, which the log contains; the server replaces a longer one.
const MAX_ID_LENGTH: usize = 128;
/// The maximum length of a method in the log.
const MAX_METHOD_LENGTH: usize = 64;
/// The query parameters that the log contains; any other may be a secret.
const LOGGED_PARAMETERS: [&str; 4] = ["ns", "n", "last", "artifactType"];
/// The status of a request whose client left before the response, as in nginx.
const CLIENT_LEFT: u16 = 499;

/// The data of a request for the log, the metrics and the trace, reported when it ends for any reason.
pub(super) struct Record {
    app: Arc<App>,
    line: Option<Box<Line>>,
    span: Span,
    /// The time at which the request arrived.
    pub(super) started: Instant,
    method: Method,
    kind: metrics::Kind,
    status: StatusCode,
    outcome: Outcome,
    bytes: u64,
    /// The time from the request to the first byte of the body.
    first_byte: Option<Duration>,
    /// The length of the body, if it is known: a reader may stop at the last byte without polling for the end.
    length: Option<u64>,
    ended: bool,
    /// The user of the request, if the htpasswd file lists it.
    pub(super) user: Option<Box<str>>,
    upstream: Option<Host>,
    repository: Option<Repository>,
    digest: Option<Digest>,
    origin: metrics::Source,
    /// The id of the request, from the client or generated.
    pub(super) id: HeaderValue,
}

/// The fields of a log line only.
struct Line {
    target: String,
    client: Arc<str>,
    agent: String,
}

impl Line {
    fn new(parts: &Parts, peer: &Peer) -> Self {
        Self {
            target: logging::shorten(shown(&parts.uri)),
            client: Arc::clone(&peer.name),
            agent: text(&parts.headers, &header::USER_AGENT),
        }
    }
}

impl Record {
    /// Starts a record when a request arrives, with a log line if the settings enable the access log.
    pub(super) fn begin(
        app: &Arc<App>,
        kind: metrics::Kind,
        parts: &Parts,
        peer: &Peer,
        span: &Span,
    ) -> Self {
        app.metrics.requests_active.inc();
        let line = app.settings.access_log.then(|| Box::new(Line::new(parts, peer)));
        Self {
            app: Arc::clone(app),
            line,
            span: span.clone(),
            started: Instant::now(),
            method: short_method(&parts.method),
            kind,
            status: StatusCode::from_u16(CLIENT_LEFT).unwrap_or(StatusCode::REQUEST_TIMEOUT),
            outcome: Outcome::None,
            bytes: 0,
            first_byte: None,
            length: None,
            ended: false,
            user: None,
            upstream: None,
            repository: None,
            digest: None,
            origin: metrics::Source::Upstream,
            id: request_id(&parts.headers),
        }
    }

    /// Returns the response with a body that records how much of it was sent.
    pub(super) fn attach(mut self, response: EndpointResponse) -> http::Response<RecordedBody> {
        self.status = response.response.status();
        self.outcome = response.outcome;
        self.length = length(&self.method, &response.response);
        (self.repository, self.digest) = (response.repository, response.digest);
        self.origin = response.origin;
        self.upstream = response.upstream;
        let response = headers::without_body(&self.method, response.response);
        response.map(|body| RecordedBody { body, record: self })
    }

    /// Logs the reason why a response ends early.
    fn log_truncated(&self, error: &axum::Error) {
        let failed = Failed {
            level: Level::WARN,
            kind: Kind {
                upstream: self.repository.as_ref().map(|repository| repository.host.clone()),
                status: self.status.as_u16(),
                code: None,
                class: "cut",
            },
            reason: error.to_string(),
            repository: self.repository.as_ref().map(ToString::to_string),
            reference: self.digest.as_ref().map(ToString::to_string),
            user: self.user.clone(),
            id: self.id.clone(),
        };
        self.app.failures.log(failed);
    }

    /// Returns `true` if the connection took the whole response.
    fn is_whole(&self) -> bool {
        self.ended || self.length == Some(self.bytes)
    }

    /// Returns the upstream that has the content of the request, if it is known.
    fn upstream(&self) -> Option<&Host> {
        let repository = self.repository.as_ref().map(|repository| &repository.host);
        repository.or(self.upstream.as_ref())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        span::end(&self.span, self.status, self.outcome, self.bytes, &self.id);
        let metrics = &self.app.metrics;
        metrics.requests_active.dec();
        let ended = RequestRecord {
            kind: self.kind,
            code: self.status,
            outcome: self.outcome,
            origin: self.origin,
            took,
            first_byte: self.first_byte.unwrap_or(took),
            bytes: self.bytes,
            trace: traces::sampled_trace(&self.span),
        };
        metrics.request(self.upstream(), &ended);
        let Some(line) = &self.line else { return };
        info!(
            target: "access",
            method = %self.method,
            target = %line.target,
            status = self.status.as_u16(),
            outcome = self.outcome.as_str(),
            bytes = self.bytes,
            seconds = took.as_secs_f64(),
            whole = self.is_whole(),
            client = %line.client,
            agent = %line.agent,
            user = self.user.as_deref(),
            id = self.id.to_str().unwrap_or_default(),
            "request"
        );
    }
}

/// Returns the number of bytes of the body, if it is known; zero for a response that only announces a length.
fn length(method: &Method, response: &Response) -> Option<u64> {
    if *method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED {
        return Some(0);
    }
    let exact = response.body().size_hint().exact();
    exact.or_else(|| {
        let announced = response.headers().get(header::CONTENT_LENGTH)?;
        announced.to_str().ok()?.parse().ok()
    })
}

/// Returns the method, cut to [`MAX_METHOD_LENGTH`].
fn short_method(method: &Method) -> Method {
    let name = method.as_str().as_bytes();
    let cut = name.get(..MAX_METHOD_LENGTH);
    cut.and_then(|cut| Method::from_bytes(cut).ok())
        .unwrap_or_else(|| method.clone())
}

/// Returns the path with the query parameters that the log may contain.
pub(super) fn shown(uri: &Uri) -> String {
    let path = mask_user_in_path(uri.path());
    let Some(query) = uri.query() else {
        return path.into_owned();
    };
    let pairs = form_urlencoded::parse(query.as_bytes());
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (key, value) in pairs.filter(|(key, _)| LOGGED_PARAMETERS.contains(&key.as_ref())) {
        query.append_pair(&key, &mask_user(&value));
    }
    match query.finish() {
        query if query.is_empty() => path.into_owned(),
        query => format!("{path}?{query}"),
    }
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sent = headers
        .get(&REQUEST_ID)
        .filter(|id| !id.is_empty() && id.len() <= MAX_ID_LENGTH);
    // A copy: the value is a part of a buffer with the whole header.
    let sent = sent.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok());
    sent.unwrap_or_else(|| {
        let number = RandomState::new().build_hasher().finish();
        HeaderValue::from_bytes(&hexadecimal(number)).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// Returns the 16 digits of a number.
fn hexadecimal(number: u64) -> [u8; 16] {
    let digit = |place: usize| {
        let [lowest, ..] = (number >> (60 - 4 * place)).to_le_bytes();
        b"0123456789abcdef"[usize::from(lowest & 15)]
    };
    std::array::from_fn(digit)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(|value| logging::shorten(value.to_owned()))
        .unwrap_or_default()
}

/// A body that records how much of it was sent.
pub struct RecordedBody {
    body: Body,
    record: Record,
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if self.record.first_byte.is_none() {
                    self.record.first_byte = Some(self.record.started.elapsed());
                }
                self.record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Some(Err(error)) => self.record.log_truncated(error),
            None => {}
        }
        self.record.ended = frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_contains_only_known_query_parameters() {
        let uri = "http://user:secret@mirror/v2/a/tags/list?n=2&access_token=secret&ns=docker.io";
        assert_eq!(shown(&uri.parse().unwrap()), "/v2/a/tags/list?n=2&ns=docker.io");
        assert_eq!(shown(&"/v2/?token=secret".parse().unwrap()), "/v2/");
        let masked = shown(&"/v2/?n%73=user:secret@quay.io".parse().unwrap());
        assert_eq!(masked, "/v2/?ns=%5Bsecret%5D%40quay.io");
    }

    #[test]
    fn client_request_id_is_kept_unless_too_long() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, "abc".parse().unwrap());
        assert_eq!(request_id(&headers), "abc");
        headers.insert(REQUEST_ID, "x".repeat(MAX_ID_LENGTH + 1).parse().unwrap());
        assert_eq!(request_id(&headers).len(), 16);
        assert_eq!(&hexadecimal(0x0123_4567_89ab_cdef), b"0123456789abcdef");
    }
}
