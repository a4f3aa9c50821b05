//! A gate that opens once several watches have listed (client-go, `HasSynced`).
//!
//! Only one task can wait for a store of kube: a second one replaces the first.

use std::{collections::BTreeSet, hash::Hash};

use tokio::sync::watch;

/// A gate with the watches that have not listed yet. Any number of tasks can wait for it.
pub struct SyncGate<K>(watch::Sender<BTreeSet<K>>);

impl<K: Ord + Hash + Send + Sync + 'static> SyncGate<K> {
    /// Creates a gate for these watches.
    pub fn new(missing: impl IntoIterator<Item = K>) -> Self {
        Self(watch::Sender::new(missing.into_iter().collect()))
    }

    /// Marks one watch as listed.
    pub fn mark_synced(&self, key: &K) {
        self.0.send_if_modified(|missing| missing.remove(key));
    }

    /// Completes once all watches have listed; never if the gate is dropped before.
    pub fn wait_synced(&self) -> impl Future<Output = ()> + Send + use<K> {
        let mut missing = self.0.subscribe();
        async move {
            if missing.wait_for(BTreeSet::is_empty).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};

    use super::*;

    #[tokio::test]
    async fn synced_gate_wakes_every_task() {
        let gate = SyncGate::new([1, 2]);
        let (first, second) = (tokio::spawn(gate.wait_synced()), tokio::spawn(gate.wait_synced()));
        gate.mark_synced(&1);
        let mut third = Box::pin(gate.wait_synced());
        assert!(poll!(&mut third).is_pending());
        gate.mark_synced(&2);
        first.await.unwrap();
        second.await.unwrap();
        third.await;
        assert!(gate.wait_synced().now_or_never().is_some());
    }
}
