//! Refuses requests that a web page of a browser on this machine may send: a forwarded port is open to all of them.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

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

/// Returns `true` if each host that the request names is a loopback address or `localhost`: the one of `Host`, and that of
/// an absolute target, which takes precedence (RFC 9112, 3.2.2).
fn is_for_loopback(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let target = request.uri().authority().map(Authority::as_str);
    host.to_str().is_ok_and(is_loopback) && target.is_none_or(is_loopback)
}

/// Returns `true` for a request that a web page sent. Browsers add `Origin` to most requests of pages, and
/// `Sec-Fetch-Site` to all: `none` is a user's own, such as an address that was typed.
fn is_of_page(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all(FETCH_SITE).iter();
    headers.contains_key(header::ORIGIN) || sites.any(|site| site != "none")
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
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
        is_loopback(host)
    }
}
