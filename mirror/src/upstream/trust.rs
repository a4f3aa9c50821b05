//! Which token servers may be shown an upstream's credentials.

use url::{Host, Url};

/// `host`, `host:port`, or `*.domain` for the names below a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPattern {
    name: String,
    port: Option<u16>,
}

impl HostPattern {
    pub(super) fn new(text: &str) -> Self {
        let text = text.trim().to_ascii_lowercase();
        match text.rsplit_once(':') {
            // An address in brackets has colons that start no port.
            Some((name, port)) if !port.contains(']') && port.parse::<u16>().is_ok() => Self {
                name: name.to_owned(),
                port: port.parse().ok(),
            },
            _ => Self {
                name: text,
                port: None,
            },
        }
    }

    pub(super) fn matches_host(&self, host: &str) -> bool {
        match self.name.strip_prefix('*') {
            Some(domain) => host.len() > domain.len() && domain.starts_with('.') && host.ends_with(domain),
            None => host == self.name,
        }
    }

    fn matches(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.matches_host(host))
            && (self.port.is_none() || self.port == url.port_or_known_default())
    }
}

/// Whether a token server at `realm` may see the credentials for `upstream`: it is as well encrypted,
/// and on the upstream's host, its registrable domain, or listed.
pub(super) fn may_see_credentials(upstream: &Url, realm: &Url, listed: &[HostPattern]) -> bool {
    let sealed = realm.scheme() == "https" || (realm.scheme() == "http" && upstream.scheme() == "http");
    sealed
        && (realm.host() == upstream.host()
            || same_owner(upstream, realm)
            || listed.iter().any(|entry| entry.matches(realm)))
}

/// Whether both names lie below the same registrable domain. Names below no listed public suffix
/// (`cluster.local`) have no known owner.
fn same_owner(one: &Url, other: &Url) -> bool {
    match (registrable(one), registrable(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

fn registrable(url: &Url) -> Option<&[u8]> {
    let Some(Host::Domain(name)) = url.host() else {
        return None;
    };
    let domain = psl::domain(name.as_bytes())?;
    domain.suffix().is_known().then(|| domain.as_bytes())
}

/// Whether a URL is of this very machine, where clear text is seen by nobody else.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("https://registry-1.docker.io", "https://auth.docker.io/token" => true; "registrable domain")]
    #[test_case("https://quay.io", "https://quay.io:8443/v2/auth" => true; "same host, other port")]
    #[test_case("https://registry.example.co.uk", "https://evil.co.uk/token" => false; "public suffix")]
    #[test_case("https://a.github.io", "https://b.github.io/token" => false; "private suffix")]
    #[test_case("https://registry.example.com", "https://example.com.evil.net/token" => false; "look-alike")]
    #[test_case("https://registry.example.com", "http://auth.example.com/token" => false; "clear text")]
    #[test_case("http://registry.example.com", "http://auth.example.com/token" => true; "clear text as upstream")]
    #[test_case("https://r.apps.svc.cluster.local", "https://auth.apps.svc.cluster.local/t" => false; "no known suffix")]
    #[test_case("https://r.apps.svc.cluster.local", "https://r.apps.svc.cluster.local/t" => true; "no known suffix, same host")]
    #[test_case("https://harbor", "https://auth/token" => false; "single labels")]
    #[test_case("https://10.0.0.1", "https://10.0.0.2/token" => false; "addresses")]
    #[test_case("https://10.0.0.1:5000", "https://10.0.0.1/token" => true; "same address")]
    #[test_case("https://10.0.0.1", "https://sso.corp/token" => true; "listed")]
    #[test_case("https://10.0.0.1", "http://sso.corp/token" => false; "listed, in clear text")]
    #[test_case("https://10.0.0.1", "https://port.corp:8443/token" => true; "listed with its port")]
    #[test_case("https://10.0.0.1", "https://port.corp/token" => false; "listed with another port")]
    #[test_case("https://10.0.0.1", "https://a.wild.corp/token" => true; "below a listed domain")]
    #[test_case("https://10.0.0.1", "https://wild.corp/token" => false; "the listed domain itself")]
    fn credentials_go_to(upstream: &str, realm: &str) -> bool {
        let listed = ["sso.corp", "port.corp:8443", "*.wild.corp"].map(HostPattern::new);
        may_see_credentials(&upstream.parse().unwrap(), &realm.parse().unwrap(), &listed)
    }

    #[test]
    fn an_address_in_brackets_is_no_port() {
        let pattern = HostPattern::new("[2001:db8::1]");
        assert!(pattern.matches(&"https://[2001:db8::1]:5000/".parse().unwrap()));
        assert_eq!(HostPattern::new("[2001:db8::1]:5000").port, Some(5000));
    }

    #[test_case("http://localhost:5000" => true)]
    #[test_case("http://127.0.0.9" => true)]
    #[test_case("http://[::1]:1" => true)]
    #[test_case("http://localhost.example.com" => false)]
    #[test_case("http://10.0.0.1" => false)]
    fn loopback(url: &str) -> bool {
        is_loopback(&url.parse().unwrap())
    }
}
