//! One span a request to an upstream (OpenTelemetry's semantic conventions for HTTP clients).

use http::StatusCode;
use tracing::field::Empty;
use tracing::{Span, info_span};
use url::Url;

use crate::name::Host;
use crate::traces::TARGET;
use crate::upstream::error::Failure;
use crate::upstream::transport::HttpRequest;

/// Begins with the request. The trace goes no further: which pulls belong together is nothing that a registry,
/// or where it redirects to, has to know.
pub(in crate::upstream) fn begin(upstream: &Host, hop: &HttpRequest) -> Span {
    info_span!(
        target: TARGET,
        "upstream",
        otel.name = hop.method.as_str(),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = hop.method.as_str(),
        http.response.status_code = Empty,
        url.full = shown(&hop.url),
        server.address = hop.url.host_str(),
        server.port = hop.url.port_or_known_default().map(i64::from),
        error.type = Empty,
        registry_mirror.upstream = upstream.as_str(),
        registry_mirror.class = hop.class.as_str(),
    )
}

/// Completes the span when the header of the response arrived, or the request failed.
pub(in crate::upstream) fn end(span: &Span, answer: Result<StatusCode, Failure>) {
    match answer {
        Ok(status) => {
            span.record("http.response.status_code", i64::from(status.as_u16()));
            // A 401 asks for a token: the usual way in.
            let failed = status.is_client_error() || status.is_server_error();
            if failed && status != StatusCode::UNAUTHORIZED {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", status.as_str());
            }
        }
        Err(failure) => {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", failure.as_str());
        }
    }
}

/// Returns the URL without user and query, which may be secret.
fn shown(url: &Url) -> String {
    let mut shown = crate::upstream::bare(url);
    if url.query().is_some() {
        shown.set_query(Some("REDACTED"));
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A span shows a URL without its secrets.
    #[test]
    fn span_url_has_no_secrets() {
        let url = "https://user:secret@cdn.example:8443/a/b?X-Signature=secret#secret";
        assert_eq!(
            shown(&url.parse().unwrap()),
            "https://cdn.example:8443/a/b?REDACTED"
        );
        let plain = "https://cdn.example/a";
        assert_eq!(shown(&plain.parse().unwrap()), plain);
    }
}
