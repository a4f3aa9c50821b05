//! The remote peer of a connection.

use std::sync::Arc;
use std::time::Instant;

use super::connection::{ConnectionMemory, SendfileQueue};
use crate::client_table::{ClientTable, ConnectionClient};
use crate::name::Host;

/// The remote peer of a connection.
#[derive(Clone)]
pub struct Peer {
    /// `address:port`, or `unix`.
    pub(super) name: Arc<str>,
    /// The queue of parts that the kernel sends, if the connection supports sendfile.
    pub(super) sendfile: Option<SendfileQueue>,
    /// The client in the table of clients; `None` for unix sockets.
    pub(super) client: Option<Arc<ConnectionClient>>,
    /// The memory of the client.
    pub(super) memory: Arc<ConnectionMemory>,
}

impl Peer {
    /// Returns a peer whose connection does not support sendfile.
    pub fn named(name: &str) -> Self {
        Self::with_memory(name, Arc::new(ConnectionMemory::alone()))
    }

    /// Returns a peer whose connection takes this memory.
    pub(super) fn with_memory(name: &str, memory: Arc<ConnectionMemory>) -> Self {
        let client = name.parse().ok().map(ConnectionClient::new);
        Self {
            name: name.into(),
            sendfile: None,
            client: client.map(Arc::new),
            memory,
        }
    }

    /// Records that the client pulled from an upstream by a request that came at this time.
    pub(super) fn record_pull(&self, clients: &ClientTable, upstream: &Host, now: Instant) {
        if let Some(client) = &self.client {
            clients.record(client, upstream, now);
        }
    }
}
