//! The uses of content on their way to the owners of its shards.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::mpsc::Receiver;

use super::Shared;
use super::journal::Event;
use crate::digest::Digest;
use crate::peers::Shard;
use crate::store::Uses;

/// The uses of content that wait for the shard that has it.
pub(crate) const MAX_PENDING_USES: usize = 65_536;

/// The uses that the store sent, and those that wait.
pub(super) struct UseQueue(Mutex<State>);

struct State {
    batches: Receiver<Uses>,
    waiting: HashMap<Digest, i64>,
    /// The shards that this server owns, once that is known.
    owned: Vec<u8>,
}

impl UseQueue {
    /// Creates the queue of the batches of a store.
    pub(super) fn new(batches: Receiver<Uses>) -> Self {
        Self(Mutex::new(State {
            batches,
            waiting: HashMap::new(),
            owned: Vec::new(),
        }))
    }

    /// Sets the shards that this server owns.
    pub(super) fn set_owned(&self, owned: &[u8]) {
        owned.clone_into(&mut self.0.lock().owned);
    }
}

impl State {
    fn drain(&mut self) {
        while let Ok(batch) = self.batches.try_recv() {
            for (digest, used) in batch {
                if self.waiting.len() < MAX_PENDING_USES || self.waiting.contains_key(&digest) {
                    let last = self.waiting.entry(digest).or_insert(used);
                    *last = used.max(*last);
                }
            }
        }
    }
}

impl Shared {
    /// Records the uses that the store sent: in own shards that are in memory, or for the owners of the others. Those of
    /// own shards that are not in memory wait.
    pub(super) fn record_uses(&self) {
        let mut queue = self.uses.0.lock();
        queue.drain();
        let State { waiting, owned, .. } = &mut *queue;
        waiting.retain(|digest, used| {
            let shard = Shard::of_blob(digest).index();
            if !owned.contains(&shard) {
                self.journal.lock().push(digest.clone(), Event::Use(*used));
                return false;
            }
            match self.slot(shard).lock().as_mut() {
                Some(table) => {
                    table.on_use(digest, *used);
                    false
                }
                None => true,
            }
        });
    }
}
