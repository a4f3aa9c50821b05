//! The places of requests to upstreams: bounded in all, by upstream and by client.
//!
//! A request has a place from its start to its end, and runs once it has a turn; of the requests of one client at one
//! upstream only some run at a time, and the others wait. Thus a client that floods one upstream, or an upstream that
//! never answers, leaves places and turns to all others. A request that several clients wait for has its turn before the
//! second one joins it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client_address::ClientAddress;
use crate::name::Host;
use crate::pull_error::PullError;
use parking_lot::{Mutex, MutexGuard};

/// The most places of one kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaceLimits {
    /// In all.
    pub(crate) total: usize,
    /// At one upstream.
    pub(crate) upstream: usize,
    /// Of one client at all upstreams.
    pub(crate) client: usize,
    /// Of one client at one upstream.
    pub(crate) share: usize,
    /// The requests of one client at one upstream that run at a time.
    pub(crate) running: usize,
    /// The longest wait for a turn; clients give up after 30 s.
    pub(crate) wait: Duration,
}

/// The places of one kind of request.
pub(crate) struct RequestPlaces {
    limits: PlaceLimits,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    upstreams: HashMap<Host, usize>,
    clients: HashMap<ClientAddress, usize>,
    shares: HashMap<(Host, ClientAddress), Share>,
}

/// The places of one client at one upstream.
struct Share {
    taken: usize,
    turns: Arc<Semaphore>,
}

/// A place that is taken; given back on drop.
struct RequestPlace {
    places: Arc<RequestPlaces>,
    key: (Host, ClientAddress),
    turns: Arc<Semaphore>,
}

/// A place whose request may run.
pub(crate) struct Turn {
    // The turn ends before the place is given back.
    _permit: OwnedSemaphorePermit,
    _place: RequestPlace,
}

/// All places that a request could have are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests are under way for this client or upstream")]
pub(crate) struct NoPlace;

impl RequestPlaces {
    /// No place is taken.
    pub(crate) fn new(limits: PlaceLimits) -> Arc<Self> {
        let taken = Mutex::default();
        Arc::new(Self { limits, taken })
    }

    /// Takes a place at an upstream for a client.
    fn take(self: &Arc<Self>, host: &Host, client: ClientAddress) -> Result<RequestPlace, NoPlace> {
        let key = (host.clone(), client);
        let mut taken = self.lock();
        if !taken.has_room(&self.limits, &key) {
            return Err(NoPlace);
        }
        taken.total += 1;
        *taken.upstreams.entry(host.clone()).or_default() += 1;
        *taken.clients.entry(client).or_default() += 1;
        let share = taken.shares.entry(key.clone()).or_insert_with(|| Share {
            taken: 0,
            turns: Arc::new(Semaphore::new(self.limits.running)),
        });
        share.taken += 1;
        let turns = Arc::clone(&share.turns);
        drop(taken);
        Ok(RequestPlace {
            places: Arc::clone(self),
            key,
            turns,
        })
    }

    /// Takes a place and waits for its turn.
    pub(crate) async fn turn(self: &Arc<Self>, host: &Host, client: ClientAddress) -> Result<Turn, NoPlace> {
        self.take(host, client)?.turn().await
    }

    /// Returns whether a further request of the client at the upstream has to wait for its turn.
    pub(crate) fn is_busy(&self, host: &Host, client: ClientAddress) -> bool {
        let taken = self.lock();
        let share = taken.shares.get(&(host.clone(), client));
        share.is_some_and(|share| share.turns.available_permits() == 0)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock()
    }
}

impl Taken {
    fn has_room(&self, limits: &PlaceLimits, key: &(Host, ClientAddress)) -> bool {
        let (host, client) = key;
        let at = |taken: Option<&usize>| taken.copied().unwrap_or_default();
        self.total < limits.total
            && at(self.upstreams.get(host)) < limits.upstream
            && at(self.clients.get(client)) < limits.client
            && at(self.shares.get(key).map(|share| &share.taken)) < limits.share
    }
}

impl RequestPlace {
    /// Waits until one of the client's turns at the upstream is free.
    async fn turn(self) -> Result<Turn, NoPlace> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        match tokio::time::timeout(self.places.limits.wait, turn).await {
            Ok(Ok(permit)) => Ok(Turn {
                _permit: permit,
                _place: self,
            }),
            _ => Err(NoPlace),
        }
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total = taken.total.saturating_sub(1);
        give_back(&mut taken.upstreams, &self.key.0);
        give_back(&mut taken.clients, &self.key.1);
        if let Some(share) = taken.shares.get_mut(&self.key) {
            share.taken = share.taken.saturating_sub(1);
            if share.taken == 0 {
                taken.shares.remove(&self.key);
            }
        }
    }
}

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl From<NoPlace> for PullError {
    fn from(no_place: NoPlace) -> Self {
        Self::unavailable(no_place.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PlaceLimits = PlaceLimits {
        total: 8,
        upstream: 5,
        client: 6,
        share: 3,
        running: 2,
        wait: Duration::from_millis(50),
    };

    fn host(name: &str) -> Host {
        name.parse().unwrap()
    }

    /// Takes places until there is none.
    fn exhaust(places: &Arc<RequestPlaces>, at: &str, client: &str) -> Vec<RequestPlace> {
        let client = ClientAddress::from_peer(client);
        std::iter::from_fn(|| places.take(&host(at), client).ok()).collect()
    }

    #[test]
    fn places_are_bounded_by_client_upstream_and_in_all() {
        let places = RequestPlaces::new(LIMITS);
        let count = |at, client| exhaust(&places, at, client).len();
        let first = exhaust(&places, "a.test", "10.0.0.1:1");
        assert_eq!(first.len(), 3, "a client's share of an upstream");
        assert_eq!(
            count("a.test", "10.0.0.1:2"),
            0,
            "its other connections count, too"
        );
        assert_eq!(count("a.test", "10.0.0.2:1"), 2, "the rest of the upstream");
        let second = exhaust(&places, "b.test", "10.0.0.1:1");
        assert_eq!(second.len(), 3, "the same client elsewhere");
        assert_eq!(count("c.test", "10.0.0.1:1"), 0, "no more for this client");
        assert_eq!(count("c.test", "10.0.0.2:1"), 2, "the rest of all");
        drop((first, second));
        let taken = places.lock();
        assert_eq!((taken.total, taken.shares.len()), (0, 0));
        assert!(taken.clients.is_empty() && taken.upstreams.is_empty());
    }

    #[tokio::test]
    async fn turns_are_bounded_for_each_client_of_an_upstream() {
        let (places, at) = (RequestPlaces::new(LIMITS), host("a.test"));
        let [one, other] = ["10.0.0.1:1", "10.0.0.2:1"].map(ClientAddress::from_peer);
        let first = places.turn(&at, one).await.unwrap();
        let _second = places.turn(&at, one).await.unwrap();
        assert!(places.turn(&at, one).await.is_err(), "it waited in vain");
        assert!(places.turn(&at, other).await.is_ok(), "another client");
        let third = tokio::spawn({
            let (places, at) = (Arc::clone(&places), at.clone());
            async move { places.turn(&at, one).await.is_ok() }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(third.await.unwrap(), "the turn that became free");
    }
}
