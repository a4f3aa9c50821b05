//! The bound on client connections. Beyond it, idle connections of the address that has the most of them are closed.
//!
//! A connection costs a file descriptor, and two while it sends a blob. Without a bound, clients that only connect
//! would take all of them, and the server could neither accept a client nor open a file nor ask an upstream.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::tracked_io::{ConnectionProgress, ConnectionState};
use crate::client_address::ClientAddress;
use parking_lot::{Mutex, MutexGuard};

/// The time without progress after which a client that takes nothing of an answer counts as idle.
const STALLED: Duration = Duration::from_secs(10);
/// The time that closed connections have to end before more are closed.
const RETRY: Duration = Duration::from_millis(100);
/// One part in so many of the bound is closed at once, so that a flood of connections costs few searches.
const BATCH: usize = 64;

/// The bound on client connections of a listener.
pub(super) struct ConnectionLimit {
    max: usize,
    open: Mutex<OpenConnections>,
    freed: Notify,
}

/// The connections that are open, the oldest first.
#[derive(Default)]
struct OpenConnections {
    next: u64,
    by_number: BTreeMap<u64, OpenConnection>,
    by_address: HashMap<ClientAddress, usize>,
}

/// An open connection.
struct OpenConnection {
    address: ClientAddress,
    progress: Arc<ConnectionProgress>,
    /// The progress that the last search found, and when it was first found.
    seen: (ConnectionState, u32),
    since: Instant,
    closing: CancellationToken,
}

/// The place of one connection, given up when it is dropped.
pub(super) struct ConnectionSlot {
    limit: Arc<ConnectionLimit>,
    number: u64,
    /// The progress of the connection.
    pub(super) progress: Arc<ConnectionProgress>,
    /// Cancelled where the connection has to end.
    pub(super) closing: CancellationToken,
}

impl ConnectionLimit {
    /// Returns a bound of `max` connections, at least one.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: max.max(1),
            open: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Waits for a place for a connection of a client at `address`. Where there is none, idle connections are closed; it
    /// waits where none is idle. The place's token is a child of `shutdown`.
    pub(super) async fn enter(
        self: &Arc<Self>,
        address: ClientAddress,
        shutdown: &CancellationToken,
    ) -> ConnectionSlot {
        loop {
            if let Some(place) = self.try_enter(address, shutdown) {
                return place;
            }
            // A place that was given up since is not missed: the permit of `Notify` stays.
            let _ = tokio::time::timeout(RETRY, self.freed.notified()).await;
        }
    }

    fn try_enter(
        self: &Arc<Self>,
        address: ClientAddress,
        shutdown: &CancellationToken,
    ) -> Option<ConnectionSlot> {
        let mut open = self.open();
        if open.by_number.len() >= self.max {
            open.close_idle((self.max / BATCH).max(1), Instant::now());
            return None;
        }
        let (progress, closing) = (Arc::<ConnectionProgress>::default(), shutdown.child_token());
        let number = open.add(OpenConnection {
            address,
            progress: Arc::clone(&progress),
            seen: (progress.state(), progress.steps()),
            since: Instant::now(),
            closing: closing.clone(),
        });
        Some(ConnectionSlot {
            limit: Arc::clone(self),
            number,
            progress,
            closing,
        })
    }

    fn open(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock()
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.limit.open().remove(self.number);
        self.limit.freed.notify_one();
    }
}

impl OpenConnections {
    fn add(&mut self, entry: OpenConnection) -> u64 {
        let number = self.next;
        self.next += 1;
        *self.by_address.entry(entry.address).or_default() += 1;
        self.by_number.insert(number, entry);
        number
    }

    fn remove(&mut self, number: u64) {
        let Some(OpenConnection { address, .. }) = self.by_number.remove(&number) else {
            return;
        };
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    /// Closes up to `count` idle connections of one address: of those that have idle ones, the address with the most
    /// connections. Connections without progress since the last search go first, and among them the oldest.
    fn close_idle(&mut self, count: usize, now: Instant) {
        let by_address = &self.by_address;
        let mut idle: Vec<_> = self
            .by_number
            .iter_mut()
            .filter(|(_, entry)| !entry.closing.is_cancelled())
            .filter_map(|(number, entry)| {
                let moved = entry.idle(now)?;
                let crowd = by_address.get(&entry.address).copied().unwrap_or_default();
                Some((Reverse(crowd), entry.address, moved, *number))
            })
            .collect();
        idle.sort_unstable();
        let first = idle.first().map(|(_, address, ..)| *address);
        let of_first = idle.iter().take_while(|(_, address, ..)| Some(*address) == first);
        for (.., number) in of_first.take(count) {
            if let Some(entry) = self.by_number.get(number) {
                entry.progress.evict();
                entry.closing.cancel();
            }
        }
    }
}

impl OpenConnection {
    /// Returns whether the connection made progress since the last search; `None` where it is not idle.
    fn idle(&mut self, now: Instant) -> Option<bool> {
        let seen = (self.progress.state(), self.progress.steps());
        let moved = seen != self.seen;
        if moved {
            (self.seen, self.since) = (seen, now);
        }
        match seen.0 {
            ConnectionState::Idle | ConnectionState::ReadingRequest => Some(moved),
            ConnectionState::WritingResponse => (now.duration_since(self.since) >= STALLED).then_some(false),
            ConnectionState::Processing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Version;

    const CROWDED: &str = "192.0.2.1:1";
    const OTHER: &str = "192.0.2.2:1";

    fn enter(limit: &Arc<ConnectionLimit>, peer: &str) -> Option<ConnectionSlot> {
        limit.try_enter(ClientAddress::from_peer(peer), &CancellationToken::new())
    }

    fn is_closing(place: &ConnectionSlot) -> bool {
        place.closing.is_cancelled()
    }

    #[test]
    fn crowded_address_loses_its_oldest_idle_connection() {
        let limit = ConnectionLimit::new(4);
        let other = enter(&limit, OTHER).unwrap();
        let crowd = [(); 3].map(|()| enter(&limit, CROWDED).unwrap());
        assert!(enter(&limit, OTHER).is_none());
        assert_eq!(crowd.each_ref().map(is_closing), [true, false, false]);
        assert!(!is_closing(&other));
        // A place that is not given up yet is not the only one that can be.
        assert!(enter(&limit, OTHER).is_none());
        assert_eq!(crowd.each_ref().map(is_closing), [true, true, false]);
        drop(crowd);
        assert!(enter(&limit, OTHER).is_some());
    }

    /// A connection with a request that the server has to answer is never closed for another one.
    #[test]
    fn busy_connections_stay_open() {
        let limit = ConnectionLimit::new(2);
        let places = [(); 2].map(|()| enter(&limit, CROWDED).unwrap());
        let requests = places
            .each_ref()
            .map(|place| place.progress.begin_request(Version::HTTP_11));
        assert!(enter(&limit, OTHER).is_none());
        assert_eq!(places.each_ref().map(is_closing), [false, false]);
        drop(requests);
        assert!(enter(&limit, OTHER).is_none());
        assert_eq!(places.each_ref().map(is_closing), [true, false]);
    }

    /// Of two idle connections the one that did nothing since the last search goes first.
    #[test]
    fn connection_without_progress_goes_first() {
        let limit = ConnectionLimit::new(2);
        let places = [(); 2].map(|()| enter(&limit, CROWDED).unwrap());
        drop(places[0].progress.begin_request(Version::HTTP_11));
        assert!(enter(&limit, OTHER).is_none());
        assert_eq!(places.each_ref().map(is_closing), [false, true]);
    }

    #[tokio::test]
    async fn waiting_client_gets_the_place_that_is_given_up() {
        let limit = ConnectionLimit::new(1);
        let place = enter(&limit, CROWDED).unwrap();
        let shutdown = CancellationToken::new();
        let waiting = limit.enter(ClientAddress::from_peer(OTHER), &shutdown);
        let leaving = async {
            place.closing.cancelled().await;
            drop(place);
        };
        let (entered, ()) = tokio::join!(waiting, leaving);
        assert!(!is_closing(&entered));
        shutdown.cancel();
        assert!(is_closing(&entered));
    }
}
