//! Single flight: concurrent requests for one key share one fetch.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::{Instrument, info_span};

use crate::traces::{TARGET, detached};

/// A shared fetch; `None` if its task was stopped.
pub(crate) type Waiting<V> = Shared<BoxFuture<'static, Option<V>>>;

/// The running fetches by key.
pub(crate) struct SingleFlight<K, V> {
    running: Arc<Mutex<HashMap<K, Waiting<V>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the fetch of `key` if it is under way.
    pub(crate) fn get(&self, key: &K) -> Option<Waiting<V>> {
        let running = self.running.lock();
        running.get(key).cloned()
    }

    /// Joins the fetch of `key`, or starts it. It runs in a task of its own: waiters may leave, it does not end.
    /// The second value tells whether it was running already.
    pub(crate) fn join<F>(&self, key: &K, fetch: impl FnOnce() -> F) -> (Waiting<V>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(waiting) = running.get(key) {
            return (waiting.clone(), true);
        }
        let (done, result) = oneshot::channel();
        let waiting = result.map(Result::ok).boxed().shared();
        running.insert(key.clone(), waiting.clone());
        let guard = RemoveOnDrop {
            key: key.clone(),
            running: Arc::clone(&self.running),
        };
        let fetch = fetch();
        let span = info_span!(target: TARGET, parent: None, "fetch");
        let run = async move {
            let value = fetch.await;
            // Removed from the map first, so that a later request starts a new fetch.
            drop(guard);
            let _ = done.send(value);
        };
        tokio::spawn(run.instrument(detached(span)));
        (waiting, false)
    }
}

/// Takes the flight off the map however its task ends.
struct RemoveOnDrop<K: Eq + Hash, V> {
    key: K,
    running: Arc<Mutex<HashMap<K, Waiting<V>>>>,
}

impl<K: Eq + Hash, V> Drop for RemoveOnDrop<K, V> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// One hundred waiters cost one fetch.
    #[tokio::test]
    async fn hundred_waiters_share_one_fetch() {
        let (flights, fetched) = (
            SingleFlight::<u8, usize>::default(),
            Arc::new(AtomicUsize::new(0)),
        );
        let gate = Arc::new(tokio::sync::Notify::new());
        let waiters: Vec<_> = (0..100)
            .map(|_| {
                let (fetched, gate) = (Arc::clone(&fetched), Arc::clone(&gate));
                let fetch = || async move {
                    gate.notified().await;
                    fetched.fetch_add(1, Ordering::SeqCst)
                };
                flights.join(&1, fetch).0
            })
            .collect();
        gate.notify_one();
        assert!(
            futures::future::join_all(waiters)
                .await
                .into_iter()
                .all(|value| value == Some(0))
        );
        assert_eq!(fetched.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn fetch_continues_without_waiters_next_starts_new() {
        let flights = SingleFlight::<u8, u8>::default();
        let (landed, mut received) = tokio::sync::mpsc::channel(1);
        drop(flights.join(&1, || async move { landed.send(()).await.map_or(0, |()| 1) }));
        received.recv().await.unwrap();
        while flights.running.lock().contains_key(&1) {
            tokio::task::yield_now().await;
        }
        let (waiting, joined) = flights.join(&1, || async { 2 });
        assert!(!joined);
        assert_eq!(waiting.await, Some(2));
    }

    /// A fetch that panics leaves no entry, so that the next one runs.
    #[tokio::test]
    async fn panicked_fetch_leaves_nothing() {
        let flights = SingleFlight::<u8, u8>::default();
        let (waiting, _) = flights.join(&1, || async { panic!("on purpose") });
        assert_eq!(waiting.await, None);
        assert_eq!(flights.join(&1, || async { 3 }).0.await, Some(3));
    }
}
