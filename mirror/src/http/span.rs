//! The span of a request (OpenTelemetry's semantic conventions for HTTP servers).

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Version};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::route::Route;
use super::{Peer, Settings};
use crate::metrics::Outcome;
use crate::secret::mask_user_in_path;
use crate::traces::TARGET;

/// The longest text of a client in a span, in bytes.
const MAX_FIELD: usize = 1024;

/// Starts the span of a request, as part of the trace that the client names in `traceparent`. The span contains no query,
/// because a query may hold secrets.
pub(super) fn begin(parts: &Parts, route: &Route<'_>, settings: &Settings, peer: &Peer) -> Span {
    let (method, original) = method(&parts.method);
    let original = original.map(cut);
    let span = info_span!(
        target: TARGET,
        "request",
        otel.name = name(method, route, &settings.prefix),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.request.method_original = original,
        http.response.status_code = Empty,
        http.response.body.size = Empty,
        http.route = route.template().map(|template| format!("{}{template}", settings.prefix)),
        url.scheme = settings.scheme,
        url.path = cut(&mask_user_in_path(parts.uri.path())),
        network.protocol.version = version(parts.version),
        client.address = host(&peer.name),
        user_agent.original = parts.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).map(cut),
        error.type = Empty,
        registry_mirror.outcome = Empty,
        registry_mirror.request_id = Empty,
    );
    if !span.is_disabled() {
        // Fails only for spans that began already.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(&parts.headers)));
    }
    span
}

/// Completes the span when the last byte is sent, or the client has left.
pub(super) fn end(span: &Span, status: StatusCode, outcome: Outcome, bytes: u64, id: &HeaderValue) {
    if span.is_disabled() {
        return;
    }
    span.record("registry_mirror.outcome", outcome.as_str());
    span.record("registry_mirror.request_id", id.to_str().unwrap_or_default());
    span.record("http.response.body.size", bytes.cast_signed());
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.as_str());
    }
}

/// Returns the method, or `_OTHER` with the name that the client sent.
fn method(method: &Method) -> (&str, Option<&str>) {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::DELETE
        | Method::PATCH
        | Method::OPTIONS
        | Method::CONNECT
        | Method::TRACE => (method.as_str(), None),
        _ => ("_OTHER", Some(method.as_str())),
    }
}

/// Returns the first bytes of a text that a client sent: a span is in memory until it is exported.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_FIELD)]
}

/// Returns the name of the span, from a small set.
fn name(method: &str, route: &Route<'_>, prefix: &str) -> String {
    let method = if method == "_OTHER" { "HTTP" } else { method };
    match route.template() {
        Some(template) => format!("{method} {prefix}{template}"),
        None => method.to_owned(),
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// Returns the address of a client without its port, which differs for each connection.
fn host(peer: &str) -> &str {
    let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("/v2/a/b/blobs/sha256:0", &Method::GET => "GET /v2/{name}/blobs/{digest}")]
    #[test_case("/v2/a/manifests/1", &Method::HEAD => "HEAD /v2/{name}/manifests/{reference}")]
    #[test_case("/favicon.ico", &Method::GET => "GET"; "no route")]
    #[test_case("/v2/", &Method::from_bytes(b"BREW").unwrap() => "HTTP /v2/"; "an unknown method")]
    fn names_are_few(path: &str, asked: &Method) -> String {
        name(method(asked).0, &Route::parse(path, ""), "")
    }

    /// The span shows the address of the client without its port.
    #[test_case("10.0.0.7:5123" => "10.0.0.7")]
    #[test_case("[::1]:5123" => "::1")]
    #[test_case("unix" => "unix")]
    fn client_address_has_no_port(peer: &str) -> &str {
        host(peer)
    }
}
