//! Admission to password checks: few at once, in turn by client address, in a bounded queue.
//!
//! bcrypt takes a core for tens of milliseconds on purpose, so a client that guesses passwords could take all of them.
//! Each client address has one login in the common queue at a time; its other logins wait behind that one. A flood from
//! one address therefore delays a login from another address by one check, not by the whole flood.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client_address::ClientAddress;
use parking_lot::Mutex;

/// Logins of one client address that wait at once.
const MAX_PER_ADDRESS: usize = 16;
/// Logins of all client addresses that wait at once.
const MAX_WAITING: usize = 256;
/// Client addresses that wait at once: the first login of an address is not refused for the floods of others.
const MAX_ADDRESSES: usize = 1024;
/// The longest wait in the queue; clients give up after 30 s.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// A queue of logins that wait for a password check.
pub(super) struct LoginQueue {
    running: Arc<Semaphore>,
    max_wait: Duration,
    waiting: Mutex<WaitingLogins>,
}

#[derive(Default)]
struct WaitingLogins {
    total: usize,
    by_address: HashMap<ClientAddress, AddressQueue>,
}

/// The waiting logins of one client address.
struct AddressQueue {
    count: usize,
    /// Held by the login that is in the common queue.
    head: Arc<Semaphore>,
}

impl LoginQueue {
    /// Returns a queue that lets half of the cores, but at least one, check passwords at once.
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Arc::new(Semaphore::new((cores / 2).max(1))),
            max_wait: MAX_WAIT,
            waiting: Mutex::default(),
        }
    }

    /// Waits for a turn of `client` (`address:port`, or another name that stands for no address). Returns `None` where
    /// too many logins wait, or the turn does not come within ten seconds. The permit is held while the check runs.
    pub(super) async fn admit(&self, client: &str) -> Option<OwnedSemaphorePermit> {
        let place = self.enter(ClientAddress::from_peer(client))?;
        let turn = async {
            let _head = place.head.acquire().await.ok()?;
            Arc::clone(&self.running).acquire_owned().await.ok()
        };
        tokio::time::timeout(self.max_wait, turn).await.ok().flatten()
    }

    fn enter(&self, address: ClientAddress) -> Option<QueuePlace<'_>> {
        let mut waiting = self.waiting.lock();
        let (total, addresses) = (waiting.total, waiting.by_address.len());
        let has_room = match waiting.by_address.get(&address) {
            Some(entry) => entry.count < MAX_PER_ADDRESS && total < MAX_WAITING,
            None => addresses < MAX_ADDRESSES,
        };
        if !has_room {
            return None;
        }
        waiting.total += 1;
        let entry = waiting.by_address.entry(address).or_insert_with(|| AddressQueue {
            count: 0,
            head: Arc::new(Semaphore::new(1)),
        });
        entry.count += 1;
        Some(QueuePlace {
            queue: self,
            address,
            head: Arc::clone(&entry.head),
        })
    }
}

/// A place in the queue, given up when it is dropped.
struct QueuePlace<'q> {
    queue: &'q LoginQueue,
    address: ClientAddress,
    head: Arc<Semaphore>,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.lock();
        waiting.total -= 1;
        if let Some(entry) = waiting.by_address.get_mut(&self.address) {
            entry.count -= 1;
            if entry.count == 0 {
                waiting.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(at_once: usize) -> LoginQueue {
        LoginQueue {
            running: Arc::new(Semaphore::new(at_once)),
            max_wait: Duration::from_mins(1),
            waiting: Mutex::default(),
        }
    }

    fn is_empty(queue: &LoginQueue) -> bool {
        let waiting = queue.waiting.lock();
        waiting.total == 0 && waiting.by_address.is_empty()
    }

    /// A flood from one address delays a login from another address by one check.
    #[tokio::test]
    async fn flood_from_one_address_delays_others_by_one_check() {
        let queue = Arc::new(queue(1));
        let running = queue.admit("192.0.2.1:1").await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut logins = tokio::task::JoinSet::new();
        for client in ["192.0.2.1:2"; MAX_PER_ADDRESS]
            .into_iter()
            .chain(["192.0.2.2:1"])
        {
            let (queue, order) = (Arc::clone(&queue), Arc::clone(&order));
            logins.spawn(async move {
                let _permit = queue.admit(client).await.unwrap();
                order.lock().push(client);
            });
        }
        while queue.waiting.lock().total <= MAX_PER_ADDRESS {
            tokio::task::yield_now().await;
        }
        drop(running);
        logins.join_all().await;
        let order = order.lock();
        let place = order.iter().position(|client| *client == "192.0.2.2:1");
        assert!(
            place.is_some_and(|place| place <= 1),
            "{place:?} of {}",
            order.len()
        );
        assert!(is_empty(&queue));
    }

    /// Beyond the bounds a login is refused at once; the first login of another address is not.
    #[tokio::test]
    async fn login_beyond_the_bounds_is_refused() {
        let queue = queue(1);
        let places: Vec<_> = (0..MAX_PER_ADDRESS)
            .map(|_| queue.enter(ClientAddress::from_peer("192.0.2.1:1")).unwrap())
            .collect();
        assert!(queue.admit("192.0.2.1:2").await.is_none());
        let mut others = Vec::new();
        for number in 0..MAX_ADDRESSES - 1 {
            let [.., high, low] = number.to_be_bytes();
            let place = queue.enter(ClientAddress::from_peer(&format!("10.0.{high}.{low}:1")));
            others.push(place.unwrap());
        }
        assert!(queue.enter(ClientAddress::from_peer("192.0.2.2:1")).is_none());
        drop((places, others));
        assert!(is_empty(&queue));
    }

    /// A client that leaves gives its place up.
    #[tokio::test]
    async fn abandoned_login_leaves_the_queue() {
        let queue = queue(0);
        let left = tokio::time::timeout(Duration::from_millis(1), queue.admit("192.0.2.1:1")).await;
        assert!(left.is_err());
        assert!(is_empty(&queue));
    }

    /// A turn that does not come in time is a refusal.
    #[tokio::test]
    async fn long_wait_ends_in_a_refusal() {
        let queue = LoginQueue {
            max_wait: Duration::from_millis(1),
            ..queue(0)
        };
        assert!(queue.admit("192.0.2.1:1").await.is_none());
        assert!(is_empty(&queue));
    }
}
