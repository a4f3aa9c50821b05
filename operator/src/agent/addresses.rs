//! The addresses of a node's network interfaces, by which servers see its pulls.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The routing table of IPv4 in the kernel's format, with all local addresses.
const IPV4: &str = "/proc/net/fib_trie";
/// The addresses of IPv6 interfaces.
const IPV6: &str = "/proc/net/if_inet6";
/// The maximum number of addresses of a family.
const MAX_ADDRESSES: usize = 64;

/// Reads the addresses of the network namespace. Empty if the kernel shows none.
pub(super) fn read() -> Vec<IpAddr> {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let ipv4 = local_ipv4(&text(IPV4)).into_iter().take(MAX_ADDRESSES);
    let ipv6 = ipv6(&text(IPV6)).into_iter().take(MAX_ADDRESSES);
    ipv4.map(IpAddr::V4).chain(ipv6.map(IpAddr::V6)).collect()
}

/// Returns the local addresses of a routing table: those whose next line marks them as `host LOCAL`.
fn local_ipv4(table: &str) -> BTreeSet<Ipv4Addr> {
    let mut last = None;
    let mut found = BTreeSet::new();
    for line in table.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line.ends_with("host LOCAL") {
            let is_seen = |ip: &Ipv4Addr| !ip.is_loopback() && !ip.is_link_local();
            found.extend(last.filter(is_seen));
        }
    }
    found
}

/// Returns the addresses of a list of interfaces, each line of which begins with 32 hexadecimal digits.
fn ipv6(list: &str) -> BTreeSet<Ipv6Addr> {
    let addresses = list.lines().filter_map(|line| {
        let digits = line.split_whitespace().next()?;
        let bits = u128::from_str_radix(digits, 16).ok()?;
        Some(Ipv6Addr::from_bits(bits))
    });
    addresses
        .filter(|ip| !ip.is_loopback() && !ip.is_unicast_link_local())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.88.0.0/24 2 0 2
        |-- 10.88.0.0
           /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.88.0.0/24 2 0 2
        |-- 10.88.0.1
           /32 host LOCAL
        |-- 10.88.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 192.0.2.7
        /32 host LOCAL
";

    const LIST: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000000000000000001 02 40 20 80     eth0
20010db8000000000000000000000007 02 40 00 80     eth0
junk
";

    #[test]
    fn addresses_of_interfaces_are_read() {
        let ipv4: Vec<_> = local_ipv4(TABLE).iter().map(ToString::to_string).collect();
        assert_eq!(ipv4, ["10.88.0.1", "192.0.2.7"]);
        let ipv6: Vec<_> = ipv6(LIST).iter().map(ToString::to_string).collect();
        assert_eq!(ipv6, ["2001:db8::7"]);
    }
}
