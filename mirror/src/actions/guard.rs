//! Refuses requests that a web page of a browser on this machine may send: a forwarded port is open to all of them.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::request_host::all_hosts;

/// The relation of the page that sent a request to the request's target (Fetch Metadata).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Passes requests on whose `Host` is a loopback address or `localhost`, and that no web page sent.
pub(super) async fn check(request: Request, next: Next) -> Response {
    // With another name, DNS may have been rebound to this address.
    if !is_for_loopback(&request) {
        let message = "only requests for a loopback address are answered\n";
        return (StatusCode::MISDIRECTED_REQUEST, message).into_response();
    }
    if is_of_page(request.headers()) {
        let message = "requests of web pages are refused\n";
        return (StatusCode::FORBIDDEN, message).into_response();
    }
    next.run(request).await
}

/// Returns `true` if the request has one `Host`, and each host that it names is a loopback address or `localhost`.
fn is_for_loopback(request: &Request) -> bool {
    let headers = request.headers();
    headers.get_all(header::HOST).iter().count() == 1 && all_hosts(headers, request.uri(), is_loopback)
}

/// Returns `true` for a request that a web page sent. Browsers add `Origin` to most requests of pages, and
/// `Sec-Fetch-Site` to all: `none` is a user's own, such as an address that was typed.
fn is_of_page(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all(FETCH_SITE).iter();
    headers.contains_key(header::ORIGIN) || sites.any(|site| site != "none")
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("127.0.0.1:5002" => true)]
    #[test_case("localhost" => true)]
    #[test_case("[::1]:5002" => true)]
    #[test_case("10.0.0.1:5002" => false; "an address of the network")]
    #[test_case("evil.example:5002" => false; "a rebound name")]
    #[test_case("127.0.0.1.evil.example" => false; "a name that begins like an address")]
    #[test_case("" => false; "empty")]
    fn only_loopback_hosts_are_answered(host: &str) -> bool {
        let request = axum::http::Request::get("/").header(header::HOST, host);
        is_for_loopback(&request.body(axum::body::Body::empty()).unwrap())
    }
}
