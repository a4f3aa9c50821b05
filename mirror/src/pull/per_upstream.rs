//! Caches of one kind, one for each upstream: what one upstream makes the server remember displaces nothing of another.

use std::collections::HashMap;
use std::hash::Hash;

use moka::sync::Cache;

use crate::name::Host;
use parking_lot::RwLock;

/// Caches of one kind by upstream, each with its own bound.
pub(super) struct PerUpstream<K, V> {
    build: fn() -> Cache<K, V>,
    caches: RwLock<HashMap<Host, Cache<K, V>>>,
}

impl<K, V> PerUpstream<K, V>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Creates an empty set; `build` creates each cache when it is first used.
    pub(super) fn new(build: fn() -> Cache<K, V>) -> Self {
        let caches = RwLock::default();
        Self { build, caches }
    }

    /// Returns the cache of an upstream.
    pub(super) fn cache(&self, host: &Host) -> Cache<K, V> {
        let caches = self.caches.read();
        if let Some(cache) = caches.get(host) {
            return cache.clone();
        }
        drop(caches);
        let mut caches = self.caches.write();
        caches.entry(host.clone()).or_insert_with(self.build).clone()
    }

    /// Keeps only the caches of these upstreams.
    pub(super) fn retain(&self, is_kept: impl Fn(&Host) -> bool) {
        let mut caches = self.caches.write();
        caches.retain(|host, _| is_kept(host));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_one_upstream_displaces_nothing_of_another() {
        let caches = PerUpstream::<u32, ()>::new(|| Cache::new(10));
        let [bad, good]: [Host; 2] = ["bad.test", "good.test"].map(|host| host.parse().unwrap());
        caches.cache(&good).insert(0, ());
        for number in 0..1_000 {
            caches.cache(&bad).insert(number, ());
        }
        caches.cache(&bad).run_pending_tasks();
        assert!(caches.cache(&bad).entry_count() <= 10);
        assert!(caches.cache(&good).contains_key(&0));
        caches.retain(|host| *host == bad);
        assert!(!caches.cache(&good).contains_key(&0), "it is gone");
    }
}
