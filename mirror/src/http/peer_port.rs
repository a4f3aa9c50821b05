//! The peer port: the registry API for the other replicas of this mirror, each request authorized, each answer but the
//! bytes of blobs signed.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::response::Response;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::error::RegistryError;
use super::route::Route;
use super::{EndpointResponse, Peer};
use crate::client_address::REPLICA;
use crate::peers::{ANSWER_SIGNATURE, Fleet, HELLO_PATH, PEER_PATH, PeerAuthorization, answer_text};

/// The most bytes of a body that is signed: such bodies are in memory already.
const MAX_SIGNED: usize = 16 << 20;

/// Checks the authorization of a request.
///
/// # Errors
/// 401.
pub(super) fn admit(fleet: &Fleet, request: &Parts) -> Result<PeerAuthorization, RegistryError> {
    let authorization = request.headers.get(AUTHORIZATION);
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    fleet
        .admit(authorization, request.method.as_str(), target)
        .map_err(|error| RegistryError::not_a_peer(&error.to_string()))
}

/// Returns the answer to a hello; `None` for another path.
pub(super) fn hello(fleet: &Fleet, request: &Parts) -> Option<EndpointResponse> {
    if request.uri.path() != HELLO_PATH || request.method != Method::GET {
        return None;
    }
    let hello = fleet.answer_hello(&request.headers);
    let mut response = Response::new(Body::from(hello));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Some(EndpointResponse::plain(response))
}

/// Returns the answer to a request for a document about the bucket; `None` for another path.
pub(super) async fn document(
    fleet: &Fleet,
    request: &Parts,
) -> Option<Result<EndpointResponse, RegistryError>> {
    if !request.uri.path().starts_with(PEER_PATH) || request.method != Method::GET {
        return None;
    }
    let target = request.uri.path_and_query()?.as_str();
    Some(match fleet.document_at(target).await {
        Some(document) => Ok(EndpointResponse::plain(Response::new(Body::from(document)))),
        None => Err(RegistryError::nothing_here()),
    })
}

/// Returns the peer of a connection as a replica, which is counted apart from clients.
pub(super) fn as_replica(peer: &Peer) -> Peer {
    Peer {
        name: format!("{REPLICA}{}", peer.name).into(),
        sendfile: peer.sendfile.clone(),
        // A replica is no client.
        client: None,
        memory: Arc::clone(&peer.memory),
    }
}

/// Returns whether a request may not cause another one (RFC 9111, 5.2.1.7).
pub(super) fn is_only_if_cached(headers: &HeaderMap) -> bool {
    headers
        .get(CACHE_CONTROL)
        .is_some_and(|value| value == "only-if-cached")
}

/// Signs an answer. The bytes of a blob are checked by their digest instead, and an error in their place has no body.
pub(super) async fn sign(
    authorization: &PeerAuthorization,
    request: &Parts,
    route: &Route<'_>,
    mut answer: EndpointResponse,
) -> EndpointResponse {
    let is_blob = request.method == Method::GET && matches!(route, Route::Blob { .. });
    let status = answer.response.status();
    if is_blob && matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return answer;
    }
    let (mut head, body) = answer.response.into_parts();
    let (text, body) = if is_blob {
        (answer_text(&request.method, status, &head.headers, b""), body)
    } else if request.method == Method::HEAD {
        // The length is signed, and there is no body.
        (answer_text(&request.method, status, &head.headers, b""), body)
    } else {
        let bytes = to_bytes(body, MAX_SIGNED).await.unwrap_or_default();
        let text = answer_text(&request.method, status, &head.headers, &bytes);
        (text, Body::from(bytes))
    };
    if let Ok(signature) = HeaderValue::try_from(authorization.sign(&text)) {
        head.headers.insert(ANSWER_SIGNATURE, signature);
    }
    answer.response = Response::from_parts(head, body);
    answer
}
