//! The places of reconciles that run: a limited number in all, of which the mirrors of one namespace take a part.
//!
//! Without the limit for a namespace, mirrors of the others would wait for one tenant with many mirrors or large CA bundles.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of a controller.
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// The number of places that one namespace can take.
    share: usize,
    namespaces: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A place, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    namespace: String,
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Places {
    /// Returns this number of places, of which one namespace can take `share`.
    pub(super) fn new(count: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(count)),
            share,
            namespaces: Mutex::default(),
        })
    }

    /// Waits for a place, first for one of the namespace: a namespace has a limited number in the common queue, too.
    pub(super) async fn take(self: Arc<Self>, namespace: String) -> Place {
        let own = {
            let mut namespaces = self.namespaces.lock();
            let own = namespaces.entry(namespace.clone());
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(self.share))))
        };
        let own = own.acquire_owned().await;
        let all = Arc::clone(&self.all).acquire_owned().await;
        Place {
            places: self,
            namespace,
            // No semaphore is closed.
            permits: own.ok().zip(all.ok()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.permits = None;
        let mut namespaces = self.places.namespaces.lock();
        // A reconcile that waits has a reference, too.
        if namespaces
            .get(&self.namespace)
            .is_some_and(|own| Arc::strong_count(own) == 1)
        {
            namespaces.remove(&self.namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn take(places: &Arc<Places>, namespace: &str) -> Option<Place> {
        Arc::clone(places).take(namespace.to_owned()).now_or_never()
    }

    /// A namespace whose reconciles hang leaves places for the others.
    #[test]
    fn full_namespace_leaves_places_for_others() {
        let places = Places::new(3, 2);
        let taken = [take(&places, "tenant"), take(&places, "tenant")];
        assert!(taken.iter().all(Option::is_some));
        assert!(take(&places, "tenant").is_none(), "beyond its share");
        assert!(take(&places, "innocent").is_some());
        drop(taken);
        assert!(take(&places, "tenant").is_some());
    }

    #[tokio::test]
    async fn waiting_reconcile_gets_the_next_place() {
        let places = Places::new(1, 1);
        let first = take(&places, "a").unwrap();
        let next = Arc::clone(&places).take("a".to_owned());
        tokio::pin!(next);
        assert!(next.as_mut().now_or_never().is_none());
        drop(first);
        drop(next.await);
    }

    #[test]
    fn namespace_without_reconcile_is_forgotten() {
        let places = Places::new(2, 1);
        let one = take(&places, "a");
        drop(take(&places, "b"));
        assert_eq!(places.namespaces.lock().len(), 1);
        drop(one);
        assert!(places.namespaces.lock().is_empty());
    }
}
