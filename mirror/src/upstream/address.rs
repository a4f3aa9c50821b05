//! Where on the network an upstream's answers may lead: not into private networks that the
//! upstream is no part of, or any registry could have the mirror ask the neighbours for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::trust::HostPattern;

/// A kind of address that is not for everyone, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Public = 0,
    Loopback = 1,
    LinkLocal = 2,
    Private = 4,
    /// 100.64/10 (RFC 6598), which clouds use for their own services.
    Shared = 8,
    /// Multicast, reserved, benchmarking: nowhere that a registry could be.
    Special = 16,
}

impl Place {
    /// The place of an address, or of the IPv4 address that it stands for.
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => embedded(ip).map_or_else(|| Self::of_v6(ip), Self::of_v4),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            // Linux connects 0.0.0.0 to the loopback.
            [127 | 0, ..] => Self::Loopback,
            [169, 254, ..] => Self::LinkLocal,
            [100, 64..=127, ..] => Self::Shared,
            [192, 0, 0, _] | [198, 18 | 19, ..] | [224..=255, ..] => Self::Special,
            _ if ip.is_private() => Self::Private,
            _ => Self::Public,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        match ip.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Self::Loopback,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            // Unique local, the older site local, and the NAT64 prefix for local use (RFC 8215).
            [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..] => Self::Private,
            [0xff00..=0xffff, ..] => Self::Special,
            _ => Self::Public,
        }
    }
}

/// The IPv4 address inside a mapped, compatible, NAT64 (RFC 6052) or 6to4 (RFC 3056) address.
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

/// Decides which addresses may be connected to.
#[derive(Debug)]
pub(super) struct Guard {
    /// The upstream's own host, as URLs write it.
    home: String,
    names: Vec<HostPattern>,
    networks: Vec<IpNet>,
    /// The key of the configuration that can allow more.
    key: &'static str,
    /// The places that the upstream itself was seen at.
    seen: AtomicU8,
}

impl Guard {
    /// Returns a guard for the upstream at `remote`; `trusted` are names, addresses and CIDRs, of the lists below `key`.
    pub(super) fn new<'a>(
        remote: &Url,
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
        let guard = Self {
            home: remote.host_str().unwrap_or_default().to_owned(),
            names,
            networks,
            key,
            seen: AtomicU8::new(0),
        };
        if let Some(ip) = literal(remote) {
            guard.see(ip);
        }
        Arc::new(guard)
    }

    fn see(&self, ip: IpAddr) {
        self.seen.fetch_or(Place::of(ip) as u8, Ordering::Relaxed);
    }

    /// Whether a connection to this address of this host may be made.
    pub(super) fn admits(&self, host: &str, ip: IpAddr) -> bool {
        let place = Place::of(ip);
        place == Place::Public
            || host == self.home
            || self.seen.load(Ordering::Relaxed) & place as u8 != 0
            || self.networks.iter().any(|network| network.contains(&ip))
            || self.names.iter().any(|name| name.matches_host(host))
    }

    /// Whether a URL that names its address itself may be asked; names are checked as they resolve.
    pub(super) fn admits_literal(&self, url: &Url) -> bool {
        literal(url).is_none_or(|ip| self.admits(url.host_str().unwrap_or_default(), ip))
    }

    /// Returns the refusal to connect to a host.
    pub(super) fn refuse(&self, host: &str) -> Refused {
        let (host, key) = (host.to_owned(), self.key);
        Refused { host, key }
    }

    fn filter(&self, host: &str, found: impl Iterator<Item = SocketAddr>) -> Result<Addrs, Refused> {
        let mut admitted = Vec::new();
        for address in found {
            if host == self.home {
                self.see(address.ip());
            }
            if self.admits(host, address.ip()) {
                admitted.push(address);
            }
        }
        if admitted.is_empty() {
            return Err(self.refuse(host));
        }
        Ok(Box::new(admitted.into_iter()))
    }
}

/// The address that a URL names, whatever notation it was written in.
fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
        Host::Domain(_) => None,
    }
}

/// A name that leads to where the upstream may not lead.
#[derive(Debug, thiserror::Error)]
#[error("{host} is inside a private network that the upstream is no part of; {key}.redirects can allow it")]
pub(super) struct Refused {
    host: String,
    key: &'static str,
}

/// Resolves as the system does, and leaves out what the guard refuses.
pub(super) struct GuardedResolver(pub(super) Arc<Guard>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(guard.filter(name.as_str(), found)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn guard(remote: &str, trusted: &[&str]) -> Arc<Guard> {
        Guard::new(&remote.parse().unwrap(), "trust", trusted.iter().copied())
    }

    #[test_case("8.8.8.8" => Place::Public)]
    #[test_case("127.8.0.1" => Place::Loopback)]
    #[test_case("0.0.0.0" => Place::Loopback)]
    #[test_case("10.1.2.3" => Place::Private)]
    #[test_case("172.31.0.1" => Place::Private)]
    #[test_case("172.32.0.1" => Place::Public)]
    #[test_case("192.168.0.1" => Place::Private)]
    #[test_case("169.254.169.254" => Place::LinkLocal)]
    #[test_case("100.100.100.200" => Place::Shared)]
    #[test_case("100.128.0.1" => Place::Public)]
    #[test_case("224.0.0.1" => Place::Special)]
    #[test_case("255.255.255.255" => Place::Special)]
    #[test_case("::1" => Place::Loopback)]
    #[test_case("::" => Place::Loopback)]
    #[test_case("fe80::1" => Place::LinkLocal)]
    #[test_case("fd00:ec2::254" => Place::Private)]
    #[test_case("2606:4700::1" => Place::Public)]
    #[test_case("::ffff:169.254.169.254" => Place::LinkLocal; "mapped")]
    #[test_case("::127.0.0.1" => Place::Loopback; "compatible")]
    #[test_case("64:ff9b::a9fe:a9fe" => Place::LinkLocal; "nat64")]
    #[test_case("64:ff9b::808:808" => Place::Public; "nat64 of a public address")]
    #[test_case("64:ff9b:1::808:808" => Place::Private; "nat64 for local use")]
    #[test_case("2002:7f00:1::" => Place::Loopback; "6to4")]
    fn places(ip: &str) -> Place {
        Place::of(ip.parse().unwrap())
    }

    #[test_case("http://8.8.8.8/" => true; "public")]
    #[test_case("http://127.0.0.1/" => false; "loopback")]
    #[test_case("http://2130706433/" => false; "loopback as a number")]
    #[test_case("http://0x7f.1/" => false; "loopback in hexadecimal")]
    #[test_case("http://[::ffff:127.0.0.1]/" => false; "mapped loopback")]
    #[test_case("http://10.1.0.1/" => true; "inside the trusted network")]
    #[test_case("http://10.2.0.1/" => false; "beside the trusted network")]
    #[test_case("http://192.168.7.7/" => true; "the trusted address")]
    fn literal_addresses_are_checked_in_every_notation(url: &str) -> bool {
        guard("https://registry.example", &["10.1.0.0/16", "192.168.7.7"])
            .admits_literal(&url.parse().unwrap())
    }

    #[test]
    fn an_upstream_on_the_loopback_may_lead_there_but_not_to_the_metadata_service() {
        let guard = guard("http://127.0.0.1:5000", &[]);
        assert!(guard.admits_literal(&"http://127.0.0.2:9000/".parse().unwrap()));
        assert!(!guard.admits_literal(&"http://169.254.169.254/".parse().unwrap()));
    }

    #[test]
    fn a_private_network_opens_once_the_upstreams_own_name_resolved_into_it() {
        let guard = guard("https://registry.corp", &[]);
        let inside = || std::iter::once("10.0.0.7:0".parse().unwrap());
        assert!(guard.filter("store.corp", inside()).is_err());
        assert!(guard.filter("registry.corp", inside()).is_ok());
        assert_eq!(guard.filter("store.corp", inside()).unwrap().count(), 1);
    }

    #[test]
    fn of_a_names_addresses_only_the_admitted_are_left() {
        let both = ["127.0.0.1:0", "8.8.8.8:0"].map(|a| a.parse().unwrap());
        let left = guard("https://registry.example", &[])
            .filter("cdn.example", both.into_iter())
            .unwrap();
        assert_eq!(left.collect::<Vec<_>>(), ["8.8.8.8:0".parse().unwrap()]);
    }

    #[test]
    fn a_trusted_name_may_be_anywhere() {
        let guard = guard("https://registry.example", &["*.store.corp"]);
        assert!(guard.admits("s3.store.corp", "10.0.0.1".parse().unwrap()));
        assert!(!guard.admits("s3.other.corp", "10.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_name_is_checked_as_it_resolves() {
        let resolve = |trusted: &'static [&str]| {
            let resolver = GuardedResolver(guard("https://registry.example", trusted));
            resolver.resolve("localhost".parse().unwrap())
        };
        let refused = resolve(&[]).await.err().unwrap();
        assert!(refused.to_string().contains("private network"), "{refused}");
        assert!(resolve(&["localhost"]).await.is_ok());
        assert!(resolve(&["127.0.0.0/8", "::1"]).await.is_ok());
    }

    proptest! {
        #[test]
        fn no_way_to_write_an_ipv4_address_changes_its_place(bits: u32) {
            let ip = Ipv4Addr::from(bits);
            let place = Place::of(ip.into());
            prop_assert_eq!(Place::of(ip.to_ipv6_mapped().into()), place);
            let nat64 = u128::from(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)) | u128::from(bits);
            prop_assert_eq!(Place::of(Ipv6Addr::from(nat64).into()), place);
        }
    }
}
