//! Accepted sockets that wait for a place among the connections.
//!
//! They do not wait in turn: the socket of the address with the fewest connections is next, so that clients at other
//! addresses do not wait behind those of a crowd.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::limit::{ConnectionLimit, ConnectionSlot};
use crate::client_address::ClientAddress;

/// The most sockets that wait: each takes a file descriptor.
const MAX_WAITING: usize = 64;

/// The sockets that wait, the oldest first.
pub(super) struct WaitingSockets<S> {
    limit: Arc<ConnectionLimit>,
    max: usize,
    sockets: Vec<(ClientAddress, S)>,
}

impl<S> WaitingSockets<S> {
    /// Returns no sockets yet; a quarter as many as connections can wait.
    pub(super) fn new(limit: Arc<ConnectionLimit>) -> Self {
        let max = (limit.max() / 4).clamp(1, MAX_WAITING);
        let sockets = Vec::new();
        Self { limit, max, sockets }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Adds a socket. If too many wait, the newest one of the address with the most connections is dropped.
    pub(super) fn push(&mut self, address: ClientAddress, socket: S) {
        self.sockets.push((address, socket));
        if self.sockets.len() > self.max {
            let heaviest = (0..self.sockets.len()).max_by_key(|index| (self.weight(*index), *index));
            drop(heaviest.map(|index| self.sockets.remove(index)));
        }
    }

    /// Returns the next socket with its place, if there is one.
    pub(super) fn admit(&mut self, shutdown: &CancellationToken) -> Option<(S, ConnectionSlot)> {
        let next = (0..self.sockets.len()).min_by_key(|index| (self.weight(*index), *index))?;
        let slot = self.limit.try_enter(self.sockets[next].0, shutdown)?;
        let (_, socket) = self.sockets.remove(next);
        Some((socket, slot))
    }

    /// Returns the number of connections, open and waiting, of the address of a socket.
    fn weight(&self, index: usize) -> usize {
        if self.sockets.len() == 1 {
            return 0;
        }
        let address = self.sockets[index].0;
        let waiting = self.sockets.iter().filter(|(other, _)| *other == address);
        self.limit.connections(address) + waiting.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(peer: &str) -> ClientAddress {
        ClientAddress::from_peer(peer)
    }

    /// A client at another address is next, although a crowd waited before it, and of the crowd sockets are dropped.
    #[test]
    fn client_waits_for_none_of_a_crowd() {
        let limit = ConnectionLimit::new(16);
        let (mut waiting, shutdown) = (WaitingSockets::new(Arc::clone(&limit)), CancellationToken::new());
        let (crowd, other) = (address("192.0.2.1:1"), address("192.0.2.2:1"));
        let mut open: Vec<_> = (0..16)
            .map(|_| limit.try_enter(crowd, &shutdown).unwrap())
            .collect();
        for number in 0..20 {
            waiting.push(crowd, number);
        }
        waiting.push(other, 100);
        assert!(waiting.admit(&shutdown).is_none(), "no place");
        let numbers: Vec<_> = waiting.sockets.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, [0, 1, 2, 100]);
        open.truncate(14);
        assert_eq!(waiting.admit(&shutdown).map(|(number, _)| number), Some(100));
        assert_eq!(waiting.admit(&shutdown).map(|(number, _)| number), Some(0));
    }
}
