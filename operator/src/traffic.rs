//! The traffic and the caches of mirrors, as their servers report them.

use std::collections::HashMap;

use mirror::admin::{self, Status};
use parking_lot::Mutex;

use crate::mirror_key::MirrorKey;

/// The sums over the servers of a mirror, or over all mirrors: traffic of the last 24 hours, and the caches now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    hits: u64,
    misses: u64,
    served_bytes: u64,
    upstream_bytes: u64,
    /// Bytes in the caches.
    pub cache_bytes: u64,
    /// Bytes that the caches may take, as far as they have limits.
    pub limit_bytes: u64,
}

impl Traffic {
    /// Adds the report of a server.
    pub fn add_server(&mut self, status: &Status) {
        let day = status.last_day.clone().unwrap_or_default();
        self.add(&Self {
            hits: day.hits,
            misses: day.misses,
            served_bytes: day.served_bytes,
            upstream_bytes: day.upstream_bytes,
            cache_bytes: status.cache.bytes,
            limit_bytes: status.cache.limit_bytes.unwrap_or_default(),
        });
    }

    /// Adds the sums of a mirror.
    pub fn add(&mut self, other: &Self) {
        for (sum, part) in [
            (&mut self.hits, other.hits),
            (&mut self.misses, other.misses),
            (&mut self.served_bytes, other.served_bytes),
            (&mut self.upstream_bytes, other.upstream_bytes),
            (&mut self.cache_bytes, other.cache_bytes),
            (&mut self.limit_bytes, other.limit_bytes),
        ] {
            // A server is not trusted to report numbers that make sense.
            *sum = sum.saturating_add(part);
        }
    }

    /// Returns the part of hits, from 0 to 1; `None` without requests.
    pub fn hit_ratio(&self) -> Option<f64> {
        admin::hit_ratio(self.hits, self.misses)
    }

    /// Returns the bytes that clients received less those that upstreams sent.
    pub fn saved_bytes(&self) -> i64 {
        admin::saved_bytes(self.served_bytes, self.upstream_bytes)
    }
}

/// The traffic of each mirror, as its servers last reported it.
#[derive(Default)]
pub struct TrafficTable(Mutex<HashMap<MirrorKey, Traffic>>);

impl TrafficTable {
    /// Records the traffic of a mirror.
    pub fn set(&self, mirror: &MirrorKey, traffic: Traffic) {
        self.0.lock().insert(mirror.clone(), traffic);
    }

    /// Forgets a mirror.
    pub fn forget(&self, mirror: &MirrorKey) {
        self.0.lock().remove(mirror);
    }

    /// Returns the traffic of a mirror; `None` before a server reported.
    pub fn get(&self, mirror: &MirrorKey) -> Option<Traffic> {
        self.0.lock().get(mirror).cloned()
    }
}

#[cfg(test)]
mod tests {
    use mirror::admin::{CacheStatus, TrafficStatus};

    use super::*;

    /// The sums of two servers, of which one reports the largest numbers, are sums and no panic.
    #[test]
    fn traffic_of_servers_is_summed() {
        let server = |hits, served_bytes| Status {
            cache: CacheStatus {
                bytes: 5,
                ..CacheStatus::default()
            },
            last_day: Some(TrafficStatus {
                hits,
                misses: 1,
                served_bytes,
                upstream_bytes: 10,
                ..TrafficStatus::default()
            }),
            ..Status::default()
        };
        let mut traffic = Traffic::default();
        assert_eq!((traffic.hit_ratio(), traffic.saved_bytes()), (None, 0));
        traffic.add_server(&server(3, 100));
        traffic.add_server(&server(3, 20));
        assert_eq!((traffic.hit_ratio(), traffic.saved_bytes()), (Some(0.75), 100));
        assert_eq!(traffic.cache_bytes, 10);
        traffic.add_server(&server(u64::MAX, u64::MAX));
        assert!(traffic.saved_bytes() > 0 && traffic.hit_ratio().is_some());
    }
}
