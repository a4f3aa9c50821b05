//! The background task that brings the bucket up to date with the cache.

mod answers;
mod transfer;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use object_store::path::Path as Key;
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::replicas::ReplicaUploads;
use super::upload::{UploadError, UploadQuota};
use super::{Bucket, BucketError, BucketState, Error, WaitLimit};
use crate::digest::Digest;
use crate::name::Repository;
use crate::peers::Fleet;
use crate::store::{BucketUpload, ContentLink, Store, UploadState};
use answers::UploadSource;

/// The links that wait for their upload; further ones are found by a scan of the index.
const MAX_QUEUED: usize = 4_096;
/// The links that a scan of the index finds at a time.
const BATCH: usize = 1_024;
/// The workers; all links of a piece of content go to the same one.
const WORKERS: usize = 4;
/// The links that a worker has waiting.
const MAX_ASSIGNED: usize = 64;
/// The time between two checks for links that were missed, or that wait for another replica.
const TICK: Duration = Duration::from_secs(1);
/// The most links that wait for another replica and are checked at a time.
const MAX_CHECKED: usize = 64;
/// The longest wait of a link for another replica.
const MAX_WAIT: Duration = Duration::from_mins(10);
/// The time that uploads have to end when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Returns whether a fill is about to link a blob to a repository.
type IsFilling = Box<dyn Fn(&Repository, &Digest) -> bool + Send + Sync>;

/// The state that the task, its workers and `/status` share.
struct Shared {
    bucket: Arc<Bucket>,
    store: Store,
    buffers: UploadQuota,
    /// The pause after an upload that failed.
    pause: Breaker,
    /// The bucket may lack something that is not in the queue.
    missed: Arc<AtomicBool>,
    /// The links that workers have.
    pending: AtomicUsize,
    /// The links that another replica uploads, as far as is known.
    waiting: Mutex<VecDeque<PendingLink>>,
    /// The uploads of the other replicas, once there are any.
    replicas: OnceLock<Arc<ReplicaUploads>>,
    sender: Sender<ContentLink>,
    /// Taken by the task.
    queue: Mutex<Option<Receiver<ContentLink>>>,
    /// The state of the bucket that the last upload of this server showed, with its error; `None` if it succeeded.
    failure: Mutex<Option<(BucketState, String)>>,
    /// The receiver of what was uploaded, once there is one.
    listener: OnceLock<Sender<BucketUpload>>,
}

/// A link that waits for its upload.
#[derive(Clone, Debug)]
struct PendingLink {
    linked: ContentLink,
    since: Instant,
}

/// The uploads that the bucket lacks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UploadReport {
    /// The links that wait for their upload; 0 if the bucket lacks nothing.
    pub(crate) pending: usize,
    /// The error of the last request that failed, with the state of the bucket that it shows; `None` if a later
    /// upload of this server succeeded, or nothing waits.
    pub(crate) failure: Option<(BucketState, String)>,
}

/// The uploads to the bucket.
#[derive(Clone)]
pub(crate) struct Uploader(Arc<Shared>);

impl Uploader {
    /// Creates the uploads of a cache's content.
    pub(crate) fn new(bucket: Arc<Bucket>, store: Store) -> Self {
        let (sender, queue) = mpsc::channel(MAX_QUEUED);
        Self(Arc::new(Shared {
            bucket,
            store,
            buffers: UploadQuota::default(),
            pause: Breaker::default(),
            // An earlier process may have left content that is not uploaded.
            missed: Arc::new(AtomicBool::new(true)),
            pending: AtomicUsize::new(0),
            waiting: Mutex::default(),
            replicas: OnceLock::new(),
            sender,
            queue: Mutex::new(Some(queue)),
            failure: Mutex::default(),
            listener: OnceLock::new(),
        }))
    }

    /// Sends what is uploaded to a receiver.
    pub(crate) fn listen(&self, sender: Sender<BucketUpload>) {
        let _ = self.0.listener.set(sender);
    }

    /// Leaves uploads to the other replicas that have the same content, and answers their questions.
    pub(crate) fn share(&self, fleet: &Arc<Fleet>, is_filling: IsFilling) {
        let shared = &self.0;
        let bucket = shared.bucket.settings.fingerprint();
        let replicas = Arc::new(ReplicaUploads::new(Arc::clone(fleet), bucket));
        if shared.replicas.set(replicas).is_ok() {
            fleet.add_source(Arc::new(UploadSource {
                shared: Arc::downgrade(shared),
                bucket,
                is_filling,
            }));
        }
    }

    /// Returns the number of links that wait for their upload, as far as it is known, and the failure that delays them.
    pub(crate) fn report(&self) -> UploadReport {
        let pending = self.pending();
        let failure = self.0.failure.lock().clone().filter(|_| pending > 0);
        UploadReport { pending, failure }
    }

    /// Returns the number of links that wait for their upload, as far as it is known; 0 if the bucket lacks nothing.
    fn pending(&self) -> usize {
        let shared = &self.0;
        let queued = shared.sender.max_capacity() - shared.sender.capacity();
        let missed = usize::from(shared.missed.load(Ordering::Relaxed));
        queued + missed + shared.pending.load(Ordering::Relaxed) + shared.waiting.lock().len()
    }

    /// Reads the files with credentials and CAs again; uploads that paused continue with new ones. Blocks.
    ///
    /// # Errors
    /// A file cannot be used; the previous credentials stay in use.
    pub(crate) fn renew(&self) -> Result<(), BucketError> {
        if self.0.bucket.renew()? {
            self.0.pause.close();
        }
        Ok(())
    }

    /// Returns the bucket.
    pub(crate) fn bucket(&self) -> Arc<Bucket> {
        Arc::clone(&self.0.bucket)
    }

    /// Runs until `shutdown`, and lets uploads that are under way end.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let shared = self.0;
        let Some(mut links) = shared.queue.lock().take() else {
            return;
        };
        shared
            .store
            .listen(shared.sender.clone(), Arc::clone(&shared.missed));
        let (workers, mut tasks) = shared.start_workers();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = shared.follow(&mut links, &workers) => {}
        }
        links.close();
        let end = async {
            while let Some(linked) = links.recv().await {
                shared.assign(&workers, PendingLink::from(linked)).await;
            }
            drop(workers);
            while tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(GRACE, end).await.is_err() {
            tracing::info!(
                pending = shared.pending.load(Ordering::Relaxed),
                "uploads to the bucket continue at the next start"
            );
        }
    }
}

impl From<ContentLink> for PendingLink {
    fn from(linked: ContentLink) -> Self {
        let since = Instant::now();
        Self { linked, since }
    }
}

impl Shared {
    fn may_send(&self) -> bool {
        self.pause.remaining().is_zero() && !self.store.is_readonly()
    }

    fn start_workers(self: &Arc<Self>) -> (Vec<Sender<PendingLink>>, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let start = |_| {
            let (sender, links) = mpsc::channel(MAX_ASSIGNED);
            tasks.spawn(Arc::clone(self).work(links));
            sender
        };
        ((0..WORKERS).map(start).collect(), tasks)
    }

    /// Assigns new links to the workers, and what was missed, for ever.
    async fn follow(&self, links: &mut Receiver<ContentLink>, workers: &[Sender<PendingLink>]) {
        // Before the first upload of this process begins.
        let mut leftovers = self.store.open_uploads().await.unwrap_or_default();
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let may_send = self.may_send();
            tokio::select! {
                Some(linked) = links.recv(), if may_send => self.assign(workers, linked.into()).await,
                _ = tick.tick() => {
                    // Shows whether the bucket can be used before the first pull does.
                    let _ = self.bucket.keys(WaitLimit::Short).await;
                    if may_send {
                        self.abort_leftovers(&mut leftovers).await;
                        self.check_waiting(workers).await;
                        self.scan(workers).await;
                    }
                }
            }
        }
    }

    async fn assign(&self, workers: &[Sender<PendingLink>], pending: PendingLink) {
        let byte = pending
            .linked
            .digest
            .hex()
            .as_bytes()
            .last()
            .copied()
            .unwrap_or_default();
        let Some(worker) = workers.get(usize::from(byte) % WORKERS) else {
            return;
        };
        self.pending.fetch_add(1, Ordering::Relaxed);
        if worker.send(pending).await.is_err() {
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Assigns the links again that have waited longest for another replica.
    async fn check_waiting(&self, workers: &[Sender<PendingLink>]) {
        let oldest: Vec<_> = {
            let mut waiting = self.waiting.lock();
            let count = waiting.len().min(MAX_CHECKED);
            // Counted before they leave, so that each is counted all the time.
            self.pending.fetch_add(count, Ordering::Relaxed);
            waiting.drain(..count).collect()
        };
        let count = oldest.len();
        for pending in oldest {
            self.assign(workers, pending).await;
        }
        self.pending.fetch_sub(count, Ordering::Relaxed);
    }

    /// Assigns what the bucket lacks, if links were missed and all that were assigned are done.
    async fn scan(&self, workers: &[Sender<PendingLink>]) {
        let is_idle = self.pending.load(Ordering::Relaxed) == 0 && self.waiting.lock().is_empty();
        if !is_idle || !self.missed.load(Ordering::Relaxed) {
            return;
        }
        // Counted before the mark goes, so that there is always one of them while something is missing.
        self.pending.fetch_add(1, Ordering::Relaxed);
        self.missed.store(false, Ordering::Relaxed);
        match self.store.not_kept(BATCH).await {
            Ok(lacking) => {
                if lacking.len() >= BATCH {
                    self.missed.store(true, Ordering::Relaxed);
                }
                for linked in lacking {
                    self.assign(workers, linked.into()).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the index cannot be read for what the bucket lacks; it is tried again");
                self.missed.store(true, Ordering::Relaxed);
            }
        }
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }

    /// Aborts the uploads in parts that an earlier process left, until one fails.
    async fn abort_leftovers(&self, leftovers: &mut Vec<(String, String)>) {
        while let Some((id, key)) = leftovers.last() {
            let key = Key::from(key.as_str());
            match self.bucket.abort(&self.store, id, &key).await {
                Ok(()) => {}
                Err(UploadError::Bucket(Error::Denied { what })) => {
                    tracing::warn!(%key, what, "an upload that an earlier process left cannot be aborted: permit s3:AbortMultipartUpload, or set a lifecycle rule; the next start tries it again");
                }
                Err(error) => {
                    tracing::debug!(%error, "an upload that an earlier process left cannot be aborted yet");
                    self.pause.open();
                    return;
                }
            }
            leftovers.pop();
        }
    }

    async fn work(self: Arc<Self>, mut links: Receiver<PendingLink>) {
        while let Some(pending) = links.recv().await {
            // The others would fail alike; a scan finds them later.
            if self.pause.remaining().is_zero() {
                self.upload(pending).await;
            } else {
                self.missed.store(true, Ordering::Relaxed);
            }
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn upload(&self, pending: PendingLink) {
        let digest = &pending.linked.digest;
        match self.try_upload(&pending).await {
            Ok(UploadState::Pending) => self.defer(pending),
            Ok(_) => {}
            Err(UploadError::Damaged) => {
                tracing::error!(%digest, "cached content does not match its digest; it is dropped");
                self.store.drop_blob(digest).await;
            }
            Err(error) => {
                self.missed.store(true, Ordering::Relaxed);
                self.pause.open();
                *self.failure.lock() = Some((error.state(), error.to_string()));
                let retry_seconds = self.pause.remaining().as_secs();
                tracing::warn!(%digest, %error, retry_seconds, "content cannot be uploaded to the bucket; it is tried again");
            }
        }
    }

    /// Ends the pause after an upload of this server; what another replica uploaded shows nothing of this one's access.
    fn on_success(&self) {
        self.pause.close();
        *self.failure.lock() = None;
    }

    /// Lets a link wait for the upload of another replica.
    fn defer(&self, pending: PendingLink) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_QUEUED {
            waiting.push_back(pending);
        } else {
            self.missed.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config;
    use crate::digest::Algorithm;
    use crate::metrics::Metrics;
    use crate::store::{Link, StoreOptions};

    /// Returns the uploads to a bucket at an address where nothing listens.
    pub(crate) async fn unreachable_uploader(root: &std::path::Path) -> (Uploader, Store, config::Cache) {
        let _ = crate::tls::provider();
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{}'}}, s3: {{bucket: b, region: r, regionendpoint: \
             'http://127.0.0.1:1', accesskey: a, secretkey: s}}}}\nproxy: {{remoteurl: 'https://registry.example'}}\n",
            root.display()
        );
        let path = root.join("config.yml");
        std::fs::write(&path, text).unwrap();
        let (config, _) = config::load(Some(&path), std::iter::empty()).unwrap();
        let settings = config.bucket.unwrap();
        let host: crate::name::Host = "docker.io".parse().unwrap();
        let options = StoreOptions {
            default_host: host.clone(),
            max_size: None,
            pinned: config::Globs::default(),
            readonly: false,
            clock: Clock::system(),
            metrics: Metrics::new(),
        };
        let store = Store::open(root, options).await.unwrap();
        let bucket = Bucket::new(&settings, host).unwrap();
        (Uploader::new(bucket, store.clone()), store, config.proxy.cache)
    }

    fn link(content: &[u8]) -> PendingLink {
        let digest = Digest::compute(Algorithm::Sha256, content);
        let repository = Repository {
            host: "docker.io".parse().unwrap(),
            name: "library/app".parse().unwrap(),
        };
        let link = Link::Layer(repository, digest.clone());
        PendingLink::from(ContentLink { digest, link })
    }

    /// A link that the bucket has already, by another replica, neither hides the failure of this server nor ends its pause.
    #[tokio::test]
    async fn stored_link_keeps_the_failure() {
        let root = tempfile::tempdir().unwrap();
        let (Uploader(shared), ..) = unreachable_uploader(root.path()).await;
        shared.upload(link(b"failing")).await;
        let failure = shared.failure.lock().clone();
        assert_eq!(failure.unwrap().0, BucketState::Unreachable);
        let other = link(b"stored");
        let linked = &other.linked;
        let links = vec![linked.link.clone()];
        shared.store.mark_kept(&linked.digest, links).await.unwrap();
        assert_eq!(shared.try_upload(&other).await.unwrap(), UploadState::Stored);
        shared.upload(other).await;
        assert!(shared.failure.lock().is_some());
        assert!(!shared.pause.remaining().is_zero());
    }

    /// A file that is placed after its entry was found without it stays: the entry is written first.
    #[tokio::test]
    async fn content_placed_meanwhile_stays() {
        let root = tempfile::tempdir().unwrap();
        let (_, store, _) = unreachable_uploader(root.path()).await;
        let PendingLink { linked, .. } = link(b"content");
        let repository = linked.link.repository().clone();
        let mut staged = store.stage(&repository.host, &linked.digest, None).await.unwrap();
        staged.append(b"content").unwrap();
        staged.commit(&[repository]).await.unwrap();
        store.drop_without_file(&linked.digest).await.unwrap();
        assert!(store.content(&linked.digest).await.unwrap().is_some());
        let hex = linked.digest.hex();
        let path = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        std::fs::remove_file(root.path().join(path)).unwrap();
        store.drop_without_file(&linked.digest).await.unwrap();
        assert_eq!(store.fetched(&linked.digest).await.unwrap(), None);
    }

    /// A failure is reported while a link waits for its upload, and no longer.
    #[tokio::test]
    async fn failure_without_pending_links_is_unreported() {
        let root = tempfile::tempdir().unwrap();
        let (uploader, ..) = unreachable_uploader(root.path()).await;
        uploader.0.upload(link(b"failing")).await;
        let report = uploader.report();
        assert!(report.pending > 0 && report.failure.is_some(), "{report:?}");
        uploader.0.missed.store(false, Ordering::Relaxed);
        let report = uploader.report();
        assert_eq!((report.pending, report.failure), (0, None));
        uploader.0.missed.store(true, Ordering::Relaxed);
        assert!(uploader.report().failure.is_some());
    }
}
