//! The host that a request names, and the hosts of the pages.
//!
//! A browser that resolved the name of an attacker's page to an address of this machine (DNS rebinding) takes each answer
//! for a part of that page. Only the host in the request differs from that of a user's own request.

use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

/// The address of the client for which a proxy sends a request.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The ends of names that no public DNS server has.
const PRIVATE: [&str; 3] = [".svc", ".cluster.local", ".localhost"];

/// Returns `true` if the name of each host that a request names fits: of `Host`, and of an absolute target, which takes
/// precedence (RFC 9112, 3.2.2).
pub(crate) fn all_hosts(headers: &HeaderMap, target: &Uri, fits: impl Fn(&str) -> bool) -> bool {
    let of_authority =
        |authority: &Authority| fits(authority.host().trim_start_matches('[').trim_end_matches(']'));
    let of_header = |value: &HeaderValue| {
        let authority = value
            .to_str()
            .ok()
            .and_then(|text| text.parse::<Authority>().ok());
        authority.is_some_and(|authority| of_authority(&authority))
    };
    headers.get_all(header::HOST).iter().all(of_header) && target.authority().is_none_or(of_authority)
}

/// The names by which browsers open the pages, next to addresses and names of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageHosts(Vec<String>);

/// A text that is no name of a host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no host name: expected a name such as mirror.example.com, without a scheme, a port or a path"
)]
pub struct InvalidPageHost(String);

impl PageHosts {
    /// Creates the set of these names.
    ///
    /// # Errors
    /// The first text that is no name of a host.
    pub fn new(names: impl IntoIterator<Item = String>) -> Result<Self, InvalidPageHost> {
        let check = |name: String| {
            if is_name(&name) {
                Ok(name)
            } else {
                Err(InvalidPageHost(name))
            }
        };
        names.into_iter().map(check).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the names as they were written.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Returns `true` if a request for a page may be answered: each host that it names is an address, a name that no
    /// public DNS server has, or one of these; or a proxy such as the API server sent it for a client that is no browser.
    pub fn admit(&self, headers: &HeaderMap, target: &Uri) -> bool {
        // Browsers send Accept-Language with each request, and no script can remove it.
        let is_of_program = !headers.contains_key(header::ACCEPT_LANGUAGE);
        (is_of_program && headers.contains_key(FORWARDED_FOR))
            || all_hosts(headers, target, |name| self.has(name))
    }

    fn has(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        is_private(name) || self.0.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Returns `true` for an address, and for a name that only a local resolver has.
fn is_private(name: &str) -> bool {
    let is_below = |end: &&str| {
        let start = name.len().checked_sub(end.len());
        start
            .and_then(|start| name.get(start..))
            .is_some_and(|found| found.eq_ignore_ascii_case(end))
    };
    !name.contains('.') || name.parse::<IpAddr>().is_ok() || PRIVATE.iter().any(is_below)
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(is_inner)
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn admits(request: http::request::Builder) -> bool {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let hosts = PageHosts::new(["mirror.example.com".to_owned()]).unwrap();
        hosts.admit(&parts.headers, &parts.uri)
    }

    #[test_case("10.0.0.7:5001" => true; "an address")]
    #[test_case("[fd00::7]:5001" => true; "an IPv6 address")]
    #[test_case("localhost:5001" => true)]
    #[test_case("mirror:5001" => true; "a name without a domain")]
    #[test_case("hub-0.hub-headless.mirrors.svc:5001" => true; "a Service")]
    #[test_case("hub.mirrors.SVC.cluster.local." => true; "a Service with its domain")]
    #[test_case("Mirror.Example.com" => true; "a name of the setting")]
    #[test_case("evil.example" => false; "another name")]
    #[test_case("10.0.0.7.evil.example:5001" => false; "a name that begins like an address")]
    #[test_case("hub.mirrors.svc.evil.example" => false; "a name that begins like a Service")]
    #[test_case("evil.mirror.example.com" => false; "a name below that of the setting")]
    #[test_case("" => false; "empty")]
    #[test_case("a b" => false; "malformed")]
    fn page_has_hosts(host: &str) -> bool {
        admits(http::Request::get("/").header(header::HOST, host))
    }

    /// An absolute target and a second `Host` count too.
    #[test]
    fn each_named_host_is_checked() {
        let request = |target: &str| http::Request::get(target).header(header::HOST, "127.0.0.1");
        assert!(admits(request("http://127.0.0.1/")));
        assert!(!admits(request("http://evil.example/")));
        assert!(!admits(request("/").header(header::HOST, "evil.example")));
        assert!(admits(http::Request::get("/")), "HTTP/1.0 needs no Host");
    }

    /// `kubectl get --raw .../proxy/status` has the name of the API server as its host.
    #[test]
    fn forwarded_request_of_a_program_is_admitted() {
        let request = || {
            let request = http::Request::get("/status").header(header::HOST, "api.example.com");
            request.header(FORWARDED_FOR, "10.0.0.9")
        };
        assert!(admits(request()));
        assert!(!admits(request().header(header::ACCEPT_LANGUAGE, "en")));
    }

    #[test_case("mirror.example.com" => true)]
    #[test_case("mirror.example.com:5001" => false; "a port")]
    #[test_case("https://mirror.example.com" => false; "a scheme")]
    #[test_case("*" => false; "a pattern")]
    #[test_case("" => false; "empty")]
    fn page_host_is_a_name(text: &str) -> bool {
        PageHosts::new([text.to_owned()]).is_ok()
    }
}
