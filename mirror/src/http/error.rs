//! The errors that clients receive, in the shape of the distribution-spec ("Error Codes").

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tracing::Level;

use crate::name::Host;
use crate::peers::encode_error;
use crate::pull_error::{Cause, PullError};

/// The class of requests without a login.
const NO_LOGIN: &str = "no_login";
/// The methods that every endpoint has.
pub(super) const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// An error response: a status, a code of the specification, and a message that names the action.
#[derive(Debug)]
pub(crate) struct RegistryError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    message: String,
    /// A word for all errors that differ in their messages' details only.
    pub(super) class: &'static str,
    header: Option<Box<(header::HeaderName, HeaderValue)>>,
    /// The cause of a failed pull.
    cause: Option<Box<Cause>>,
}

impl RegistryError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            class: "request",
            header: None,
            cause: None,
        }
    }

    fn from_cause(status: StatusCode, code: &'static str, cause: &Cause) -> Self {
        let class = cause.class();
        Self {
            class,
            cause: Some(Box::new(cause.clone())),
            ..Self::new(status, code, cause.to_string())
        }
    }

    /// Returns why the request failed, for the client and the log alike.
    pub(super) fn reason(&self) -> &str {
        &self.message
    }

    /// Returns the header that passes the upstream's error on to another replica, if it counts for all of them.
    pub(super) fn passed_on(&self) -> Option<HeaderValue> {
        encode_error(self.cause.as_deref()?.upstream_error()?)
    }

    /// Returns how important the failure is to the administrator. Each client of a mirror with users begins without a
    /// login, and tools ask for signatures that most images do not have.
    pub(super) fn level(&self) -> Level {
        match self.status {
            StatusCode::UNAUTHORIZED if self.class == NO_LOGIN => Level::DEBUG,
            StatusCode::GATEWAY_TIMEOUT => Level::DEBUG,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Level::WARN,
            status if status.is_server_error() => Level::WARN,
            _ => Level::INFO,
        }
    }

    fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// Returns a 404 for a name that belongs to no upstream of this mirror.
    pub(crate) fn name_unknown(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message)
    }

    /// Returns a 400 for a malformed name of a repository.
    pub(crate) fn name_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
    }

    /// Returns a 404 for a path without an endpoint.
    pub(crate) fn nothing_here() -> Self {
        let message =
            "no such endpoint: this is a pull-through registry, see GET /v2/<name>/manifests/<reference>";
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", message)
    }

    /// Returns a 400 for a request without a host, or with several.
    pub(crate) fn no_single_host() -> Self {
        let message = "an HTTP/1.1 request has exactly one Host header";
        Self::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
    }

    /// Returns a 400 for a request whose target has no path (RFC 9112, 3.2; RFC 9113, 8.3.1).
    pub(crate) fn no_path() -> Self {
        let message = "the target of the request has no path: it has to begin with a slash";
        Self::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
    }

    /// Returns a 412 for an `If-Match` that the content does not match.
    pub(super) fn precondition_failed() -> Self {
        let message = "the content has no validator that If-Match names: send the request without it";
        Self::new(StatusCode::PRECONDITION_FAILED, "UNSUPPORTED", message)
    }

    /// Returns a 400 for a request with another transfer coding than a single `chunked`. It ends the connection, because
    /// the bytes after the header may mean another request to another server.
    pub(crate) fn unsupported_transfer_coding() -> Self {
        let message = "the request has another Transfer-Encoding than a single chunked: send the body with chunked alone, or with Content-Length";
        let error = Self::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message);
        error.with(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// Returns a 400 for a malformed digest.
    pub(crate) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    /// Returns a 405 for a push, a delete, or any other write.
    pub(crate) fn read_only() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "this is a pull-through mirror: push to the upstream registry instead",
        )
        .with(header::ALLOW, ALLOWED)
    }

    /// Returns a 401 for a request without a login: this mirror's own access control, never upstream's.
    pub(crate) fn no_login(challenge: HeaderValue) -> Self {
        let error = Self::unauthorized("log in to this mirror to pull from it", challenge);
        Self {
            class: NO_LOGIN,
            ..error
        }
    }

    /// Returns a 401 for a login that is not one of the users'.
    pub(crate) fn wrong_login(challenge: HeaderValue) -> Self {
        let message =
            "the user name or the password is wrong: log in to this mirror with those of one of its users";
        Self::unauthorized(message, challenge)
    }

    /// Returns a 429 for a login that finds too many others in the queue for a password check.
    pub(super) fn too_many_logins() -> Self {
        let message = "too many logins wait for their password check: try again later";
        Self {
            class: "logins",
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
        }
        .retry_after(Duration::from_secs(2))
    }

    /// Returns a 503 for a login while the users of this mirror can't be read.
    pub(super) fn users_unavailable() -> Self {
        let message = "the users of this mirror can't be read at the moment: try again later";
        Self {
            class: "logins",
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
        }
        .retry_after(Duration::from_secs(2))
    }

    /// Returns a 401 for a request to the peer port that no member of the fleet made.
    pub(super) fn not_a_peer(message: &str) -> Self {
        let challenge = HeaderValue::from_static("Mirror");
        Self {
            class: "not_a_peer",
            ..Self::unauthorized(message, challenge)
        }
    }

    /// Returns a 504 for a blob that another replica wants only if it is here (RFC 9111, 5.2.1.7).
    pub(super) fn not_held() -> Self {
        let message = "this replica does not have the blob";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "BLOB_UNKNOWN", message)
    }

    /// Returns a 503 for a document that finds no memory, because the client takes nothing of other responses.
    pub(super) fn too_many_responses() -> Self {
        let message = "too many responses to this client wait to be read: read them, or ask again later";
        Self {
            class: "memory",
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
        }
        .retry_after(Duration::from_secs(2))
    }

    fn unauthorized(message: &str, challenge: HeaderValue) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// Returns a 503 for an uncached blob of unknown length, whose truncation a client of HTTP/1.0 could not detect.
    pub(crate) fn needs_chunks() -> Self {
        let message =
            "the length of this blob is not known, and the cache has no room for it: ask with HTTP/1.1";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
            .retry_after(Duration::from_secs(10))
    }

    /// Returns a 503 while a configured health check fails, as Distribution does.
    pub(crate) fn unhealthy() -> Self {
        let message = "a health check of this mirror fails: see /debug/health on its admin port";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
            .retry_after(Duration::from_secs(10))
    }

    fn retry_after(self, wait: Duration) -> Self {
        // Rounded up, so that a client that retries in time is not refused again.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.with(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }
}

impl From<PullError> for RegistryError {
    fn from(failure: PullError) -> Self {
        match failure {
            PullError::NotFound { code, cause } => Self::from_cause(StatusCode::NOT_FOUND, code, &cause),
            PullError::Denied { cause } => Self::from_cause(StatusCode::FORBIDDEN, "DENIED", &cause),
            PullError::TooManyRequests { cause, retry_after } => {
                Self::from_cause(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", &cause)
                    .retry_after(retry_after)
            }
            // The closed list of the specification has one code for "try again later". Clients that check only the
            // code would take MANIFEST_UNKNOWN for "has no signature".
            PullError::Unavailable { cause, retry_after } => {
                Self::from_cause(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", &cause)
                    .retry_after(retry_after)
            }
        }
    }
}

impl RegistryError {
    /// Turns the error into the response for a client that asked for something of this upstream.
    pub(super) fn into_response(self, upstream: Option<&Host>) -> Response {
        let mut detail = json!({"reason": self.message});
        if let Some(upstream) = upstream {
            detail["upstream"] = upstream.as_str().into();
        }
        let body = json!({"errors": [{"code": self.code, "message": self.message, "detail": detail}]});
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(header) = self.header {
            let (name, value) = *header;
            headers.insert(name, value);
        }
        response
    }
}
