//! The number of requests that one request of a client may cause at an upstream and at the hosts that it names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::upstream::error::Error;

/// The most requests that one request causes, with redirects, tokens and repeated attempts. A pull with an expired token,
/// a redirect to another registry, and one to a storage takes seven.
pub(crate) const MAX_REQUESTS: usize = 20;

/// The requests that are left; clones share them.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct RequestBudget(Arc<AtomicUsize>);

impl RequestBudget {
    /// Creates a budget of [`MAX_REQUESTS`].
    pub(in crate::upstream) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(MAX_REQUESTS)))
    }

    /// Takes one request off the budget.
    ///
    /// # Errors
    /// None is left.
    pub(in crate::upstream) fn spend(&self) -> Result<(), Error> {
        let left = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| {
            Error::unavailable(format!(
                "it leads to more than {MAX_REQUESTS} requests (redirects and tokens)"
            ))
        })
    }
}
