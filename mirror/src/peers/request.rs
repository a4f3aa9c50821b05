//! Requests to a peer: authorized, bounded in number and in time, never redirected.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Client, Response, redirect};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::{ANSWER_SIGNATURE, answer_text, decode_error};
use super::keys::PeerAuthorization;
use super::member::Member;
use super::{Fleet, MAX_KEYS};
use crate::tls::describe;
use crate::upstream::Error;

/// For a connection to a peer, which is near.
const CONNECT: Duration = Duration::from_secs(1);
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
    pub(super) permit: OwnedSemaphorePermit,
}

/// The reason why a peer gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The upstream's own answer, which counts for all members.
    #[error(transparent)]
    Upstream(Error),
    /// No key of this member's is the peer's, or the peer is no member.
    #[error("the peer and this server do not have the same secret, or their clocks differ")]
    Unauthorized,
    /// The peer does not have the content now.
    #[error("the peer does not have it")]
    Absent,
    /// Any other answer.
    #[error("the peer answered {0}")]
    Status(StatusCode),
    /// No answer.
    #[error("the peer does not answer: {0}")]
    Failed(String),
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
        }
    }

    pub(super) fn head(target: String) -> Self {
        Self {
            method: Method::HEAD,
            ..Self::get(target)
        }
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

/// Returns the HTTP client for all peers.
pub(super) fn client() -> reqwest::Result<Client> {
    Client::builder()
        .user_agent(concat!("registry-mirror/", env!("CARGO_PKG_VERSION")))
        // Peers speak plain HTTP, and the image has no certificates of a system.
        .tls_certs_only([])
        .no_proxy()
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT)
        .tcp_user_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(15))
        .build()
}

impl Fleet {
    /// Sends a request. After a 401 the other key is tried: the peer may not have read the new one.
    pub(super) async fn send(&self, member: &Member, request: &PeerRequest) -> Result<PeerAnswer, PeerError> {
        let permit = timeout(QUEUE, member.requests.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(PeerError::Busy);
        };
        for index in 0..MAX_KEYS {
            let authorized = self
                .keys
                .authorize(index, request.method.as_str(), &request.target);
            let Some(authorization) = authorized else { break };
            let response = self.exchange(member, request, &authorization).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(PeerAnswer {
                    response,
                    authorization,
                    permit,
                });
            }
        }
        Err(PeerError::Unauthorized)
    }

    async fn exchange(
        &self,
        member: &Member,
        request: &PeerRequest,
        authorization: &PeerAuthorization,
    ) -> Result<Response, PeerError> {
        let url = format!("http://{}{}", member.address, request.target);
        let send = || {
            let built = self.client.request(request.method.clone(), &url);
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
        let body = timeout(IDLE, self.unless_lost(self.read(answer.response, request.limit), &lost)).await;
        let body = body
            .ok()
            .flatten()
            .unwrap_or_else(|| Err(PeerError::Failed("its answer did not arrive whole".to_owned())))?;
        let text = answer_text(&request.method, status, &headers, &body);
        let signature = headers.get(ANSWER_SIGNATURE);
        if !answer.authorization.is_answer_signed(&text, signature) {
            return Err(PeerError::Unauthorized);
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
