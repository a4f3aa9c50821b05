//! The hosts other than the upstream whose connections are kept open for the next request: a bounded number of them, as
//! an upstream chooses the hosts that it redirects to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use url::{Origin, Url};

/// The most hosts other than the upstream whose connections are kept. Registries use one for tokens and few for content.
pub(crate) const MAX_KEPT_HOSTS: usize = 8;
/// The most idle connections that are kept to such a host, for each kind of client.
pub(crate) const MAX_IDLE_CONNECTIONS: usize = 32;

/// The hosts whose connections are kept, with their last use.
#[derive(Default)]
pub(in crate::upstream) struct HostPool(Mutex<HashMap<Origin, Instant>>);

impl HostPool {
    /// Returns whether the connection of a request to this URL is kept: the host has a place, or takes one whose host
    /// had no request for `idle`.
    pub(in crate::upstream) fn keeps(&self, url: &Url, idle: Duration) -> bool {
        self.keeps_at(url, idle, Instant::now())
    }

    fn keeps_at(&self, url: &Url, idle: Duration, now: Instant) -> bool {
        let mut hosts = self.0.lock();
        let origin = url.origin();
        if !hosts.contains_key(&origin) && hosts.len() >= MAX_KEPT_HOSTS {
            hosts.retain(|_, used| now.saturating_duration_since(*used) < idle);
            if hosts.len() >= MAX_KEPT_HOSTS {
                return false;
            }
        }
        hosts.insert(origin, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts beyond the places keep no connection, until a host with a place is idle.
    #[test]
    fn further_hosts_wait_for_an_idle_one() {
        let (hosts, begun, idle) = (HostPool::default(), Instant::now(), Duration::from_secs(45));
        let keeps = |number: usize, seconds: u64| {
            let url = format!("https://host-{number}.example/x").parse().unwrap();
            hosts.keeps_at(&url, idle, begun + Duration::from_secs(seconds))
        };
        assert!((0..MAX_KEPT_HOSTS).all(|number| keeps(number, 0)));
        assert!(!keeps(100, 10), "all places are taken");
        assert!(keeps(0, 40), "a host with a place");
        assert!(keeps(100, 50), "seven hosts are idle");
        assert!(keeps(0, 60));
        assert!(hosts.0.lock().len() <= MAX_KEPT_HOSTS);
    }
}
