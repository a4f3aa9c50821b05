//! Every error that a client sees, in the one shape of the distribution-spec ("Error Codes").

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tracing::Level;

use crate::name::Host;
use crate::pull::{Cause, Failure};

/// The class of requests without a login.
const NO_LOGIN: &str = "no_login";
/// The methods that every endpoint has.
pub(super) const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// An answer other than success: a status, one of the specification's codes, and what to do about it.
#[derive(Debug)]
pub(crate) struct RegistryError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    message: String,
    /// A word for all errors that differ in their messages' details only.
    pub(super) class: &'static str,
    header: Option<Box<(header::HeaderName, HeaderValue)>>,
}

impl RegistryError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            class: "request",
            header: None,
        }
    }

    fn of(status: StatusCode, code: &'static str, cause: &Cause) -> Self {
        let class = cause.class();
        Self {
            class,
            ..Self::new(status, code, cause.to_string())
        }
    }

    /// Returns why the request failed, for the client and the log alike.
    pub(super) fn reason(&self) -> &str {
        &self.message
    }

    /// Returns how important the failure is to the administrator. Each client of a mirror with users begins without a
    /// login, and tools ask for signatures that most images do not have.
    pub(super) fn level(&self) -> Level {
        match self.status {
            StatusCode::UNAUTHORIZED if self.class == NO_LOGIN => Level::DEBUG,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Level::WARN,
            status if status.is_server_error() => Level::WARN,
            _ => Level::INFO,
        }
    }

    fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
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

    fn unauthorized(message: &str, challenge: HeaderValue) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message).with(header::WWW_AUTHENTICATE, challenge)
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
            Failure::NotFound { code, cause } => Self::of(StatusCode::NOT_FOUND, code, &cause),
            Failure::Denied { cause } => Self::of(StatusCode::FORBIDDEN, "DENIED", &cause),
            Failure::TooManyRequests { cause, retry_after } => {
                Self::of(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", &cause).retry_after(retry_after)
            }
            // The specification's closed list has one code that says "try again later". MANIFEST_UNKNOWN would
            // be read as "has no signature" by clients that look at the code alone.
            Failure::Unavailable { cause, retry_after } => {
                Self::of(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", &cause).retry_after(retry_after)
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
