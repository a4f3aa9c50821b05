//! The address that a client is counted by.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address by which the requests of a client are counted: an IPv4 address, the /64 network of an IPv6 address, or
/// `None` for all clients without one (unix sockets). Other replicas of this mirror count apart from clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientAddress {
    ip: Option<IpAddr>,
    is_replica: bool,
}

/// The word before the address of another replica of this mirror.
pub(crate) const REPLICA: &str = "replica ";

impl ClientAddress {
    /// Returns the address of the peer of a connection, `IP:PORT`, or `replica IP:PORT`.
    pub(crate) fn from_peer(peer: &str) -> Self {
        let (peer, is_replica) = match peer.strip_prefix(REPLICA) {
            Some(peer) => (peer, true),
            None => (peer, false),
        };
        Self {
            is_replica,
            ..Self::of_ip(peer.parse().ok().map(|address: SocketAddr| address.ip()))
        }
    }

    /// Returns whether another replica of this mirror asks: it is answered without a further replica.
    pub(crate) fn is_replica(self) -> bool {
        self.is_replica
    }

    /// Returns the address of a client; `None` is a client of a unix socket.
    pub(crate) fn of_ip(ip: Option<IpAddr>) -> Self {
        let ip = ip.map(|ip| match ip.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Ipv6Addr::from_bits(network).into()
            }
            address @ IpAddr::V4(_) => address,
        });
        let is_replica = false;
        Self { ip, is_replica }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("192.0.2.1:80", "192.0.2.1:81" => true; "ports of one address")]
    #[test_case("192.0.2.1:80", "[::ffff:192.0.2.1]:80" => true; "one address as IPv4 and IPv6")]
    #[test_case("[2001:db8::1]:80", "[2001:db8::2]:80" => true; "addresses of one network")]
    #[test_case("[2001:db8:0:1::1]:80", "[2001:db8:0:2::1]:80" => false; "addresses of two networks")]
    #[test_case("192.0.2.1:80", "192.0.2.2:80" => false; "two addresses")]
    #[test_case("unix", "unix" => true; "clients of a unix socket")]
    #[test_case("replica 192.0.2.1:80", "192.0.2.1:80" => false; "a replica and a client of one address")]
    fn addresses_are_grouped_by_network(one: &str, other: &str) -> bool {
        ClientAddress::from_peer(one) == ClientAddress::from_peer(other)
    }
}
