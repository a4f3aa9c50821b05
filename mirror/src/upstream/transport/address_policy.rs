//! The part of the network that an upstream's answers may lead to: no private network that the upstream is no part of,
//! or any registry could have the mirror ask the neighbours for it.
//!
//! A name proves nothing, as its owner chooses its addresses. An address is the upstream's own where `remoteURL` names
//! it, or once TLS succeeded with it for the upstream's name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use url::{Host, Url};

use crate::upstream::auth::trust::{HostPattern, is_loopback};

/// The scope of an IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum AddressScope {
    Public = 0,
    Loopback = 1,
    /// Also the services of clouds for their own machines (metadata, credentials), wherever their address is.
    LinkLocal = 2,
    Private = 4,
    /// 100.64/10 (RFC 6598), which clouds use for their own services.
    Shared = 8,
    /// Multicast, reserved, benchmarking: nowhere that a registry could be.
    Special = 16,
}

impl AddressScope {
    /// Returns the scope of an address, or of the IPv4 address that it embeds.
    pub(in crate::upstream) fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::from_v4(ip),
            IpAddr::V6(ip) => embedded(ip).map_or_else(|| Self::from_v6(ip), Self::from_v4),
        }
    }

    fn from_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            // Linux connects 0.0.0.0 to the loopback.
            [127 | 0, ..] => Self::Loopback,
            // The last two are Alibaba Cloud's metadata service and Azure's WireServer.
            [169, 254, ..] | [100, 100, 100, 200] | [168, 63, 129, 16] => Self::LinkLocal,
            [100, 64..=127, ..] => Self::Shared,
            [192, 0, 0, _] | [198, 18 | 19, ..] | [224..=255, ..] => Self::Special,
            _ if ip.is_private() => Self::Private,
            _ => Self::Public,
        }
    }

    fn from_v6(ip: Ipv6Addr) -> Self {
        match ip.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Self::Loopback,
            // The last two are the metadata services of Amazon EC2 and Google Cloud.
            [0xfe80..=0xfebf, ..]
            | [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
            | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => Self::LinkLocal,
            // Unique local, the older site local, and the NAT64 prefix for local use (RFC 8215).
            [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..] => Self::Private,
            [0xff00..=0xffff, ..] => Self::Special,
            _ => Self::Public,
        }
    }
}

/// Returns the IPv4 address inside a mapped, compatible, NAT64 (RFC 6052) or 6to4 (RFC 3056) address.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

/// Marks that the upstream's name had a public address, which is no bit of [`AddressScope`].
const PUBLIC: u8 = 128;

/// The rule for the addresses that an upstream's requests may go to.
#[derive(Debug)]
pub(in crate::upstream) struct AddressPolicy {
    remote: Url,
    /// TLS proves the upstream's name: its certificate is verified.
    verifies: bool,
    names: Vec<HostPattern>,
    networks: Vec<IpNet>,
    /// The key of the configuration that can allow more.
    key: &'static str,
    /// The scopes of addresses that are the upstream's own.
    own: AtomicU8,
    /// The scopes that the upstream's name had up to the look-up that first had a public address, which sets [`PUBLIC`].
    named: AtomicU8,
}

impl AddressPolicy {
    /// Returns the policy for the upstream at `remote`, whose certificate is verified or not; `trusted` are names,
    /// addresses and CIDRs, of the lists below `key`.
    pub(in crate::upstream) fn new<'a>(
        remote: &Url,
        verifies: bool,
        key: &'static str,
        trusted: impl Iterator<Item = &'a str>,
    ) -> Arc<Self> {
        let (mut names, mut networks) = (Vec::new(), Vec::new());
        for entry in trusted {
            let address = || entry.parse::<IpAddr>().map(IpNet::from);
            match entry.parse::<IpNet>().or_else(|_| address()) {
                Ok(network) => networks.push(network),
                Err(_) => names.push(HostPattern::new(entry)),
            }
        }
        // The name `localhost` is as good as its address (RFC 6761, 6.3).
        let own = literal(remote).map(AddressScope::from_ip);
        let own = own.or_else(|| is_loopback(remote).then_some(AddressScope::Loopback));
        Arc::new(Self {
            remote: remote.clone(),
            verifies,
            names,
            networks,
            key,
            own: AtomicU8::new(own.map_or(0, |scope| scope as u8)),
            named: AtomicU8::new(0),
        })
    }

    /// Returns true if the configuration chose the server of a URL, or TLS proves that it is the upstream.
    pub(in crate::upstream) fn is_upstream(&self, url: &Url) -> bool {
        self.is_origin(url) || self.is_verified(url)
    }

    /// Returns true if a URL has the scheme, host and port of the upstream.
    pub(in crate::upstream) fn is_origin(&self, url: &Url) -> bool {
        url.origin() == self.remote.origin()
    }

    /// Returns true if a connection to a URL succeeds only with a certificate of the upstream's name.
    pub(in crate::upstream) fn is_verified(&self, url: &Url) -> bool {
        self.verifies && url.scheme() == "https" && url.host() == self.remote.host()
    }

    /// Notes that TLS succeeded with this address for the upstream's name. The machine itself, and what is only on its
    /// link, stay out of reach: no certificate makes them a registry's network.
    pub(in crate::upstream) fn prove(&self, ip: IpAddr) {
        match AddressScope::from_ip(ip) {
            AddressScope::Public | AddressScope::Loopback | AddressScope::LinkLocal => {}
            scope => _ = self.own.fetch_or(scope as u8, Ordering::Relaxed),
        }
    }

    /// Returns true if a connection to this address of this host may be made, wherever a server led.
    fn admits(&self, host: &str, ip: IpAddr) -> bool {
        let scope = AddressScope::from_ip(ip);
        scope == AddressScope::Public
            || self.own.load(Ordering::Relaxed) & scope as u8 != 0
            || self.networks.iter().any(|network| network.contains(&ip))
            || self.trusts(host)
    }

    /// Returns true if the upstream's own name may be at this address. What TLS does not prove must not change from a
    /// public network to a private one that it had no address in before.
    fn admits_upstream(&self, ip: IpAddr) -> bool {
        let scope = AddressScope::from_ip(ip);
        let is_near = matches!(scope, AddressScope::Loopback | AddressScope::LinkLocal);
        let is_proven = self.remote.scheme() == "https" && self.verifies;
        let named = self.named.load(Ordering::Relaxed);
        !is_near && (is_proven || named & PUBLIC == 0 || named & scope as u8 != 0)
    }

    /// Records the scopes of the upstream's name, unless it had a public address before.
    fn record_own(&self, found: &[SocketAddr]) {
        let scopes = found.iter().map(|address| AddressScope::from_ip(address.ip()));
        let bits = scopes.fold(0, |bits, scope| match scope {
            AddressScope::Public => bits | PUBLIC,
            scope => bits | scope as u8,
        });
        let add = |named: u8| (named & PUBLIC == 0).then_some(named | bits);
        // Nothing changes where it had a public address.
        let _ = self.named.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn trusts(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.matches_host(host))
    }

    /// Returns true if a URL that names its address itself may be asked; names are checked as they resolve.
    pub(in crate::upstream) fn admits_literal(&self, url: &Url) -> bool {
        literal(url).is_none_or(|ip| self.admits(url.host_str().unwrap_or_default(), ip))
    }

    /// Returns true if a proxy may be asked for a URL. The proxy resolves the name, so names that only a private network
    /// has are refused, unless they are the upstream's or trusted.
    pub(in crate::upstream) fn admits_proxied(&self, url: &Url) -> bool {
        let Some(Host::Domain(name)) = url.host() else {
            return true;
        };
        url.host() == self.remote.host() || !is_internal(name) || self.trusts(name)
    }

    /// Returns the refusal to connect to a host.
    pub(in crate::upstream) fn refuse(&self, host: &str) -> AddressRefused {
        let (host, key) = (host.to_owned(), self.key);
        AddressRefused::Private { host, key }
    }

    fn filter(
        &self,
        host: &str,
        to_upstream: bool,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Addrs, AddressRefused> {
        let found: Vec<_> = found.collect();
        let is_own_name = to_upstream && self.remote.host_str() == Some(host);
        if is_own_name {
            self.record_own(&found);
        }
        let is_admitted = |address: &SocketAddr| {
            self.admits(host, address.ip()) || (is_own_name && self.admits_upstream(address.ip()))
        };
        let admitted: Vec<_> = found.into_iter().filter(is_admitted).collect();
        if admitted.is_empty() {
            let (host, key) = (host.to_owned(), self.key);
            let was_public = is_own_name && self.named.load(Ordering::Relaxed) & PUBLIC != 0;
            return Err(if was_public {
                AddressRefused::NoLongerPublic { host, key }
            } else {
                AddressRefused::Private { host, key }
            });
        }
        Ok(Box::new(admitted.into_iter()))
    }
}

/// Returns the address that a URL names, whatever notation it was written in.
pub(in crate::upstream) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
        Host::Domain(_) => None,
    }
}

/// The last labels of names that no public name server knows: RFC 6761, 6762 and 8375, ICANN's list of names that are
/// never delegated, and the names of clusters and clouds.
const INTERNAL: [&str; 11] = [
    "local",
    "localhost",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "svc",
    "arpa",
];

/// Returns true for a name that only a private network has: of one label, or below a domain of such names.
fn is_internal(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    match name.rsplit_once('.') {
        Some((_, last)) => INTERNAL.contains(&last),
        None => true,
    }
}

/// A host with an address that the upstream may not redirect to.
#[derive(Debug, thiserror::Error)]
pub(in crate::upstream) enum AddressRefused {
    #[error(
        "{host} is inside a private network that the upstream is no part of, or on this machine or its link; \
         {key}.redirects can allow it"
    )]
    Private { host: String, key: &'static str },
    #[error(
        "{host} moved from a public address into a private network, and without https nothing proves that it is the \
         same registry; restart the server if that is right, or add the network to {key}.redirects"
    )]
    NoLongerPublic { host: String, key: &'static str },
}

/// The most names that are looked up at once, of an upstream's own and of other servers each.
const MAX_LOOKUPS: usize = 8;

/// A resolver that asks the system, and leaves out what the policy refuses.
pub(in crate::upstream) struct PolicyResolver {
    policy: Arc<AddressPolicy>,
    /// Resolves for requests to the upstream itself (see [`AddressPolicy::is_upstream`]).
    to_upstream: bool,
    /// Permits for look-ups: each takes a thread of those that read the disk.
    lookups: Arc<Semaphore>,
}

impl PolicyResolver {
    pub(in crate::upstream) fn new(policy: Arc<AddressPolicy>, to_upstream: bool) -> Self {
        Self {
            policy,
            to_upstream,
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
        }
    }
}

impl Resolve for PolicyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, to_upstream) = (self.policy.clone(), self.to_upstream);
        let lookups = Arc::clone(&self.lookups);
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = look_up(lookups, move || (host, 0).to_socket_addrs()).await??;
            Ok(policy.filter(name.as_str(), to_upstream, found)?)
        })
    }
}

/// Runs a look-up on a thread that may block. Its permit is held until it ends, which can outlast the request by half a
/// minute.
async fn look_up<T: Send + 'static>(
    lookups: Arc<Semaphore>,
    lookup: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    let permit = lookups.acquire_owned().await?;
    let lookup = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        lookup()
    });
    Ok(lookup.await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn policy(remote: &str, trusted: &[&str]) -> Arc<AddressPolicy> {
        AddressPolicy::new(&remote.parse().unwrap(), true, "trust", trusted.iter().copied())
    }

    fn at(address: &str) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(SocketAddr::new(address.parse().unwrap(), 0))
    }

    #[test_case("8.8.8.8" => AddressScope::Public)]
    #[test_case("127.8.0.1" => AddressScope::Loopback)]
    #[test_case("0.0.0.0" => AddressScope::Loopback)]
    #[test_case("10.1.2.3" => AddressScope::Private)]
    #[test_case("172.31.0.1" => AddressScope::Private)]
    #[test_case("172.32.0.1" => AddressScope::Public)]
    #[test_case("192.168.0.1" => AddressScope::Private)]
    #[test_case("169.254.169.254" => AddressScope::LinkLocal)]
    #[test_case("100.100.100.201" => AddressScope::Shared)]
    #[test_case("100.100.100.200" => AddressScope::LinkLocal; "metadata of Alibaba Cloud")]
    #[test_case("168.63.129.16" => AddressScope::LinkLocal; "WireServer of Azure")]
    #[test_case("100.128.0.1" => AddressScope::Public)]
    #[test_case("224.0.0.1" => AddressScope::Special)]
    #[test_case("255.255.255.255" => AddressScope::Special)]
    #[test_case("::1" => AddressScope::Loopback)]
    #[test_case("::" => AddressScope::Loopback)]
    #[test_case("fe80::1" => AddressScope::LinkLocal)]
    #[test_case("fd00:ec2::253" => AddressScope::Private)]
    #[test_case("fd00:ec2::254" => AddressScope::LinkLocal; "metadata of Amazon EC2")]
    #[test_case("fd20:ce::254" => AddressScope::LinkLocal; "metadata of Google Cloud")]
    #[test_case("2606:4700::1" => AddressScope::Public)]
    #[test_case("::ffff:169.254.169.254" => AddressScope::LinkLocal; "mapped")]
    #[test_case("::127.0.0.1" => AddressScope::Loopback; "compatible")]
    #[test_case("64:ff9b::a9fe:a9fe" => AddressScope::LinkLocal; "nat64")]
    #[test_case("64:ff9b::808:808" => AddressScope::Public; "nat64 of a public address")]
    #[test_case("64:ff9b:1::808:808" => AddressScope::Private; "nat64 for local use")]
    #[test_case("2002:7f00:1::" => AddressScope::Loopback; "6to4")]
    fn places(ip: &str) -> AddressScope {
        AddressScope::from_ip(ip.parse().unwrap())
    }

    /// The guard checks literal addresses in every notation.
    #[test_case("http://8.8.8.8/" => true; "public")]
    #[test_case("http://127.0.0.1/" => false; "loopback")]
    #[test_case("http://2130706433/" => false; "loopback as a number")]
    #[test_case("http://0x7f.1/" => false; "loopback in hexadecimal")]
    #[test_case("http://[::ffff:127.0.0.1]/" => false; "mapped loopback")]
    #[test_case("http://10.1.0.1/" => true; "inside the trusted network")]
    #[test_case("http://10.2.0.1/" => false; "beside the trusted network")]
    #[test_case("http://192.168.7.7/" => true; "the trusted address")]
    fn literal_addresses_are_checked_in_any_notation(url: &str) -> bool {
        policy("https://registry.example", &["10.1.0.0/16", "192.168.7.7"])
            .admits_literal(&url.parse().unwrap())
    }

    #[test_case("http://127.0.0.1:5000"; "by its address")]
    #[test_case("http://localhost:5000"; "by localhost")]
    #[test_case("http://registry.localhost"; "below localhost")]
    fn loopback_upstream_reaches_loopback_not_metadata_service(remote: &str) {
        let policy = policy(remote, &[]);
        assert!(policy.admits_literal(&"http://127.0.0.2:9000/".parse().unwrap()));
        assert!(policy.filter("store.test", false, at("127.0.0.1")).is_ok());
        assert!(!policy.admits_literal(&"http://169.254.169.254/".parse().unwrap()));
        assert!(policy.filter("localhost", true, at("169.254.169.254")).is_err());
    }

    /// The owner of a name chooses its addresses, so that only TLS proves them.
    #[test]
    fn private_network_opens_once_tls_proved_the_name() {
        let policy = policy("https://registry.corp", &[]);
        let leads = |address: &str| policy.filter("store.corp", false, at(address)).is_ok();
        assert!(policy.filter("registry.corp", true, at("10.0.0.7")).is_ok());
        assert!(!leads("10.0.0.7"), "a name that resolves");
        policy.prove("10.0.0.7".parse().unwrap());
        assert!(leads("10.0.0.8") && policy.admits_literal(&"http://10.0.0.9/".parse().unwrap()));
        for near in ["127.0.0.1", "169.254.169.254", "fe80::1"] {
            policy.prove(near.parse().unwrap());
            assert!(!leads(near), "{near}");
        }
    }

    #[test_case("https://registry.test/x", true; "the upstream")]
    #[test_case("https://registry.test:8443/x", true; "another port with a certificate")]
    #[test_case("http://registry.test/x", false; "clear text")]
    #[test_case("https://other.test/x", false; "another name")]
    fn only_tls_proves_the_upstream(url: &str, expected: bool) {
        let url = url.parse().unwrap();
        assert_eq!(policy("https://registry.test", &[]).is_upstream(&url), expected);
        let remote = "https://registry.test".parse().unwrap();
        let unverified = AddressPolicy::new(&remote, false, "trust", std::iter::empty());
        assert!(!unverified.is_verified(&url));
    }

    /// Refuses private addresses for the upstream's name unless the request goes to the upstream itself.
    #[test]
    fn own_name_by_another_way_is_any_name() {
        let policy = policy("https://registry.test", &[]);
        for private in ["10.0.0.7", "169.254.169.254", "127.0.0.1", "100.64.0.1"] {
            assert!(
                policy.filter("registry.test", false, at(private)).is_err(),
                "{private}"
            );
        }
        assert!(policy.filter("registry.test", false, at("8.8.8.8")).is_ok());
    }

    #[test]
    fn own_name_is_never_on_this_machine_or_its_link() {
        for remote in ["https://registry.test", "http://registry.test"] {
            let strict = policy(remote, &[]);
            for near in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1"] {
                assert!(strict.filter("registry.test", true, at(near)).is_err(), "{near}");
            }
            let trusting = policy(remote, &["registry.test"]);
            assert!(trusting.filter("registry.test", true, at("127.0.0.1")).is_ok());
        }
    }

    /// Nothing proves a name over http: it must not move from a public address into a private network.
    #[test]
    fn public_name_over_http_never_becomes_private() {
        let policy = policy("http://registry.test", &[]);
        assert!(policy.filter("registry.test", true, at("8.8.8.8")).is_ok());
        let both = at("10.0.0.7").chain(at("8.8.8.8"));
        let left: Vec<_> = policy.filter("registry.test", true, both).unwrap().collect();
        assert_eq!(left, ["8.8.8.8:0".parse().unwrap()]);
        let refused = policy
            .filter("registry.test", true, at("10.0.0.7"))
            .err()
            .unwrap();
        assert!(refused.to_string().contains("restart the server"), "{refused}");
        assert!(policy.filter("store.test", false, at("10.0.0.7")).is_err());
    }

    /// A name over http that has public and private addresses from the start keeps both, and opens nothing to redirects.
    #[test]
    fn name_with_both_kinds_over_http_keeps_both() {
        let policy = policy("http://registry.test", &[]);
        let both = || at("10.0.0.7").chain(at("8.8.8.8"));
        for _ in 0..2 {
            let left = policy.filter("registry.test", true, both()).unwrap();
            assert_eq!(left.count(), 2);
        }
        assert!(policy.filter("registry.test", true, at("10.0.0.8")).is_ok());
        assert!(policy.filter("registry.test", true, at("100.64.0.1")).is_err());
        assert!(policy.filter("store.test", false, at("10.0.0.7")).is_err());
    }

    /// Of the addresses of a name only those that are admitted remain.
    #[test]
    fn only_admitted_addresses_remain() {
        let left = policy("https://registry.example", &[])
            .filter("cdn.example", false, at("127.0.0.1").chain(at("8.8.8.8")))
            .unwrap();
        assert_eq!(left.collect::<Vec<_>>(), ["8.8.8.8:0".parse().unwrap()]);
    }

    #[test]
    fn a_trusted_name_may_be_anywhere() {
        let policy = policy("https://registry.example", &["*.store.corp"]);
        assert!(policy.admits("s3.store.corp", "10.0.0.1".parse().unwrap()));
        assert!(!policy.admits("s3.other.corp", "10.0.0.1".parse().unwrap()));
    }

    #[test_case("minio", false; "one label")]
    #[test_case("minio.", false; "one label and the root")]
    #[test_case("localhost", false)]
    #[test_case("a.localhost", false)]
    #[test_case("printer.local", false)]
    #[test_case("metadata.google.internal", false)]
    #[test_case("METADATA.Google.Internal.", false; "capitals and the root")]
    #[test_case("minio.storage.svc", false)]
    #[test_case("kubernetes.default.svc.cluster.local", false)]
    #[test_case("router.home.arpa", false)]
    #[test_case("nas.lan", false)]
    #[test_case("cdn.example.com", true; "a public name")]
    #[test_case("local.example.com", true; "a label within a public name")]
    #[test_case("harbor.corp", true; "the upstream")]
    #[test_case("s3.store.corp", true; "trusted")]
    fn proxy_is_asked_for_no_internal_name(host: &str, expected: bool) {
        let policy = policy("https://harbor.corp", &["*.store.corp"]);
        let url = format!("https://{host}/x").parse().unwrap();
        assert_eq!(policy.admits_proxied(&url), expected);
    }

    /// The guard checks a name when it resolves, and admits trusted names and networks.
    #[tokio::test]
    async fn name_is_checked_as_it_resolves() {
        let resolve = |trusted: &'static [&str]| {
            let resolver = PolicyResolver::new(policy("https://registry.example", trusted), false);
            resolver.resolve("localhost".parse().unwrap())
        };
        let refused = resolve(&[]).await.err().unwrap();
        assert!(refused.to_string().contains("private network"), "{refused}");
        assert!(resolve(&["localhost"]).await.is_ok());
        assert!(resolve(&["127.0.0.0/8", "::1"]).await.is_ok());
    }

    proptest! {
        /// No notation of an IPv4 address changes the place that it belongs to.
        #[test]
        fn ipv4_notation_does_not_change_its_place(bits: u32) {
            let ip = Ipv4Addr::from(bits);
            let place = AddressScope::from_ip(ip.into());
            prop_assert_eq!(AddressScope::from_ip(ip.to_ipv6_mapped().into()), place);
            let nat64 = u128::from(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)) | u128::from(bits);
            prop_assert_eq!(AddressScope::from_ip(Ipv6Addr::from(nat64).into()), place);
        }
    }

    /// A look-up that hangs keeps its permit when its request is given up: no more than the bound ever run.
    #[tokio::test]
    async fn abandoned_lookups_keep_their_permits() {
        let lookups = Arc::new(Semaphore::new(MAX_LOOKUPS));
        let begun = Arc::new(AtomicU8::new(0));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(parking_lot::Mutex::new(hang));
        for _ in 0..3 * MAX_LOOKUPS {
            let (begun, hang) = (Arc::clone(&begun), Arc::clone(&hang));
            let lookup = look_up(Arc::clone(&lookups), move || {
                begun.fetch_add(1, Ordering::Relaxed);
                // It ends when the sender is dropped.
                let _ = hang.lock().recv();
            });
            // Polled once, and dropped.
            drop(futures::future::select(Box::pin(lookup), std::future::ready(())).await);
        }
        assert_eq!(lookups.available_permits(), 0);
        drop(release);
        let all = lookups.acquire_many(u32::try_from(MAX_LOOKUPS).unwrap()).await;
        assert!(all.is_ok());
        assert_eq!(usize::from(begun.load(Ordering::Relaxed)), MAX_LOOKUPS);
    }
}
