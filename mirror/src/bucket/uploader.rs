//! The background task that brings the bucket up to date with the cache.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path as Key;
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::keys::Keys;
use super::upload::{Upload, UploadError, UploadQuota};
use super::{Bucket, BucketError, BucketState, WaitLimit, error};
use crate::store::{BucketUpload, ContentLink, Link, Store};

/// The links that wait for their upload; further ones are found by a scan of the index.
const MAX_QUEUED: usize = 4_096;
/// The links that a scan of the index finds at a time.
const BATCH: usize = 1_024;
/// The workers; all links of a piece of content go to the same one.
const WORKERS: usize = 4;
/// The links that a worker has waiting.
const MAX_ASSIGNED: usize = 64;
/// The time between two checks for links that were missed.
const TICK: Duration = Duration::from_secs(1);
/// The time that uploads have to end when the server stops.
const GRACE: Duration = Duration::from_secs(5);

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
    sender: Sender<ContentLink>,
    /// Taken by the task.
    queue: Mutex<Option<Receiver<ContentLink>>>,
    /// The state of the bucket that the last upload showed, with its error; `None` if it succeeded.
    failure: Mutex<Option<(BucketState, String)>>,
    /// The receiver of what was uploaded, once there is one.
    listener: OnceLock<Sender<BucketUpload>>,
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

    /// Returns the number of links that wait for their upload, as far as it is known; 0 if the bucket lacks nothing.
    pub(crate) fn pending(&self) -> usize {
        let shared = &self.0;
        let queued = shared.sender.max_capacity() - shared.sender.capacity();
        let missed = usize::from(shared.missed.load(Ordering::Relaxed));
        queued + missed + shared.pending.load(Ordering::Relaxed)
    }

    /// Returns the error of the last upload, with the state of the bucket that it shows; `None` if the upload succeeded.
    pub(crate) fn failure(&self) -> Option<(BucketState, String)> {
        self.0.failure.lock().clone()
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
                shared.assign(&workers, linked).await;
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

impl Shared {
    fn start_workers(self: &Arc<Self>) -> (Vec<Sender<ContentLink>>, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let start = |_| {
            let (sender, links) = mpsc::channel(MAX_ASSIGNED);
            tasks.spawn(Arc::clone(self).work(links));
            sender
        };
        ((0..WORKERS).map(start).collect(), tasks)
    }

    /// Assigns new links to the workers, and what was missed, for ever.
    async fn follow(&self, links: &mut Receiver<ContentLink>, workers: &[Sender<ContentLink>]) {
        let mut is_clean = false;
        loop {
            let may_send = self.pause.remaining().is_zero() && !self.store.is_readonly();
            tokio::select! {
                Some(linked) = links.recv(), if may_send => self.assign(workers, linked).await,
                () = tokio::time::sleep(TICK) => {
                    // Shows whether the bucket can be used before the first pull does.
                    let _ = self.bucket.keys(WaitLimit::Short).await;
                    if may_send && !is_clean {
                        is_clean = self.abort_leftovers().await;
                    }
                    if may_send {
                        self.scan(workers).await;
                    }
                }
            }
        }
    }

    async fn assign(&self, workers: &[Sender<ContentLink>], linked: ContentLink) {
        let byte = linked.digest.hex().as_bytes().last().copied().unwrap_or_default();
        let Some(worker) = workers.get(usize::from(byte) % WORKERS) else {
            return;
        };
        self.pending.fetch_add(1, Ordering::Relaxed);
        if worker.send(linked).await.is_err() {
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Assigns what the bucket lacks, if links were missed and all that were assigned are done.
    async fn scan(&self, workers: &[Sender<ContentLink>]) {
        if self.pending.load(Ordering::Relaxed) > 0 || !self.missed.load(Ordering::Relaxed) {
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
                    self.assign(workers, linked).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the index cannot be read for what the bucket lacks; it is tried again");
                self.missed.store(true, Ordering::Relaxed);
            }
        }
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }

    /// Aborts the uploads in parts that an earlier process left; returns `true` if none is left.
    async fn abort_leftovers(&self) -> bool {
        let Ok(leftovers) = self.store.open_uploads().await else {
            return false;
        };
        for (id, key) in leftovers {
            if let Err(error) = self.bucket.abort(&self.store, &id, &Key::from(key)).await {
                tracing::debug!(%error, "an upload that an earlier process left cannot be aborted yet");
                self.pause.open();
                return false;
            }
        }
        true
    }

    async fn work(self: Arc<Self>, mut links: Receiver<ContentLink>) {
        while let Some(linked) = links.recv().await {
            // The others would fail alike; a scan finds them later.
            if self.pause.remaining().is_zero() {
                self.upload(&linked).await;
            } else {
                self.missed.store(true, Ordering::Relaxed);
            }
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn upload(&self, linked: &ContentLink) {
        let digest = &linked.digest;
        match self.try_upload(linked).await {
            Ok(()) => {
                self.pause.close();
                *self.failure.lock() = None;
            }
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

    /// Uploads content and a link to it, unless the bucket has them.
    async fn try_upload(&self, linked: &ContentLink) -> Result<(), UploadError> {
        let ContentLink { digest, link } = linked;
        let (store, bucket) = (&self.store, &self.bucket);
        if store.is_kept(digest, Some(link)).await? && store.is_kept(digest, None).await? {
            return Ok(());
        }
        let keys = bucket.claim().await?;
        // From a bucket with a limit, content that was uploaded before may have been evicted since.
        let is_kept = store.is_kept(digest, None).await?;
        let uploaded = if is_kept && bucket.max_size().is_none() {
            Upload::Foreign
        } else {
            bucket.upload(store, &keys, digest, &self.buffers).await?
        };
        match uploaded {
            Upload::Gone => {
                // Evicted, or an entry of the index without a file.
                store.drop_blob(digest).await;
                return Ok(());
            }
            Upload::Own(_) => store.mark_uploaded(digest).await?,
            Upload::Foreign if is_kept => {}
            Upload::Foreign => store.mark_kept(digest, Vec::new()).await?,
        }
        self.put_link(&keys, linked).await?;
        store.mark_kept(digest, vec![link.clone()]).await?;
        self.notify(linked, uploaded).await;
        Ok(())
    }

    /// Notifies the receiver of uploads of content that mirrors own.
    async fn notify(&self, linked: &ContentLink, uploaded: Upload) {
        let (Some(listener), Upload::Own(size)) = (self.listener.get(), uploaded) else {
            return;
        };
        let now = self.store.now();
        let fetched = self.store.fetched(&linked.digest).await.ok().flatten();
        let upload = BucketUpload {
            digest: linked.digest.clone(),
            size,
            fetched: fetched.unwrap_or(now),
            used: now,
            uploaded: now,
            links: vec![linked.link.clone()],
        };
        // Fails only if the receiver has ended; the index has the upload.
        let _ = listener.send(upload).await;
    }

    async fn put_link(&self, keys: &Keys, linked: &ContentLink) -> Result<(), UploadError> {
        let digest = &linked.digest;
        let text = Bytes::from(digest.to_string());
        let put = async |key: Key| -> Result<(), error::Error> { self.bucket.put(&key, text.clone()).await };
        match &linked.link {
            Link::Layer(repository, name) => put(keys.layer(repository, name)).await?,
            Link::Revision(repository, name) => put(keys.revision(repository, name)).await?,
            // The tag may have moved since.
            Link::Tag(repository, tag) => {
                put(keys.tag_index(repository, tag, digest)).await?;
                if self.store.is_current(repository, tag, digest).await? {
                    put(keys.tag(repository, tag)).await?;
                }
            }
        }
        Ok(())
    }
}
