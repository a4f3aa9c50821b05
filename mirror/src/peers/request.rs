//! Requests to a peer: authorized, bounded in number and in time, never redirected.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, DATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use reqwest::Response;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::{ANSWER_SIGNATURE, answer_text, decode_error};
use super::keys::{MAX_AGE, PeerAuthorization};
use super::member::{Member, PeerPlace, PeerRequestKind, RefusalCause};
use super::{Fleet, MAX_KEYS};
use crate::name::Host;
use crate::tls::{describe, is_tls_failure};
use crate::upstream::Error;

/// For the header of an answer: the owner may wait for the upstream.
const HEADER: Duration = Duration::from_secs(10);
/// The wait after which the peer is asked whether it lives.
const DOUBT: Duration = Duration::from_secs(1);
/// For the next bytes of a body.
pub(super) const IDLE: Duration = Duration::from_secs(15);
/// For a place among the requests to the peer.
const QUEUE: Duration = Duration::from_secs(5);
/// The most bytes of a document.
const MAX_DOCUMENT: usize = 6 << 20;
/// The size from which a document takes one of a few places.
const LARGE: usize = 64 << 10;

/// A request to a peer.
pub(super) struct PeerRequest {
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    /// The most bytes of the answer's body.
    pub(super) limit: usize,
    pub(super) kind: PeerRequestKind,
}

/// An answer that is read whole, and that a member signed.
pub(super) struct PeerDocument {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// An answer whose body has not arrived.
pub(super) struct PeerAnswer {
    pub(super) response: Response,
    pub(super) authorization: PeerAuthorization,
    pub(super) place: PeerPlace,
}

/// The reason why a peer gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The upstream's own answer, which counts for all members.
    #[error(transparent)]
    Upstream(Error),
    /// The peer is no member, or takes this server for none.
    #[error("{0}")]
    Refused(RefusalCause),
    /// The peer does not have the content now.
    #[error("the peer does not have it")]
    Absent,
    /// Any other answer.
    #[error("the peer answered {0}")]
    Status(StatusCode),
    /// No answer.
    #[error("the peer does not answer: {0}")]
    Failed(String),
    /// Its address refuses connections: it ended, or has not started yet.
    #[error("nothing listens at the address of the peer")]
    NotListening,
    /// The peer lives, and its answer takes too long.
    #[error("the peer gave no header in time")]
    Slow,
    /// All places for requests to the peer are taken.
    #[error("too many requests to the peer are under way")]
    Busy,
}

impl PeerRequest {
    pub(super) fn get(target: String) -> Self {
        let (method, headers) = (Method::GET, HeaderMap::new());
        Self {
            method,
            target,
            headers,
            limit: MAX_DOCUMENT,
            kind: PeerRequestKind::Document,
        }
    }

    pub(super) fn head(target: String) -> Self {
        Self {
            method: Method::HEAD,
            ..Self::get(target)
        }
    }

    /// Returns the request as one for content of an upstream.
    pub(super) fn of_upstream(mut self, host: &Host) -> Self {
        self.kind = PeerRequestKind::Content(host.clone());
        self
    }

    /// Returns the request as one that may not cause another (RFC 9111, 5.2.1.7).
    pub(super) fn only_if_cached(mut self) -> Self {
        let directive = HeaderValue::from_static("only-if-cached");
        self.headers.insert(CACHE_CONTROL, directive);
        self
    }

    pub(super) fn accept(mut self, accept: HeaderValue) -> Self {
        self.headers.insert(ACCEPT, accept);
        self
    }
}

impl Fleet {
    /// Sends a request. After a 401 the other key is tried: the peer may not have read the new one.
    pub(super) async fn send(&self, member: &Member, request: &PeerRequest) -> Result<PeerAnswer, PeerError> {
        let place = timeout(QUEUE, member.place(&request.kind)).await;
        let Ok(Some(place)) = place else {
            return Err(PeerError::Busy);
        };
        let mut cause = RefusalCause::Secret;
        for index in 0..MAX_KEYS {
            let authorized = self
                .keys
                .authorize(index, request.method.as_str(), &request.target);
            let Some(authorization) = authorized else { break };
            let response = self.exchange(member, request, &authorization).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                cause = self.cause_of_refusal(response.headers());
            } else {
                return Ok(PeerAnswer {
                    response,
                    authorization,
                    place,
                });
            }
        }
        Err(PeerError::Refused(cause))
    }

    /// Returns the reason of a 401: the peer names its time, which no key has to sign, as it is only reported.
    fn cause_of_refusal(&self, headers: &HeaderMap) -> RefusalCause {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let date = date.and_then(|date| Timestamp::try_from(date).ok());
        let apart = date.map(|date| self.clock.now().as_second().abs_diff(date.as_second()));
        // Dates have whole seconds.
        match apart {
            Some(seconds) if seconds + 1 >= MAX_AGE.as_secs() => RefusalCause::Clock,
            _ => RefusalCause::Secret,
        }
    }

    async fn exchange(
        &self,
        member: &Member,
        request: &PeerRequest,
        authorization: &PeerAuthorization,
    ) -> Result<Response, PeerError> {
        let scheme = if self.settings.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let url = format!("{scheme}://{}{}", member.address, request.target);
        let client = self.client.load();
        let send = || {
            let built = client.request(request.method.clone(), &url);
            let built = built.headers(request.headers.clone());
            built.header(AUTHORIZATION, authorization.value().clone()).send()
        };
        let lost = member.lost();
        let response = async {
            match send().await {
                // Probably a pooled connection that the peer just closed.
                Err(error) if !error.is_connect() && !error.is_timeout() => send().await,
                outcome => outcome,
            }
        };
        match timeout(HEADER, self.unless_lost(response, &lost)).await {
            Ok(Some(Ok(response))) => Ok(response),
            Ok(Some(Err(error))) if is_tls_failure(&error) => {
                tracing::debug!(address = %member.address, error = describe(error), "TLS with a peer failed");
                Err(PeerError::Refused(RefusalCause::Tls))
            }
            Ok(Some(Err(error))) if is_connection_refused(&error) => Err(PeerError::NotListening),
            Ok(Some(Err(error))) => Err(PeerError::Failed(describe(error))),
            Ok(None) => Err(PeerError::Failed("it is lost".to_owned())),
            Err(_) => Err(PeerError::Slow),
        }
    }

    /// Waits for a peer, and has its life checked after a second. Returns `None` once it is lost.
    pub(super) async fn unless_lost<T>(
        &self,
        wanted: impl Future<Output = T>,
        lost: &CancellationToken,
    ) -> Option<T> {
        let doubt = async {
            tokio::time::sleep(DOUBT).await;
            self.wake.notify_one();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            value = wanted => Some(value),
            () = lost.cancelled() => None,
            () = doubt => None,
        }
    }

    /// Sends a request for a document and reads the answer, which has to be signed.
    pub(super) async fn document(
        &self,
        member: &Member,
        request: PeerRequest,
    ) -> Result<PeerDocument, PeerError> {
        let answer = self.send(member, &request).await?;
        let (status, headers) = (answer.response.status(), answer.response.headers().clone());
        let lost = member.lost();
        let body = timeout(
            IDLE,
            self.unless_lost(self.read(answer.response, request.limit), &lost),
        )
        .await;
        let body = body
            .ok()
            .flatten()
            .unwrap_or_else(|| Err(PeerError::Failed("its answer did not arrive whole".to_owned())))?;
        let text = answer_text(&request.method, status, &headers, &body);
        let signature = headers.get(ANSWER_SIGNATURE);
        if !answer.authorization.is_answer_signed(&text, signature) {
            return Err(PeerError::Refused(RefusalCause::Secret));
        }
        match status {
            StatusCode::OK => Ok(PeerDocument { headers, body }),
            StatusCode::GATEWAY_TIMEOUT => Err(PeerError::Absent),
            status => Err(decode_error(&headers).map_or(PeerError::Status(status), PeerError::Upstream)),
        }
    }

    async fn read(&self, response: Response, limit: usize) -> Result<Bytes, PeerError> {
        let too_long = || PeerError::Failed(format!("an answer of more than {limit} bytes"));
        let (mut body, mut place) = (BytesMut::new(), None);
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| PeerError::Failed(describe(error)))?;
            if body.len() + chunk.len() > limit {
                return Err(too_long());
            }
            if place.is_none() && body.len() + chunk.len() > LARGE {
                place = self.documents.acquire().await.ok();
            }
            body.extend_from_slice(&chunk);
        }
        drop(place);
        Ok(body.freeze())
    }
}

/// Returns whether the address that a request was for refuses connections.
fn is_connection_refused(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
    })
}
