//! `GET` and `HEAD /v2/`, and `OPTIONS` of every path.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::http::error::ALLOWED;

/// Returns the response to `OPTIONS`, which browsers send without credentials before a request to another origin; so it
/// needs no login.
pub(in crate::http) fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(header::ALLOW, ALLOWED);
    response
}

/// Returns the response to `GET /v2/` (end-1), by which clients detect a registry.
pub(in crate::http) fn get() -> Response {
    let mut response = Response::new(Body::from("{}"));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
