//! The bucket of a server: its uploads, its ledger, and the tasks of both.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::state::ServerState;
use super::{Error, Reloader};
use crate::bucket::{Bucket, Uploader};
use crate::clock::Clock;
use crate::config::Config;
use crate::digest::Digest;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::name::Repository;
use crate::peers::Fleet;
use crate::pull::Pull;
use crate::store::Store;
use crate::upstream::BuildError;

/// Puts the bucket to use, if one is configured, and returns the uploads to it.
pub(super) async fn uploader(config: &Config, store: &Store, pull: &Pull) -> Result<Option<Uploader>, Error> {
    let Some(settings) = config.bucket.clone() else {
        return Ok(None);
    };
    let fingerprint = settings.fingerprint();
    let host = config.proxy.upstreams[0].host.clone();
    let made = tokio::task::spawn_blocking(move || Bucket::new(&settings, host)).await;
    let bucket = made.map_err(|_| BuildError::Stopping)??;
    bucket.set_ttl(&config.proxy.cache);
    store.set_bucket(fingerprint).await?;
    pull.use_bucket(Arc::clone(&bucket));
    Ok(Some(Uploader::new(bucket, store.clone())))
}

/// Lets replicas with the same content upload it once.
pub(super) fn share_uploads(uploader: Option<&Uploader>, fleet: Option<&Arc<Fleet>>, pull: &Arc<Pull>) {
    if let Some((uploader, fleet)) = uploader.zip(fleet) {
        // The server holds both until its end.
        let pull = Arc::downgrade(pull);
        let is_filling = move |repository: &Repository, digest: &Digest| {
            pull.upgrade()
                .is_some_and(|pull| pull.is_filling(repository, digest))
        };
        uploader.share(fleet, Box::new(is_filling));
    }
}

/// Creates the ledger of a bucket with a limit. Without a limit nothing leaves the bucket, and nothing is recorded.
pub(super) fn ledger(
    uploader: Option<&Uploader>,
    store: &Store,
    fleet: Option<&Arc<Fleet>>,
    clock: &Clock,
    metrics: &Metrics,
) -> Option<Ledger> {
    let uploader = uploader.filter(|uploader| uploader.bucket().max_size().is_some())?;
    let (store, fleet) = (store.clone(), fleet.cloned());
    Some(Ledger::new(
        uploader,
        store,
        fleet,
        clock.clone(),
        metrics.clone(),
    ))
}

/// The background tasks of a bucket.
pub(super) struct BucketTasks {
    uploads: Option<JoinHandle<()>>,
    ledger: Option<JoinHandle<()>>,
    /// Ends the ledger.
    uploaded: CancellationToken,
}

impl BucketTasks {
    /// Starts the tasks; `shutdown` ends the uploads.
    pub(super) fn spawn(state: &ServerState, reloader: &Reloader, shutdown: &CancellationToken) -> Self {
        let uploaded = CancellationToken::new();
        let uploads = state.uploader.clone();
        let ledger = state.ledger.clone();
        Self {
            uploads: uploads.map(|uploader| tokio::spawn(uploader.run(shutdown.clone()))),
            ledger: ledger.map(|ledger| tokio::spawn(ledger.run(reloader.cache(), uploaded.clone()))),
            uploaded,
        }
    }

    /// Waits until the uploads have ended, and then the ledger, which records them. A panic of a task was logged.
    pub(super) async fn finish(self) {
        if let Some(uploads) = self.uploads {
            // Uploads under way end, or leave nothing visible.
            let _ = uploads.await;
        }
        self.uploaded.cancel();
        if let Some(ledger) = self.ledger {
            let _ = ledger.await;
        }
    }
}
