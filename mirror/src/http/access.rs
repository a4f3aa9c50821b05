//! One line and one count for each request, when its body has ended or its client has gone.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tracing::{Level, Span, info};
use url::form_urlencoded;

use super::failures::{Failed, Kind};
use super::{Answer, App, Peer, span};
use crate::digest::Digest;
use crate::metrics::{self, Outcome, Source};
use crate::name::Repository;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are not kept: they are written to the log.
const LONGEST_ID: usize = 128;
/// What of a query is written to the log; anything else may be somebody's secret.
const SHOWN: [&str; 4] = ["ns", "n", "last", "artifactType"];
/// The status of a request whose client left before there was one, as nginx counts it.
const CLIENT_LEFT: u16 = 499;

/// What is said of a request when it ends, however it ends.
pub(super) struct Record {
    app: Arc<App>,
    line: Option<Box<Line>>,
    span: Span,
    started: Instant,
    method: Method,
    kind: metrics::Kind,
    status: StatusCode,
    outcome: Outcome,
    bytes: u64,
    /// What the body has, where that is known: its reader may stop at the last byte without asking for its end.
    length: Option<u64>,
    ended: bool,
    /// The user that logged in, or tried to.
    pub(super) user: Option<Box<str>>,
    repository: Option<Repository>,
    digest: Option<Digest>,
    /// The request's id: the client's, or one of ours.
    pub(super) id: HeaderValue,
}

/// What the log says beside, where there is one.
struct Line {
    target: String,
    client: Arc<str>,
    agent: String,
}

impl Record {
    /// Begins with the request.
    pub(super) fn begin(app: &Arc<App>, kind: metrics::Kind, parts: &Parts) -> Self {
        app.metrics.requests_active.inc();
        Self {
            app: Arc::clone(app),
            line: None,
            span: Span::none(),
            started: Instant::now(),
            method: parts.method.clone(),
            kind,
            status: StatusCode::from_u16(CLIENT_LEFT).unwrap_or(StatusCode::REQUEST_TIMEOUT),
            outcome: Outcome::None,
            bytes: 0,
            length: None,
            ended: false,
            user: None,
            repository: None,
            digest: None,
            id: request_id(&parts.headers),
        }
    }

    /// Ends with a line in the log too, where the settings want one.
    pub(super) fn logged(mut self, parts: &Parts, peer: &Peer) -> Self {
        self.line = self.app.settings.access_log.then(|| {
            Box::new(Line {
                target: shown(&parts.uri),
                client: Arc::clone(&peer.name),
                agent: text(&parts.headers, &header::USER_AGENT),
            })
        });
        self
    }

    /// Tells a span too.
    pub(super) fn traced(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// Returns the answer with a body that records what of it is sent.
    pub(super) fn answered(mut self, answer: Answer) -> http::Response<Recorded> {
        self.status = answer.response.status();
        self.outcome = answer.outcome;
        self.length = length(&self.method, &answer.response);
        (self.repository, self.digest) = (answer.repository, answer.digest);
        answer.response.map(|body| Recorded { body, record: self })
    }

    /// Tells the log why an answer ends before its body does.
    fn cut(&self, error: &axum::Error) {
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

    /// Whether all of the answer was handed to the connection.
    fn is_whole(&self) -> bool {
        self.ended || self.length == Some(self.bytes)
    }

    fn source(&self) -> Source {
        match self.outcome {
            Outcome::Hit | Outcome::Stale | Outcome::None => Source::Cache,
            Outcome::Miss | Outcome::Coalesced | Outcome::PassThrough => Source::Upstream,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let metrics = &self.app.metrics;
        metrics.requests_active.dec();
        metrics.request(&self.method, self.kind, self.status, self.outcome, took);
        metrics.served(self.source(), self.bytes);
        let id = self.id.to_str().unwrap_or_default();
        span::end(&self.span, self.status, self.outcome, self.bytes, id);
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
            id,
            "request"
        );
    }
}

/// How many bytes of the body are sent: none where the header says how long it would be.
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

/// The path with what of its query may be shown.
pub(super) fn shown(uri: &Uri) -> String {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.filter(|(key, _)| SHOWN.contains(&key.as_ref())));
    match query.finish() {
        query if query.is_empty() => uri.path().to_owned(),
        query => format!("{}?{query}", uri.path()),
    }
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sent = headers
        .get(&REQUEST_ID)
        .filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
    sent.cloned().unwrap_or_else(|| {
        let (number, mut text) = (RandomState::new().build_hasher().finish(), [0; 16]);
        let written = hex::encode_to_slice(number.to_be_bytes(), &mut text);
        written
            .ok()
            .and_then(|()| HeaderValue::from_bytes(&text).ok())
            .unwrap_or(HeaderValue::from_static("none"))
    })
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// A body that tells its record what of it was sent.
pub struct Recorded {
    body: Body,
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
            Some(Ok(frame)) => self.record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(error)) => self.record.cut(error),
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
    fn the_log_shows_what_it_knows_of_a_query_and_nothing_else() {
        let uri = "http://user:secret@mirror/v2/a/tags/list?n=2&access_token=secret&ns=docker.io";
        assert_eq!(shown(&uri.parse().unwrap()), "/v2/a/tags/list?n=2&ns=docker.io");
        assert_eq!(shown(&"/v2/?token=secret".parse().unwrap()), "/v2/");
    }

    #[test]
    fn an_id_of_the_client_is_kept_unless_it_is_excessive() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, "abc".parse().unwrap());
        assert_eq!(request_id(&headers), "abc");
        headers.insert(REQUEST_ID, "x".repeat(LONGEST_ID + 1).parse().unwrap());
        assert_eq!(request_id(&headers).len(), 16);
    }
}
