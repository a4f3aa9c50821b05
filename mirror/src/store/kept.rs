//! The content and links that the bucket behind this cache has, and the uploads to it that have not ended.
//!
//! The rows of content go with the content, so that the table is never larger than the cache.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::mpsc::Sender;

use crate::digest::Digest;
use crate::name::{Repository, Tag};
use crate::store::durable;
use crate::store::index::{IndexEntry, Link, Op};
use crate::store::manifests::MAX_MANIFEST;
use crate::store::{Error, Inner, Store, link};

/// A link that was written, or that the bucket lacks, with the content that it points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentLink {
    /// The content.
    pub(crate) digest: Digest,
    /// The link.
    pub(crate) link: Link,
}

/// Content that this server uploaded to the bucket. Times are ms since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketUpload {
    /// The content.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The time of its first fetch.
    pub(crate) fetched: i64,
    /// The time of its last use.
    pub(crate) used: i64,
    /// The time of the upload.
    pub(crate) uploaded: i64,
    /// The links to it that the bucket has.
    pub(crate) links: Vec<Link>,
}

/// The state of content and a link to it, as a cache knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadState {
    /// The bucket has both.
    Stored,
    /// The cache has both, and the bucket lacks at least one of them.
    Pending,
    /// The cache does not have both.
    Absent,
}

/// The last uses of content, with their times in ms since 1970.
pub(crate) type Uses = Vec<(Digest, i64)>;

/// The receivers of changes, once there are any.
#[derive(Debug, Default)]
pub(super) struct StoreListener {
    links: OnceLock<LinkListener>,
    uses: OnceLock<Sender<Uses>>,
}

/// The receiver of new links.
#[derive(Debug)]
struct LinkListener {
    sender: Sender<ContentLink>,
    /// Set when the receiver missed a link, which [`Store::not_kept`] then finds.
    missed: Arc<AtomicBool>,
}

impl Store {
    /// Sends each new link to a receiver; sets `missed` if it has no room for one. The first receiver stays.
    pub(crate) fn listen(&self, sender: Sender<ContentLink>, missed: Arc<AtomicBool>) {
        let _ = self.inner.listeners.links.set(LinkListener { sender, missed });
    }

    /// Sends the uses of content to a receiver, as often as the index takes them; a batch without room is lost. The first
    /// receiver stays.
    pub(crate) fn listen_uses(&self, sender: Sender<Uses>) {
        let _ = self.inner.listeners.uses.set(sender);
    }

    /// Writes the uses that are in memory to the index, and sends them to their receiver.
    pub(crate) async fn flush_uses(&self) -> Result<(), Error> {
        self.blocking(Inner::write_recorded_uses).await
    }

    /// Sets the bucket behind the cache, by its fingerprint. What the index knows of another bucket is forgotten.
    pub(crate) async fn set_bucket(&self, fingerprint: u64) -> Result<(), Error> {
        self.blocking(move |inner| {
            if inner.index.bucket()? != fingerprint {
                inner.index.write(vec![Op::ForgetKept, Op::Bucket(fingerprint)])?;
            }
            Ok(())
        })
        .await
    }

    /// Returns whether the bucket has content (`None`) or a link to it.
    pub(crate) async fn is_kept(&self, digest: &Digest, link: Option<&Link>) -> Result<bool, Error> {
        let (digest, link) = (digest.clone(), link.cloned());
        self.blocking(move |inner| Ok(inner.index.is_kept(&digest, link.as_ref())?))
            .await
    }

    /// Returns the state of content and a link to it.
    pub(crate) async fn upload_state(&self, linked: &ContentLink) -> Result<UploadState, Error> {
        let ContentLink { digest, link } = linked.clone();
        self.blocking(move |inner| Ok(inner.index.upload_state(&digest, &link)?))
            .await
    }

    /// Records that the bucket has content, and these links to it.
    pub(crate) async fn mark_kept(&self, digest: &Digest, links: Vec<Link>) -> Result<(), Error> {
        let kept = |link| Op::Kept(digest.clone(), link);
        let ops = std::iter::once(None).chain(links.into_iter().map(Some)).map(kept);
        self.write_ops(ops.collect()).await
    }

    /// Records that this server uploaded content to the bucket now.
    pub(crate) async fn mark_uploaded(&self, digest: &Digest) -> Result<(), Error> {
        let now = self.inner.clock.now().as_millisecond();
        let ops = vec![Op::Kept(digest.clone(), None), Op::Uploaded(digest.clone(), now)];
        self.write_ops(ops).await
    }

    /// Returns content of a shard that this server uploaded and still has, up to `most`; the shard is the first byte of
    /// the hash.
    pub(crate) async fn own_uploads(&self, shard: u8, most: usize) -> Result<Vec<BucketUpload>, Error> {
        self.blocking(move |inner| {
            let found = inner.index.uploaded(shard, most)?.into_iter();
            let upload = |(digest, entry, uploaded, links): (_, IndexEntry, _, _)| BucketUpload {
                digest,
                size: entry.size,
                fetched: entry.fetched,
                used: entry.used,
                uploaded,
                links,
            };
            Ok(found.map(upload).collect())
        })
        .await
    }

    /// Returns when content was fetched, in ms since 1970; `None` if it is not in the cache.
    pub(crate) async fn fetched(&self, digest: &Digest) -> Result<Option<i64>, Error> {
        let digest = digest.clone();
        self.blocking(move |inner| Ok(inner.index.get(&digest)?.map(|entry| entry.fetched)))
            .await
    }

    /// Returns which of these pieces of content the cache has pinned.
    pub(crate) async fn pinned_of(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Error> {
        self.blocking(move |inner| {
            let mut pinned = Vec::new();
            for digest in digests {
                if inner.is_pinned(&digest)? {
                    pinned.push(digest);
                }
            }
            Ok(pinned)
        })
        .await
    }

    /// Returns the bytes of content in the cache that a manifest can have; `None` for larger content.
    pub(crate) async fn manifest_bytes(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let digest = digest.clone();
        self.blocking(move |inner| {
            let path = inner.layout.blob_data(&digest);
            Ok(durable::read(&path, MAX_MANIFEST).ok().map(Bytes::from))
        })
        .await
    }

    /// Returns up to `most` links that the bucket lacks, or whose content it lacks.
    pub(crate) async fn not_kept(&self, most: usize) -> Result<Vec<ContentLink>, Error> {
        self.blocking(move |inner| {
            let found = inner.index.not_kept(most)?.into_iter();
            Ok(found.map(|(digest, link)| ContentLink { digest, link }).collect())
        })
        .await
    }

    /// Returns the file of content with its size, without counting a use; `None` if it is not there.
    pub(crate) async fn content(&self, digest: &Digest) -> Result<Option<(Arc<File>, u64)>, Error> {
        let digest = digest.clone();
        self.blocking(move |inner| {
            let Some(entry) = inner.index.get(&digest)? else {
                return Ok(None);
            };
            let opened = durable::open(&inner.layout.blob_data(&digest)).ok();
            let sound = opened.filter(|file| file.metadata().is_ok_and(|found| found.len() == entry.size));
            Ok(sound.map(|file| (Arc::new(file), entry.size)))
        })
        .await
    }

    /// Returns whether a tag points to this digest now.
    pub(crate) async fn is_current(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<bool, Error> {
        let (repository, tag, digest) = (repository.clone(), tag.clone(), digest.clone());
        self.blocking(move |inner| {
            let current = link::read(&inner.layout.tag_current(&repository, &tag))?;
            Ok(current.as_ref() == Some(&digest))
        })
        .await
    }

    /// Sets the time that the time to live of content counts from, in ms since 1970; it counts as used now.
    pub(crate) async fn set_fetched(&self, digest: &Digest, fetched: i64) -> Result<(), Error> {
        let now = self.inner.clock.now().as_millisecond();
        let ops = vec![Op::Resolve(digest.clone(), fetched), Op::Use(digest.clone(), now)];
        self.write_ops(ops).await
    }

    /// Records an upload in parts that began; it is on the disk when this returns.
    pub(crate) async fn begin_upload(&self, id: &str, key: &str) -> Result<(), Error> {
        self.write_ops(vec![Op::BeginUpload(id.to_owned(), key.to_owned())])
            .await
    }

    /// Forgets an upload in parts that ended.
    pub(crate) async fn end_upload(&self, id: &str) -> Result<(), Error> {
        self.write_ops(vec![Op::EndUpload(id.to_owned())]).await
    }

    /// Returns the uploads in parts that began and have not ended, with the keys of their objects.
    pub(crate) async fn open_uploads(&self) -> Result<Vec<(String, String)>, Error> {
        self.blocking(|inner| Ok(inner.index.open_uploads()?)).await
    }

    /// Returns the time of the cache's clock, in ms since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.inner.clock.now().as_millisecond()
    }

    /// Returns whether nothing is added to the cache.
    pub(crate) fn is_readonly(&self) -> bool {
        self.inner.is_readonly()
    }

    async fn write_ops(&self, ops: Vec<Op>) -> Result<(), Error> {
        self.blocking(move |inner| Ok(inner.index.write(ops).map(drop)?))
            .await
    }
}

impl Inner {
    /// Sends uses to their receiver, if there is one.
    pub(super) fn notify_uses(&self, marks: &[Op]) {
        let Some(listener) = self.listeners.uses.get() else {
            return;
        };
        let of_content = |mark: &Op| match mark {
            Op::Use(digest, at) => Some((digest.clone(), *at)),
            _ => None,
        };
        let uses: Uses = marks.iter().filter_map(of_content).collect();
        if !uses.is_empty() {
            // Without room the times of use are less exact.
            let _ = listener.try_send(uses);
        }
    }

    /// Notifies the receiver of links that it gets no notice of.
    pub(super) fn notify_missed(&self) {
        if let Some(listener) = self.listeners.links.get() {
            listener.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Notifies the receiver of a new link; costs nothing where there is none.
    pub(super) fn notify(&self, digest: &Digest, link: &Link) {
        let Some(listener) = self.listeners.links.get() else {
            return;
        };
        let linked = ContentLink {
            digest: digest.clone(),
            link: link.clone(),
        };
        if listener.sender.try_send(linked).is_err() {
            listener.missed.store(true, Ordering::Relaxed);
        }
    }
}
