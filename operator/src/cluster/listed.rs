//! Which kinds were listed at least once.
//!
//! kube's stores can be waited for by one task only: a second one takes the first one's place and leaves it waiting.

use std::{collections::BTreeSet, hash::Hash};

use tokio::sync::watch;

/// Waits for several things, any number of tasks at a time.
pub struct Listed<K>(watch::Sender<BTreeSet<K>>);

impl<K: Ord + Hash + Send + Sync + 'static> Listed<K> {
    /// None of these was listed yet.
    pub fn new(missing: impl IntoIterator<Item = K>) -> Self {
        Self(watch::Sender::new(missing.into_iter().collect()))
    }

    /// This one was.
    pub fn done(&self, key: &K) {
        self.0.send_if_modified(|missing| missing.remove(key));
    }

    /// Completes once all were; never if nobody lists any more.
    pub fn all(&self) -> impl Future<Output = ()> + Send + use<K> {
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
    async fn every_waiting_task_is_woken() {
        let listed = Listed::new([1, 2]);
        let (first, second) = (tokio::spawn(listed.all()), tokio::spawn(listed.all()));
        listed.done(&1);
        let mut third = Box::pin(listed.all());
        assert!(poll!(&mut third).is_pending());
        listed.done(&2);
        first.await.unwrap();
        second.await.unwrap();
        third.await;
        assert!(listed.all().now_or_never().is_some());
    }
}
