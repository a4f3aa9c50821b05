//! The rule for which servers receive an upstream's credentials.

use url::{Host, Url};

use crate::config;

/// `host`, `host:port`, or `*.domain` for the names below a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct HostPattern {
    name: String,
    port: Option<u16>,
}

impl HostPattern {
    pub(in crate::upstream) fn new(text: &str) -> Self {
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

    pub(in crate::upstream) fn matches_host(&self, host: &str) -> bool {
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

/// The rule for showing the credentials of one upstream.
#[derive(Clone)]
pub(in crate::upstream) struct Policy {
    remote: Url,
    /// Hosts of token servers that the configuration names.
    realms: Vec<HostPattern>,
    /// Those, and hosts that redirects may lead to.
    named: Vec<HostPattern>,
    /// Credentials may go in clear text.
    clear_text: bool,
    /// The key of the configuration that has both lists.
    pub(in crate::upstream) key: &'static str,
}

impl Policy {
    /// Returns the policy for an upstream at `remote`.
    pub(in crate::upstream) fn new(remote: Url, config: &config::Upstream) -> Self {
        let patterns = |entries: &[String]| entries.iter().map(|entry| HostPattern::new(entry)).collect();
        let realms: Vec<_> = patterns(&config.trust.realms);
        let named = [patterns(&config.trust.redirects), realms.clone()].concat();
        Self {
            remote,
            realms,
            named,
            clear_text: config.insecure_allow_http_credentials,
            key: config.trust.key,
        }
    }

    /// Returns the audience of a request that no redirect has led elsewhere.
    pub(in crate::upstream) fn home(&self) -> Audience {
        Audience::new(&self.remote, true)
    }

    /// Returns the audience that a redirect from `before` to `url` leads to. Trust that a chain of redirects lost does not
    /// come back, though it ends at the upstream: a stranger chose that URL.
    pub(in crate::upstream) fn audience(&self, before: &Audience, url: &Url) -> Audience {
        let home = url.origin() == self.remote.origin();
        Audience::new(
            url,
            before.trusted && (home || self.keeps_at(&self.remote, url, &self.named)),
        )
    }

    /// Returns true if a secret for the token server at `start` may be shown at `url`, where that one redirects to. A host
    /// that only redirects of the upstream may lead to is no token server, and may be a storage.
    pub(in crate::upstream) fn keeps(&self, start: &Url, url: &Url) -> bool {
        self.keeps_at(start, url, &self.realms)
    }

    /// Returns true if a secret for `start` may be shown at `url`, where a redirect leads: at the same origin, on the same
    /// host where http has become https, whatever the ports are, and on a listed host.
    fn keeps_at(&self, start: &Url, url: &Url, listed: &[HostPattern]) -> bool {
        let upgraded = start.scheme() == "http" && url.scheme() == "https" && start.host() == url.host();
        let named = || listed.iter().any(|entry| entry.matches(url));
        let same = start.origin() == url.origin() || upgraded || named();
        same && is_as_sealed(start, url) && self.may_send_to(url)
    }

    /// Returns true if the token server at `realm` may see the credentials for this audience.
    pub(in crate::upstream) fn opens(&self, audience: &Audience, realm: &Url) -> bool {
        may_see_credentials(&audience.url, realm, &self.realms) && self.may_send_to(realm)
    }

    /// Returns true if credentials may be sent over such a connection.
    pub(in crate::upstream) fn may_send_to(&self, url: &Url) -> bool {
        url.scheme() == "https" || self.clear_text || is_loopback(url)
    }
}

/// A registry, or a storage, that a request has reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct Audience {
    /// Scheme, host and port only.
    pub(in crate::upstream) url: Url,
    /// The credentials may be shown there.
    pub(in crate::upstream) trusted: bool,
}

impl Audience {
    /// Returns the audience at the origin of `url`.
    pub(in crate::upstream) fn new(url: &Url, trusted: bool) -> Self {
        let mut url = crate::upstream::bare(url);
        url.set_path("/");
        Self { url, trusted }
    }
}

/// Returns true if the connection to `url` is as well encrypted as the one to `start`.
fn is_as_sealed(start: &Url, url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && start.scheme() == "http")
}

/// Returns true if a token server at `realm` may see the credentials for `upstream`: it is as well encrypted,
/// and on the upstream's host, its registrable domain, or listed.
fn may_see_credentials(upstream: &Url, realm: &Url, listed: &[HostPattern]) -> bool {
    is_as_sealed(upstream, realm)
        && (realm.host() == upstream.host()
            || same_owner(upstream, realm)
            || listed.iter().any(|entry| entry.matches(realm)))
}

/// Returns true if both names lie below the same registrable domain. Names below no listed public suffix
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

/// Returns true for a URL of this very machine, where no other machine sees clear text.
pub(in crate::upstream) fn is_loopback(url: &Url) -> bool {
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

    /// The token servers that receive the credentials of an upstream.
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
    fn credentials_are_sent_to(upstream: &str, realm: &str) -> bool {
        let listed = ["sso.corp", "port.corp:8443", "*.wild.corp"].map(HostPattern::new);
        may_see_credentials(&upstream.parse().unwrap(), &realm.parse().unwrap(), &listed)
    }

    fn policy(remote: &str) -> Policy {
        let listed = |entries: &[&str]| entries.iter().map(|entry| HostPattern::new(entry)).collect();
        Policy {
            remote: remote.parse().unwrap(),
            realms: listed(&["sso.corp"]),
            named: listed(&["sso.corp", "other.corp", "10.0.0.0/8"]),
            clear_text: false,
            key: "trust",
        }
    }

    #[test_case("https://r.corp", "https://r.corp/x" => true; "same origin")]
    #[test_case("https://r.corp", "https://r.corp:8443/x" => false; "another port")]
    #[test_case("http://127.0.0.1:1", "http://127.0.0.1:2/x" => false; "another port in clear text")]
    #[test_case("http://r.corp", "https://r.corp/x" => true; "upgraded")]
    #[test_case("http://r.corp:5000", "https://r.corp:5443/x" => true; "upgraded on another port")]
    #[test_case("https://r.corp", "http://r.corp/x" => false; "downgraded")]
    #[test_case("http://r.corp", "https://cdn.r.corp/x" => false; "a name below it")]
    #[test_case("https://r.example.com", "https://cdn.example.com/x" => false; "the same domain")]
    #[test_case("https://r.corp", "https://other.corp/x" => true; "named for redirects")]
    #[test_case("https://r.corp", "https://sso.corp/x" => true; "named for tokens")]
    #[test_case("http://r.corp", "http://other.corp/x" => false; "named, in clear text")]
    #[test_case("https://r.corp", "https://10.0.0.1/x" => false; "in a network that is named")]
    fn a_redirect_keeps_credentials(start: &str, url: &str) -> bool {
        let policy = policy(start);
        policy.audience(&policy.home(), &url.parse().unwrap()).trusted
    }

    /// The trust that a redirect lost does not return with a later one.
    #[test]
    fn trust_lost_by_redirect_stays_lost() {
        let policy = policy("https://r.corp");
        let away = policy.audience(&policy.home(), &"https://evil.corp/".parse().unwrap());
        for url in ["https://r.corp/", "https://other.corp/"] {
            assert!(!policy.audience(&away, &url.parse().unwrap()).trusted, "{url}");
        }
    }

    /// The colons of an IPv6 address in brackets are no port.
    #[test]
    fn bracketed_address_is_no_port() {
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
