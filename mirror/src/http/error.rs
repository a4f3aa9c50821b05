//! Every error that a client sees, in the one shape of the distribution-spec ("Error Codes").

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::pull::Failure;

/// The methods that every endpoint has.
pub(super) const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// An answer other than success: a status, one of the specification's codes, and what to do about it.
#[derive(Debug)]
pub(crate) struct RegistryError {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(header::HeaderName, HeaderValue)>,
}

impl RegistryError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            header: None,
        }
    }

    fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    /// 404 for a name that belongs to no upstream of this mirror.
    pub(crate) fn name_unknown(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message)
    }

    /// 400 for a repository's name that breaks the grammar.
    pub(crate) fn name_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
    }

    /// 404 for a path that is no endpoint of ours.
    pub(crate) fn nothing_here() -> Self {
        let message =
            "no such endpoint: this is a pull-through registry, see GET /v2/<name>/manifests/<reference>";
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", message)
    }

    /// 400 for a request that names no host, or more than one.
    pub(crate) fn no_single_host() -> Self {
        let message = "an HTTP/1.1 request has exactly one Host header";
        Self::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
    }

    /// 400 for a digest that is none.
    pub(crate) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    /// 405 for a push, a delete, or any method that changes something.
    pub(crate) fn read_only() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "this is a pull-through mirror: push to the upstream registry instead",
        )
        .with(header::ALLOW, ALLOWED)
    }

    /// 401: this mirror's own access control, never upstream's.
    pub(crate) fn unauthorized(challenge: HeaderValue) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            "log in to this mirror to pull from it",
        )
        .with(header::WWW_AUTHENTICATE, challenge)
    }

    /// 503 where nobody knows the length of what there is no room for, and the client could not tell a cut from an end.
    pub(crate) fn needs_chunks() -> Self {
        let message =
            "the length of this blob is not known, and the cache has no room for it: ask with HTTP/1.1";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
            .retry_after(Duration::from_secs(10))
    }

    /// 503 while one of the configured health checks fails, as Distribution answers then.
    pub(crate) fn unhealthy() -> Self {
        let message = "a health check of this mirror fails: see /debug/health on its admin port";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
            .retry_after(Duration::from_secs(10))
    }

    fn retry_after(self, wait: Duration) -> Self {
        // Rounded up: whoever comes back in time is not turned away again.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.with(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }
}

impl From<Failure> for RegistryError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound { code, message } => Self::new(StatusCode::NOT_FOUND, code, message),
            Failure::Denied { message } => Self::new(StatusCode::FORBIDDEN, "DENIED", message),
            Failure::TooManyRequests { message, retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message).retry_after(retry_after)
            }
            // The specification's closed list has one code that says "try again later". MANIFEST_UNKNOWN would
            // be read as "has no signature" by clients that look at the code alone.
            Failure::Unavailable { message, retry_after } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
                    .retry_after(retry_after)
            }
        }
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.message, "detail": null}]});
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        response
    }
}
