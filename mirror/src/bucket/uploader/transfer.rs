//! One upload: content and a link to it, unless the bucket or another replica has them.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use object_store::path::Path as Key;

use super::{MAX_WAIT, PendingLink, Shared};
use crate::bucket::WaitLimit;
use crate::bucket::error::Error;
use crate::bucket::keys::Keys;
use crate::bucket::upload::{Upload, UploadError};
use crate::store::{BucketUpload, ContentLink, Link, UploadState};

impl Shared {
    /// Uploads content and a link to it, unless the bucket has them. `Pending`: another replica uploads them.
    pub(super) async fn try_upload(&self, pending: &PendingLink) -> Result<UploadState, UploadError> {
        let PendingLink { linked, since } = pending;
        if self.store.upload_state(linked).await? == UploadState::Stored {
            return Ok(UploadState::Stored);
        }
        match self.state_at_replicas(linked).await? {
            UploadState::Pending if since.elapsed() < MAX_WAIT => return Ok(UploadState::Pending),
            UploadState::Stored => {
                let links = vec![linked.link.clone()];
                self.store.mark_kept(&linked.digest, links).await?;
                return Ok(UploadState::Stored);
            }
            UploadState::Pending | UploadState::Absent => {}
        }
        self.upload_here(linked).await
    }

    /// Returns the state of an upload at the other replicas.
    async fn state_at_replicas(&self, linked: &ContentLink) -> Result<UploadState, UploadError> {
        let digest = &linked.digest;
        // Only this server knows of the wrong bytes.
        let is_wrong = self.bucket.wrong.contains_key(digest);
        let Some(replicas) = self.replicas.get().filter(|_| !is_wrong) else {
            return Ok(UploadState::Absent);
        };
        let state = replicas.state(linked).await;
        if state != UploadState::Stored {
            return Ok(state);
        }
        // A tag may have moved there and back unseen by the other replica.
        let is_tag = matches!(linked.link, Link::Tag(..));
        // From a bucket with a limit, what another replica uploaded may have been evicted since.
        let is_limited = self.bucket.max_size().is_some();
        if !is_tag && !is_limited {
            return Ok(UploadState::Stored);
        }
        let keys = self.bucket.claim().await?;
        let link = keys.link(&linked.link);
        if self.bucket.link(&link, WaitLimit::Long).await.as_ref() != Some(digest) {
            return Ok(UploadState::Absent);
        }
        if is_limited && self.bucket.find_content(&keys.data(digest)).await?.is_none() {
            return Ok(UploadState::Absent);
        }
        Ok(UploadState::Stored)
    }

    async fn upload_here(&self, linked: &ContentLink) -> Result<UploadState, UploadError> {
        let keys = &self.bucket.claim().await?;
        let ContentLink { digest, link } = linked;
        let (store, bucket) = (&self.store, &self.bucket);
        // From a bucket with a limit, content that was uploaded before may have been evicted since.
        let is_kept = store.is_kept(digest, None).await?;
        let uploaded = if is_kept && bucket.max_size().is_none() {
            Upload::Foreign
        } else {
            bucket.upload(store, keys, linked, &self.buffers).await?
        };
        match uploaded {
            Upload::Gone => {
                // Evicted, an entry of the index without a file, or a file that is placed now: a scan finds it.
                store.drop_without_file(digest).await?;
                self.missed.store(true, Ordering::Relaxed);
                return Ok(UploadState::Absent);
            }
            Upload::Own(_) => store.mark_uploaded(digest).await?,
            Upload::Foreign if is_kept => {}
            Upload::Foreign => store.mark_kept(digest, Vec::new()).await?,
        }
        self.put_link(keys, linked).await?;
        self.on_success();
        store.mark_kept(digest, vec![link.clone()]).await?;
        self.notify(linked, uploaded).await;
        Ok(UploadState::Stored)
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
        let put = async |key: Key| -> Result<(), Error> { self.bucket.put(&key, text.clone()).await };
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
