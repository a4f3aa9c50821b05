//! The bound on client connections. Beyond it, connections of the address that has the most of them are closed: idle ones,
//! and of an address that crowds out others also those that take a response.
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

use super::client_memory::{ClientMemory, Memory};
use super::tracked_io::{ConnectionProgress, ConnectionState};
use crate::client_address::ClientAddress;
use parking_lot::{Mutex, MutexGuard};

/// The time without progress after which a client that takes nothing of an answer counts as idle.
const STALLED: Duration = Duration::from_secs(10);
/// The time that closed connections have to end before more are closed.
const RETRY: Duration = Duration::from_millis(100);
/// One part in so many of the bound is closed at once, so that a flood of connections costs few searches.
const BATCH: usize = 64;

/// The part of the bound beyond which an address loses also connections that are in use, to an address that has few.
const CROWD: usize = 8;

/// The bound on client connections of a listener.
pub(super) struct ConnectionLimit {
    max: usize,
    memory: Memory,
    open: Mutex<OpenConnections>,
    freed: Notify,
}

/// The connections that are open, the oldest first.
#[derive(Default)]
struct OpenConnections {
    next: u64,
    by_number: BTreeMap<u64, OpenConnection>,
    by_address: HashMap<ClientAddress, AddressConnections>,
    /// The time of the last search for connections to close: a flood of clients costs few of them.
    searched: Option<Instant>,
}

/// The connections of an address, and what they hold.
struct AddressConnections {
    connections: usize,
    memory: Arc<ClientMemory>,
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
    /// The memory of the client's address.
    pub(super) memory: Arc<ClientMemory>,
}

impl ConnectionLimit {
    /// Returns a bound of `max` connections, at least one.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: max.max(1),
            memory: Memory::default(),
            open: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Returns the bound.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Returns the number of open connections of an address.
    pub(super) fn connections(&self, address: ClientAddress) -> usize {
        self.open().connections(address)
    }

    /// Waits until a place is free, or closed connections had time to end.
    pub(super) async fn freed(&self) {
        // A place that was given up since is not missed: the permit of `Notify` stays.
        let _ = tokio::time::timeout(RETRY, self.freed.notified()).await;
    }

    /// Returns a place for a connection of a client at `address`. Where there is none, connections are closed: call it
    /// again when [`ConnectionLimit::freed`] returns. The place's token is a child of `shutdown`.
    pub(super) fn try_enter(
        self: &Arc<Self>,
        address: ClientAddress,
        shutdown: &CancellationToken,
    ) -> Option<ConnectionSlot> {
        let mut open = self.open();
        if open.by_number.len() >= self.max {
            let now = Instant::now();
            if open.searched.is_none_or(|then| now - then >= RETRY) {
                open.searched = Some(now);
                open.close_some((self.max / BATCH).max(1), self.max / CROWD, address, now);
            }
            return None;
        }
        let (progress, closing) = (Arc::<ConnectionProgress>::default(), shutdown.child_token());
        let entry = OpenConnection {
            address,
            progress: Arc::clone(&progress),
            seen: (progress.state(), progress.steps()),
            since: Instant::now(),
            closing: closing.clone(),
        };
        let (number, memory) = open.add(entry, &self.memory);
        Some(ConnectionSlot {
            limit: Arc::clone(self),
            number,
            progress,
            closing,
            memory,
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
    fn add(&mut self, entry: OpenConnection, memory: &Memory) -> (u64, Arc<ClientMemory>) {
        let number = self.next;
        self.next += 1;
        let client = self
            .by_address
            .entry(entry.address)
            .or_insert_with(|| AddressConnections {
                connections: 0,
                memory: Arc::new(memory.client()),
            });
        client.connections += 1;
        let memory = Arc::clone(&client.memory);
        self.by_number.insert(number, entry);
        (number, memory)
    }

    fn remove(&mut self, number: u64) {
        let Some(OpenConnection { address, .. }) = self.by_number.remove(&number) else {
            return;
        };
        if let Some(client) = self.by_address.get_mut(&address) {
            client.connections -= 1;
            if client.connections == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    fn connections(&self, address: ClientAddress) -> usize {
        let client = self.by_address.get(&address);
        client.map_or(0, |client| client.connections)
    }

    /// Closes up to `count` connections of one address, for a client at `newcomer`: of the addresses that have some to
    /// close, the address with the most connections. Connections without progress since the last search go first, and
    /// among them the oldest. An address with more than `crowd` connections, and twice as many as the newcomer's, loses
    /// also those that take a response; for a newcomer of such an address, only addresses with as many lose any.
    fn close_some(&mut self, count: usize, crowd: usize, newcomer: ClientAddress, now: Instant) {
        let by_address = &self.by_address;
        let connections = |address| by_address.get(address).map_or(0, |client| client.connections);
        let newcomers = connections(&newcomer);
        let mut closable: Vec<_> = self
            .by_number
            .iter_mut()
            .filter(|(_, entry)| !entry.closing.is_cancelled())
            .filter_map(|(number, entry)| {
                let usage = entry.usage(now);
                let own = connections(&entry.address);
                let is_crowd = own > crowd && own > 2 * newcomers;
                let is_safe = newcomers > crowd && own < newcomers;
                let is_unused = usage < ConnectionUse::Writing && !is_safe;
                let is_closable = is_unused || (usage == ConnectionUse::Writing && is_crowd);
                is_closable.then_some((Reverse(own), entry.address, usage, *number))
            })
            .collect();
        closable.sort_unstable();
        let first = closable.first().map(|(_, address, ..)| *address);
        let of_first = closable
            .iter()
            .take_while(|(_, address, ..)| Some(*address) == first);
        for (.., number) in of_first.take(count) {
            if let Some(entry) = self.by_number.get(number) {
                entry.progress.evict();
                entry.closing.cancel();
            }
        }
    }
}

/// The use of a connection, in the order in which connections are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ConnectionUse {
    /// Nothing happened since the last search.
    Unused,
    /// The client has no request.
    Idle,
    /// The client takes a response.
    Writing,
    /// The server owes the client a response.
    Processing,
}

impl OpenConnection {
    fn usage(&mut self, now: Instant) -> ConnectionUse {
        let seen = (self.progress.state(), self.progress.steps());
        let moved = seen != self.seen;
        if moved {
            (self.seen, self.since) = (seen, now);
        }
        match seen.0 {
            ConnectionState::Idle | ConnectionState::ReadingRequest if moved => ConnectionUse::Idle,
            ConnectionState::Idle | ConnectionState::ReadingRequest => ConnectionUse::Unused,
            ConnectionState::WritingResponse if now.duration_since(self.since) >= STALLED => {
                ConnectionUse::Unused
            }
            ConnectionState::WritingResponse => ConnectionUse::Writing,
            ConnectionState::Processing => ConnectionUse::Processing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tracked_io::TrackedRequest;
    use super::*;
    use http::Version;

    const CROWDED: &str = "192.0.2.1:1";
    const OTHER: &str = "192.0.2.2:1";

    fn enter(limit: &Arc<ConnectionLimit>, peer: &str) -> Option<ConnectionSlot> {
        limit.open().searched = None;
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

    /// Makes a connection take a response, with progress since the last search.
    fn writes(slot: &ConnectionSlot) -> TrackedRequest {
        let mut request = slot.progress.begin_request(Version::HTTP_2);
        request.on_response();
        request
    }

    /// An address whose connections are all in use loses one to a client at another address, whose idle one stays.
    #[test]
    fn crowd_loses_connections_in_use_before_others() {
        let limit = ConnectionLimit::new(16);
        let idle = enter(&limit, OTHER).unwrap();
        let crowd = [(); 15].map(|()| enter(&limit, CROWDED).unwrap());
        let requests = crowd.each_ref().map(writes);
        assert!(enter(&limit, OTHER).is_none());
        assert!(!is_closing(&idle));
        assert_eq!(crowd.iter().filter(|slot| is_closing(slot)).count(), 1);
        drop((requests, crowd));
        assert!(enter(&limit, OTHER).is_some());
    }

    /// A client of the crowd itself closes no connection that is in use, nor does an address of a few connections lose
    /// any.
    #[test]
    fn connections_in_use_stay_among_equals() {
        let limit = ConnectionLimit::new(16);
        let crowd = [(); 16].map(|()| enter(&limit, CROWDED).unwrap());
        let requests = crowd.each_ref().map(writes);
        assert!(enter(&limit, CROWDED).is_none());
        assert!(!crowd.iter().any(is_closing));
        drop((requests, crowd));
        let peers: Vec<_> = (0..8).map(|number| format!("192.0.2.{number}:1")).collect();
        let pairs: Vec<_> = [&peers[..], &peers[..]].concat();
        let slots: Vec<_> = pairs.iter().map(|peer| enter(&limit, peer).unwrap()).collect();
        let requests: Vec<_> = slots.iter().map(writes).collect();
        assert!(enter(&limit, "198.51.100.1:1").is_none());
        assert!(!slots.iter().any(is_closing));
        drop(requests);
    }

    /// A newcomer of an address that has most connections closes none of others, though they are idle.
    #[test]
    fn newcomer_of_a_crowd_closes_no_idle_one_of_others() {
        let limit = ConnectionLimit::new(16);
        let idle = enter(&limit, OTHER).unwrap();
        let crowd = [(); 15].map(|()| enter(&limit, CROWDED).unwrap());
        let requests = crowd.each_ref().map(writes);
        assert!(enter(&limit, CROWDED).is_none());
        assert!(!is_closing(&idle) && !crowd.iter().any(is_closing));
        drop(requests);
    }

    #[tokio::test]
    async fn place_that_is_given_up_is_noticed() {
        let limit = ConnectionLimit::new(1);
        let place = enter(&limit, CROWDED).unwrap();
        let shutdown = CancellationToken::new();
        assert!(enter(&limit, OTHER).is_none() && is_closing(&place));
        let leaving = async { drop(place) };
        tokio::join!(limit.freed(), leaving);
        let entered = limit
            .try_enter(ClientAddress::from_peer(OTHER), &shutdown)
            .unwrap();
        assert!(!is_closing(&entered));
        shutdown.cancel();
        assert!(is_closing(&entered));
    }
}
