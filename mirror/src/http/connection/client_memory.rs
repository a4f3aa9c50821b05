//! The memory that clients can hold: bounded for each client address and in all.
//!
//! A client that takes nothing of its responses, or never ends its headers, keeps their bytes in the memory of the
//! server. Each pool counts such bytes. An address has a part of a pool that no other address can take, and at most a
//! share of the remainder.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::tracked_io::ConnectionProgress;
use crate::block_reader::BLOCK;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The bytes of responses that the connections have not sent: for all clients.
const MAX_RESPONSE_BYTES: usize = 16 * MIB;
/// The bytes of responses that the connections of one address have not sent.
const MAX_ADDRESS_RESPONSE_BYTES: usize = 8 * MIB;
/// The block that a response reads while the memory is short: a DATA frame of HTTP/2 has no more.
const SMALL_BLOCK: usize = 16 * KIB;

/// The bytes of headers that are not complete, beyond the first ones of each: for all clients.
const MAX_HEADERS_BYTES: usize = 4 * MIB;
/// The bytes of headers that are not complete, beyond the first ones of each: for one address.
const MAX_ADDRESS_HEADERS_BYTES: usize = 2 * MIB;
/// The bytes of headers that every address may have.
const ADDRESS_HEADERS_BYTES: usize = 64 * KIB;

/// The requests of HTTP/2 in flight: for all clients. One takes 1 to 4 KiB while its response is sent, and up to 16 KiB
/// while it waits for an upstream.
const MAX_STREAMS: usize = 2_048;
/// The requests of HTTP/2 in flight of one address.
const MAX_ADDRESS_STREAMS: usize = 1_024;
/// The requests of HTTP/2 in flight that every address may have.
const ADDRESS_STREAMS: usize = 16;
/// The bytes of a header that one place of a stream pays for.
const STREAM_HEADER: usize = 4 * KIB;

/// The pools of all clients.
pub(super) struct Memory {
    responses: Arc<Semaphore>,
    headers: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            responses: Arc::new(Semaphore::new(MAX_RESPONSE_BYTES)),
            headers: Arc::new(Semaphore::new(MAX_HEADERS_BYTES)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

impl Memory {
    /// Returns the shares of a client address that holds nothing yet.
    pub(super) fn client(&self) -> ClientMemory {
        ClientMemory {
            responses: PoolShare::new(&self.responses, MAX_ADDRESS_RESPONSE_BYTES, BLOCK),
            headers: PoolShare::new(&self.headers, MAX_ADDRESS_HEADERS_BYTES, ADDRESS_HEADERS_BYTES),
            streams: PoolShare::new(&self.streams, MAX_ADDRESS_STREAMS, ADDRESS_STREAMS),
        }
    }
}

/// The memory of one client address.
pub(super) struct ClientMemory {
    responses: PoolShare,
    headers: PoolShare,
    streams: PoolShare,
}

impl ClientMemory {
    /// Takes memory for the next block of a response: less than `wanted` bytes if that is more than a block, or if the
    /// memory is short; `None` if there is none now.
    pub(super) fn try_block(&self, wanted: u64) -> Option<HeldBlock> {
        let length = block_length(wanted, BLOCK);
        let permit = self.responses.try_take(length)?;
        Some(HeldBlock { length, permit })
    }

    /// Takes memory for a document of `length` bytes; `None` if there is none now.
    pub(super) fn try_document(&self, length: usize) -> Option<Permit> {
        self.responses.try_take(length)
    }

    /// Waits for memory for a document of `length` bytes.
    pub(super) async fn document(&self, length: usize) -> Permit {
        self.responses.take(length).await
    }

    /// Takes memory for more bytes of an unfinished header; `None` if there is none.
    pub(super) fn try_header(&self, length: usize) -> Option<Permit> {
        self.headers.try_take(length)
    }

    /// Takes the place of a request of HTTP/2 with a header of so many bytes; `None` if there is none.
    pub(super) fn try_stream(&self, header_length: usize) -> Option<Permit> {
        self.streams.try_take(1 + header_length / STREAM_HEADER)
    }

    /// Returns `true` if responses or requests of this address find no memory or place, or if it holds those that others
    /// need.
    pub(super) fn is_short(&self) -> bool {
        self.responses.is_short(SMALL_BLOCK) || self.streams.is_short(1)
    }
}

/// The memory of the client of one connection. The connection has a small block of its own, so that it proceeds while
/// others of its address hold the share.
pub(in crate::http) struct ConnectionMemory {
    client: Arc<ClientMemory>,
    own: Arc<Semaphore>,
    progress: Arc<ConnectionProgress>,
}

impl ConnectionMemory {
    pub(super) fn new(client: Arc<ClientMemory>, progress: Arc<ConnectionProgress>) -> Self {
        Self {
            client,
            own: Arc::new(Semaphore::new(SMALL_BLOCK)),
            progress,
        }
    }

    /// Returns the memory of a client that has no other connection.
    pub(in crate::http) fn alone() -> Self {
        Self::new(Arc::new(Memory::default().client()), Arc::default())
    }

    /// Waits for memory for the next block of a response: at most `wanted` bytes, less if the memory is short. The
    /// client that holds the memory does not count as waiting for the server.
    pub(in crate::http) async fn block(&self, wanted: u64) -> HeldBlock {
        if let Some(block) = self.client.try_block(wanted) {
            return block;
        }
        let length = block_length(wanted, SMALL_BLOCK);
        let permit = self.document(length).await;
        HeldBlock { length, permit }
    }

    /// Takes memory for a document of `length` bytes; `None` if there is none now.
    pub(in crate::http) fn try_document(&self, length: usize) -> Option<Permit> {
        let own = || {
            let own = try_acquire(&self.own, length)?;
            Some(Permit::new(own, None))
        };
        self.client.try_document(length).or_else(own)
    }

    /// Waits for memory for a document of `length` bytes.
    pub(in crate::http) async fn document(&self, length: usize) -> Permit {
        if let Some(permit) = self.try_document(length) {
            return permit;
        }
        let _short = self.progress.wait_for_memory();
        tokio::select! {
            biased;
            own = acquire(&self.own, length), if length <= SMALL_BLOCK => Permit::new(own, None),
            permit = self.client.document(length) => permit,
        }
    }
}

fn block_length(wanted: u64, most: usize) -> usize {
    usize::try_from(wanted).unwrap_or(most).min(most)
}

/// Memory for a block of a response.
pub(in crate::http) struct HeldBlock {
    /// The length of the block in bytes.
    pub(in crate::http) length: usize,
    /// The memory, held until it is dropped.
    pub(in crate::http) permit: Permit,
}

/// A part of a pool, given back when it is dropped.
#[derive(Debug)]
pub(in crate::http) struct Permit {
    _own: OwnedSemaphorePermit,
    _common: Option<OwnedSemaphorePermit>,
}

impl Permit {
    fn new(own: OwnedSemaphorePermit, common: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            _own: own,
            _common: common,
        }
    }
}

/// Returns the bytes in an owner that keeps a permit until the last reader drops them.
pub(in crate::http) fn hold<P: Send + 'static>(bytes: Bytes, permit: P) -> Bytes {
    struct Held<P> {
        bytes: Bytes,
        _permit: P,
    }
    impl<P> AsRef<[u8]> for Held<P> {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Held {
        bytes,
        _permit: permit,
    })
}

/// The share of a client address in a pool.
struct PoolShare {
    /// The part that no other address can take.
    guaranteed: Arc<Semaphore>,
    guaranteed_size: usize,
    /// The most that this address may take of the pool.
    limit: Arc<Semaphore>,
    limit_size: usize,
    pool: Arc<Semaphore>,
}

impl PoolShare {
    fn new(pool: &Arc<Semaphore>, limit_size: usize, guaranteed_size: usize) -> Self {
        Self {
            guaranteed: Arc::new(Semaphore::new(guaranteed_size)),
            guaranteed_size,
            limit: Arc::new(Semaphore::new(limit_size)),
            limit_size,
            pool: Arc::clone(pool),
        }
    }

    fn try_take(&self, count: usize) -> Option<Permit> {
        if let Some(own) = try_acquire(&self.guaranteed, count) {
            return Some(Permit::new(own, None));
        }
        let own = try_acquire(&self.limit, count)?;
        let common = try_acquire(&self.pool, count)?;
        Some(Permit::new(own, Some(common)))
    }

    /// Waits for `count`, or for the whole share if that is less.
    async fn take(&self, count: usize) -> Permit {
        let count = count.min(self.limit_size);
        let from_pool = async {
            let own = acquire(&self.limit, count).await;
            Permit::new(own, Some(acquire(&self.pool, count).await))
        };
        tokio::select! {
            biased;
            own = acquire(&self.guaranteed, count), if count <= self.guaranteed_size => Permit::new(own, None),
            permit = from_pool => permit,
        }
    }

    /// Returns `true` if this address holds a part of the pool, while the pool or its own limit has less than `needed`.
    fn is_short(&self, needed: usize) -> bool {
        let own = self.limit.available_permits();
        own < needed || (own < self.limit_size && self.pool.available_permits() < needed)
    }
}

/// Takes a part of a semaphore; `None` if it has less.
fn try_acquire(from: &Arc<Semaphore>, count: usize) -> Option<OwnedSemaphorePermit> {
    let count = u32::try_from(count).ok()?;
    Arc::clone(from).try_acquire_many_owned(count).ok()
}

/// Waits for a part of a semaphore, which is never closed.
async fn acquire(from: &Arc<Semaphore>, count: usize) -> OwnedSemaphorePermit {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    match Arc::clone(from).acquire_many_owned(count).await {
        Ok(permit) => permit,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(client: &ClientMemory) -> Vec<HeldBlock> {
        std::iter::from_fn(|| client.try_block(u64::MAX)).collect()
    }

    fn bytes(held: &[HeldBlock]) -> usize {
        held.iter().map(|block| block.length).sum()
    }

    #[test]
    fn address_holds_its_share_at_most() {
        let memory = Memory::default();
        let client = memory.client();
        let held = blocks(&client);
        assert_eq!(bytes(&held), MAX_ADDRESS_RESPONSE_BYTES + BLOCK);
        assert!(client.is_short());
        drop(held);
        assert!(!client.is_short());
        assert_eq!(
            bytes(&blocks(&client)),
            MAX_ADDRESS_RESPONSE_BYTES + BLOCK,
            "given back"
        );
    }

    /// Addresses that take all of a pool leave another address the part that is its own.
    #[test]
    fn exhausted_pool_leaves_a_block_for_others() {
        let memory = Memory::default();
        let clients = [(); 3].map(|()| memory.client());
        let held = clients.each_ref().map(blocks);
        let share = MAX_ADDRESS_RESPONSE_BYTES + BLOCK;
        assert_eq!(held.each_ref().map(|held| bytes(held)), [share, share, BLOCK]);
        assert!(!clients[2].is_short(), "it holds nothing of the pool");
    }

    /// While others of the address hold its share, a connection has a small block of its own, and then waits.
    #[tokio::test]
    async fn connection_proceeds_while_its_address_holds_all() {
        let client = Arc::new(Memory::default().client());
        let mut held = blocks(&client);
        let connection = ConnectionMemory::new(Arc::clone(&client), Arc::default());
        let own = connection.block(u64::MAX).await;
        assert_eq!(own.length, SMALL_BLOCK);
        assert!(connection.try_document(1).is_none());
        let freed = async { drop(held.pop()) };
        let (block, ()) = tokio::join!(connection.block(u64::MAX), freed);
        assert_eq!(block.length, SMALL_BLOCK);
        let taken = blocks(&client);
        let (block, ()) = tokio::join!(connection.block(u64::MAX), async { drop(own) });
        assert_eq!(block.length, SMALL_BLOCK);
        drop((taken, held));
    }

    #[test]
    fn bytes_hold_their_memory_until_dropped() {
        let memory = Memory::default();
        let client = memory.client();
        let permit = client.try_document(MAX_ADDRESS_RESPONSE_BYTES).unwrap();
        let bytes = hold(Bytes::from_static(b"bytes"), permit);
        let part = bytes.slice(1..2);
        drop(bytes);
        assert!(client.try_document(MAX_ADDRESS_RESPONSE_BYTES).is_none());
        drop(part);
        assert!(client.try_document(MAX_ADDRESS_RESPONSE_BYTES).is_some());
    }

    /// A long header takes more places than a short one.
    #[test]
    fn long_headers_take_more_stream_places() {
        let memory = Memory::default();
        let count = |length| {
            let client = memory.client();
            std::iter::from_fn(|| client.try_stream(length))
                .collect::<Vec<_>>()
                .len()
        };
        assert_eq!(count(200), MAX_ADDRESS_STREAMS + ADDRESS_STREAMS);
        assert_eq!(
            count(7 * STREAM_HEADER),
            (MAX_ADDRESS_STREAMS + ADDRESS_STREAMS) / 8
        );
    }
}
