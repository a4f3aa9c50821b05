//! Expires content: removes, every minute, what is older than the time to live.
//!
//! Ages come from the index of the store, so they survive restarts, and a new time to live applies to all cached
//! content. The same rounds scrub content that was not verified for long.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Cache, UploadPurging};
use crate::store::{Store, Sweep};

/// The time between two rounds.
const EVERY: Duration = Duration::from_mins(1);
/// The time between two rounds while the store still rebuilds its index.
const EVERY_UNSETTLED: Duration = Duration::from_secs(1);

/// Runs until `shutdown`: a round at once, every minute, and after each change of the configuration.
///
/// Each round, and the end, also flush the times of use that the store holds in memory, so no other caller needs
/// [`Store::flush`].
pub async fn run(store: Store, mut cache: watch::Receiver<Cache>, shutdown: CancellationToken) {
    let mut watched = true;
    let mut scrub: Option<JoinHandle<()>> = None;
    while !shutdown.is_cancelled() {
        let (ttl, from) = {
            let cache = cache.borrow_and_update();
            store.set_scrub_period(cache.scrub_period);
            store.set_pinned(&cache.pinned);
            (cache.ttl, cache.ttl_from)
        };
        match store.expire(ttl, from).await {
            Ok(0) => {}
            Ok(expired) => tracing::info!(expired, "content expired"),
            Err(error) => tracing::warn!(%error, "content could not expire; it is tried again"),
        }
        store.flush_if_due().await;
        if scrub.as_ref().is_none_or(JoinHandle::is_finished) {
            scrub = Some(tokio::spawn(hash_again(store.clone(), shutdown.clone())));
        }
        let pause = if store.is_settled() {
            EVERY
        } else {
            EVERY_UNSETTLED
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            changed = cache.changed(), if watched => watched = changed.is_ok(),
        }
    }
    store.flush().await;
}

/// Scrubs in a task of its own, because a scrub may take longer than a round.
async fn hash_again(store: Store, shutdown: CancellationToken) {
    if let Err(error) = store.scrub(&shutdown).await {
        tracing::warn!(%error, "content could not be verified again; its next use queues it");
    }
}

/// Sweeps abandoned uploads, at once and at each interval, until `shutdown`.
pub async fn sweep_uploads(store: Store, purging: UploadPurging, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match store.sweep_uploads(purging).await {
            Ok(sweep) if sweep == Sweep::default() => {}
            Ok(Sweep {
                removed,
                spared,
                bytes,
            }) => tracing::info!(removed, spared, bytes, "uploads that were left behind were swept"),
            Err(error) => {
                tracing::warn!(%error, "uploads that were left behind cannot be swept; the next sweep tries again");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(purging.interval) => {}
        }
    }
}
