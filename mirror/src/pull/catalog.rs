//! The repositories in the cache, page by page.
//!
//! A walk over the directories makes the list, which takes seconds for a large cache. One walk runs at a time, however
//! many clients wait. Its result is kept for ten times as long as the walk took: walks take a tenth of a thread at most,
//! and the list of a small cache is fresh.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::Pull;
use super::tags::{Page, Window};
use crate::pull_error::PullError;
use crate::store::RepositoryList;

/// A list is kept for so many times the length of its walk.
const KEPT_WALKS: u32 = 10;
/// The longest time for which a list is kept.
const MAX_KEPT: Duration = Duration::from_secs(30);

/// The last list of repositories.
#[derive(Default)]
pub(super) struct Catalog {
    /// Locked during a walk.
    last: Arc<Mutex<Option<KeptList>>>,
    /// The number of reloads: each may change the repositories that clients may pull.
    reloads: AtomicU64,
}

struct KeptList {
    list: RepositoryList,
    /// The names are those after this one.
    after: Option<String>,
    reloads: u64,
    made: Instant,
    kept: Duration,
}

impl Catalog {
    /// Forgets the list, and the result of a walk that runs.
    pub(super) fn forget(&self) {
        self.reloads.fetch_add(1, Ordering::AcqRel);
    }
}

impl KeptList {
    /// Returns `true` while the list is kept.
    fn is_fresh(&self) -> bool {
        self.made.elapsed() < self.kept
    }

    /// Returns a page of the list, unless it lacks names of the page, or a reload changed the repositories.
    fn page(&self, window: &Window, reloads: u64) -> Option<Page> {
        if self.reloads != reloads || self.after > window.last {
            return None;
        }
        let page = window.page_of(self.list.names.iter());
        (page.next.is_some() || !self.list.is_cut).then_some(page)
    }
}

impl Pull {
    /// Returns the repositories in the cache that clients may pull.
    pub(crate) async fn catalog(self: &Arc<Self>, window: &Window, peer: &str) -> Result<Page, PullError> {
        let host = self.live().upstreams[0].settings.host.clone();
        let _turn = self.list_turn(&host, peer).await?;
        let last = Arc::clone(&self.catalog.last).lock_owned().await;
        let reloads = self.catalog.reloads.load(Ordering::Acquire);
        let fresh = last.as_ref().filter(|kept| kept.is_fresh());
        if let Some(page) = fresh.and_then(|kept| kept.page(window, reloads)) {
            return Ok(page);
        }
        let (pull, window) = (Arc::clone(self), window.clone());
        // A client that leaves ends no walk, so that the next client does not begin another one.
        let walk = tokio::spawn(async move { pull.walk(last, &window, reloads).await });
        walk.await
            .unwrap_or_else(|error| Err(PullError::unavailable(error.to_string())))
    }

    async fn walk(
        &self,
        mut kept: OwnedMutexGuard<Option<KeptList>>,
        window: &Window,
        reloads: u64,
    ) -> Result<Page, PullError> {
        *kept = None;
        // A list from the start answers all pages. Only where it was cut, one from within is needed.
        let mut list = self.list_after(None, reloads).await?;
        if list.page(window, reloads).is_none() {
            list = self.list_after(window.last.clone(), reloads).await?;
        }
        let page = window.page_of(list.list.names.iter());
        *kept = Some(list);
        Ok(page)
    }

    async fn list_after(&self, after: Option<String>, reloads: u64) -> Result<KeptList, PullError> {
        let (begun, live) = (Instant::now(), self.live());
        let is_listed = move |repository: &_| live.admits(repository);
        let listed = self.store.repositories(after.clone(), is_listed).await;
        let list = listed.map_err(|error| PullError::unavailable(error.to_string()))?;
        Ok(KeptList {
            list,
            after,
            reloads,
            made: Instant::now(),
            kept: (begun.elapsed() * KEPT_WALKS).min(MAX_KEPT),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(after: Option<&str>, names: &[&str], is_cut: bool) -> KeptList {
        let mut list = RepositoryList::default();
        list.names = names.iter().map(ToString::to_string).collect();
        list.is_cut = is_cut;
        KeptList {
            list,
            after: after.map(Into::into),
            reloads: 1,
            made: Instant::now(),
            kept: Duration::from_mins(1),
        }
    }

    fn window(n: usize, last: Option<&str>) -> Window {
        Window {
            n: Some(n),
            last: last.map(Into::into),
        }
    }

    /// A kept list answers the pages that it has all names of.
    #[test]
    fn kept_list_answers_pages_that_it_covers() {
        let whole = kept(None, &["a", "b", "c"], false);
        assert_eq!(whole.page(&window(2, Some("a")), 1).unwrap().names, ["b", "c"]);
        assert_eq!(whole.page(&window(2, None), 2), None, "a reload came between");
        let cut = kept(Some("a"), &["b", "c", "d"], true);
        assert_eq!(cut.page(&window(2, Some("a")), 1).unwrap().names, ["b", "c"]);
        assert_eq!(cut.page(&window(2, Some("c")), 1), None, "more names follow");
        assert_eq!(cut.page(&window(1, None), 1), None, "names come before");
        let old = KeptList {
            kept: Duration::ZERO,
            ..whole
        };
        assert!(cut.is_fresh() && !old.is_fresh());
    }
}
