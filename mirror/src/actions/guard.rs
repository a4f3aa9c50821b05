//! Refuses requests that a web page of a browser on this machine may send: a forwarded port is open to all of them.

use axum::extract::Request;
use axum::http::{StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Passes requests on whose `Host` is a loopback address or `localhost`, and that no web page sent.
pub(super) async fn check(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // With another name, DNS may have been rebound to this address.
    if !host.is_some_and(is_loopback) {
        let message = "only requests for a loopback address are answered\n";
        return (StatusCode::MISDIRECTED_REQUEST, message).into_response();
    }
    if headers.contains_key(header::ORIGIN) {
        let message = "requests of web pages are refused\n";
        return (StatusCode::FORBIDDEN, message).into_response();
    }
    next.run(request).await
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
