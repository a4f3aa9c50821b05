//! Reads: a GET for each object, verified by the callers.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, GetResult};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::Client;
use super::error::Error;
use super::objects::{FIRST_LINK, first_link};
use super::{Bucket, TURN};
use crate::digest::{Algorithm, Digest, Hashed};
use crate::metrics::Source;
use crate::name::{Repository, Tag};
use crate::store::Link;
use crate::upstream::{self, BlobAnswer, BlobBody, MAX_MANIFEST};

/// The largest blob that is verified before a client gets any of it, and that is uploaded by one request, in bytes.
pub(crate) const SMALL: u64 = 16 << 20;
/// The time for the head of an answer, both attempts together, while a registry can be asked instead.
pub(super) const PATIENCE: Duration = Duration::from_millis(900);
/// The same where the bucket is the only origin.
const PATIENCE_ALONE: Duration = Duration::from_secs(10);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest wait for the next bytes of a body.
const IDLE: Duration = Duration::from_secs(5);
/// The longest link or host name that is read, in bytes.
pub(super) const MAX_LINK: usize = 512;

/// The wait for the bucket that a request can afford.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitLimit {
    /// A registry can be asked instead.
    Short,
    /// The bucket is the only origin.
    Long,
}

/// Content of the bucket whose bytes have not arrived yet.
pub(crate) struct StoredContent {
    /// The bytes.
    pub(crate) answer: BlobAnswer,
    /// The time of the upload, in ms since 1970; `None` if the time to live does not count from it.
    pub(crate) fetched: Option<i64>,
}

/// An object whose body has not arrived yet.
pub(super) struct StoredObject {
    range: Range<u64>,
    pub(super) size: u64,
    pub(super) modified: i64,
    /// The link that the content was uploaded for, if it says so.
    first_link: Option<String>,
    pub(super) body: BlobBody,
}

impl Bucket {
    /// Returns the digest that the link of a blob in a repository names; `None` if the bucket has none, or fails.
    pub(crate) async fn layer(
        &self,
        repository: &Repository,
        digest: &Digest,
        patience: WaitLimit,
    ) -> Option<Digest> {
        if self.wrong.contains_key(digest) {
            return None;
        }
        let keys = self.keys(patience).await.ok()?;
        let target = self.link(&keys.layer(repository, digest), patience).await?;
        is_target(&target, digest).then_some(target)
    }

    /// Asks for the bytes of a blob of a repository in a range, with the digest of the content; `None` if the bucket does not
    /// have it for the repository, or fails.
    pub(crate) async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Range<u64>,
        patience: WaitLimit,
    ) -> Option<(Digest, StoredContent)> {
        let link = Link::Layer(repository.clone(), digest.clone());
        let (target, object) = self.linked_object(&link, digest, range, patience).await?;
        Some((target, self.stored_content(object)?))
    }

    /// Asks for the bytes of content in a range; the caller checked the link of the repository. `None` if the bucket
    /// does not have them, or fails.
    pub(crate) async fn content(
        &self,
        digest: &Digest,
        range: Range<u64>,
        patience: WaitLimit,
    ) -> Option<StoredContent> {
        let keys = self.keys(patience).await.ok()?;
        let object = self.get(&keys.data(digest), range, patience).await.ok()?;
        self.stored_content(object)
    }

    fn stored_content(&self, object: StoredObject) -> Option<StoredContent> {
        let fetched = self.fetched(object.modified).ok()?;
        let answer = BlobAnswer {
            start: object.range.start,
            total: Some(object.size),
            body: object.body,
            source: Source::Bucket,
        };
        Some(StoredContent { answer, fetched })
    }

    /// Asks for content that a repository has a link to; returns it with the digest that the link names. Content that was
    /// uploaded for this link says so, and costs no request for the link.
    async fn linked_object(
        &self,
        link: &Link,
        digest: &Digest,
        range: Range<u64>,
        patience: WaitLimit,
    ) -> Option<(Digest, StoredObject)> {
        if self.wrong.contains_key(digest) {
            return None;
        }
        let keys = self.keys(patience).await.ok()?;
        let key = keys.link(link);
        if digest.algorithm() != Algorithm::Sha256 {
            // Distribution keeps it by its SHA-256, which the link names.
            let target = self.link(&key, patience).await?;
            if !is_target(&target, digest) {
                return None;
            }
            let object = self.get(&keys.data(&target), range, patience).await.ok()?;
            return Some((target, object));
        }
        let object = self.get(&keys.data(digest), range, patience).await.ok()?;
        if object.first_link.as_deref() == Some(&*first_link(link)) {
            return Some((digest.clone(), object));
        }
        // The object has a place among the reads already.
        let target = self.read_link(&key, patience).await?;
        (target == *digest).then_some((target, object))
    }

    /// Returns the time that a time to live counts from, `None` without a time to live. An error is content whose time is
    /// over.
    pub(super) fn fetched(&self, modified: i64) -> Result<Option<i64>, ()> {
        let max_age = i64::try_from(self.max_age.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        if max_age == 0 {
            return Ok(None);
        }
        let age = Timestamp::now().as_millisecond().saturating_sub(modified);
        (age < max_age).then_some(Some(modified)).ok_or(())
    }

    /// Returns a manifest that a repository has a link to, with the time that its time to live counts from; wrong bytes
    /// are a miss.
    pub(crate) async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        patience: WaitLimit,
    ) -> Option<(Hashed, Option<i64>)> {
        let link = Link::Revision(repository.clone(), digest.clone());
        let (_, object) = self.linked_object(&link, digest, 0..u64::MAX, patience).await?;
        let modified = object.modified;
        let bytes = self.read_whole(object, MAX_MANIFEST).await.ok()?;
        let fetched = self.fetched(modified).ok()?;
        let hashed = Hashed::checked(digest, bytes);
        if hashed.is_err() {
            tracing::warn!(%repository, %digest, "the bucket has wrong bytes for a manifest: the registry is asked instead");
            self.mark_wrong(digest);
        }
        Some((hashed.ok()?, fetched))
    }

    /// Returns the current digest of a tag.
    pub(crate) async fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        patience: WaitLimit,
    ) -> Option<Digest> {
        let keys = self.keys(patience).await.ok()?;
        self.link(&keys.tag(repository, tag), patience).await
    }

    /// Starts a pause in which the bucket is skipped, after bodies that broke.
    pub(crate) fn skip_for_a_while(&self) {
        self.breaker.open();
    }

    /// Returns the digest of a link; `None` if there is none, or it cannot be read.
    pub(super) async fn link(&self, key: &Key, patience: WaitLimit) -> Option<Digest> {
        let _turn = self.turn().await.ok()?;
        self.read_link(key, patience).await
    }

    /// Returns the digest of a link; the caller has a place among the reads.
    async fn read_link(&self, key: &Key, patience: WaitLimit) -> Option<Digest> {
        let read = async {
            let found = self.ask(key, None, patience).await?;
            let is_link = found.meta.size <= MAX_LINK as u64;
            let read = self.read_small(found).await;
            if read.is_err() && is_link {
                self.breaker.open();
            }
            read
        };
        let bytes = match read.await {
            Ok(bytes) => bytes,
            Err(Error::NotFound) => return None,
            Err(error) => {
                tracing::debug!(%key, %error, "a link of the bucket cannot be read");
                return None;
            }
        };
        std::str::from_utf8(&bytes).ok()?.trim_end().parse().ok()
    }

    pub(super) async fn read_small(&self, found: GetResult) -> Result<Bytes, Error> {
        if found.meta.size > MAX_LINK as u64 {
            return Err(Error::unavailable(format!(
                "the link is longer than {MAX_LINK} bytes"
            )));
        }
        let read = tokio::time::timeout(IDLE, found.bytes()).await;
        Ok(read.map_err(|_| Error::unavailable("a link did not arrive"))??)
    }

    /// Returns the bytes of a small object, with the time of its last change in ms since 1970.
    pub(super) async fn read(
        &self,
        key: &Key,
        most: usize,
        patience: WaitLimit,
    ) -> Result<(Bytes, i64), Error> {
        let object = self.get(key, 0..u64::MAX, patience).await?;
        let modified = object.modified;
        Ok((self.read_whole(object, most).await?, modified))
    }

    async fn read_whole(&self, object: StoredObject, most: usize) -> Result<Bytes, Error> {
        if object.size > most as u64 {
            return Err(Error::unavailable(format!(
                "the object is longer than {most} bytes"
            )));
        }
        let body = object.body.map_err(|error| Error::unavailable(error.to_string()));
        let bytes: Result<BytesMut, _> = body.try_collect().await;
        if bytes.is_err() {
            self.breaker.open();
        }
        Ok(bytes?.freeze())
    }

    pub(super) async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        patience: WaitLimit,
    ) -> Result<StoredObject, Error> {
        let permit = self.turn().await?;
        let range = match (range.start, range.end) {
            (0, u64::MAX) => None,
            (start, u64::MAX) => Some(GetRange::Offset(start)),
            (start, end) => Some(GetRange::Bounded(start..end)),
        };
        Ok(object(self.ask(key, range, patience).await?, permit))
    }

    async fn ask(&self, key: &Key, range: Option<GetRange>, patience: WaitLimit) -> Result<GetResult, Error> {
        self.tried(patience, |client| {
            let options = GetOptions {
                range: range.clone(),
                ..GetOptions::default()
            };
            async move { client.objects().get_opts(key, options).await }
        })
        .await
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        turn_of(&self.reads).await
    }

    pub(super) async fn listing_turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        turn_of(&self.listings).await
    }

    /// Sends a request that reads, and skips a bucket that kept failing.
    async fn tried<T, F>(&self, patience: WaitLimit, request: impl Fn(Arc<Client>) -> F) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        self.breaker.check()?;
        let result = self.attempted(patience, request).await;
        self.breaker.record(&result);
        self.observe(&result);
        result
    }

    /// Sends a request, twice if the first attempt fails.
    pub(super) async fn attempted<T, F>(
        &self,
        patience: WaitLimit,
        request: impl Fn(Arc<Client>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let deadline = match patience {
            WaitLimit::Short => PATIENCE,
            WaitLimit::Long => PATIENCE_ALONE,
        };
        let attempt = || async { request(self.client.load_full()).await.map_err(Error::from) };
        let attempts = async {
            match attempt().await {
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(PAUSE).await;
                    attempt().await
                }
                result => result,
            }
        };
        let result = tokio::time::timeout(deadline, attempts).await;
        result.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "no answer in {} ms",
                deadline.as_millis()
            )))
        })
    }
}

async fn turn_of(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    match tokio::time::timeout(TURN, turns.clone().acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Error::unavailable("too many reads are under way")),
    }
}

/// Returns whether the link of a digest may name this content.
fn is_target(target: &Digest, digest: &Digest) -> bool {
    target == digest || target.algorithm() != digest.algorithm()
}

fn object(found: GetResult, permit: OwnedSemaphorePermit) -> StoredObject {
    let first_link = found.attributes.get(&FIRST_LINK);
    let first_link = first_link.map(|link| link.as_ref().to_owned());
    let (range, size) = (found.range.clone(), found.meta.size);
    let modified = found.meta.last_modified.timestamp_millis();
    let length = range.end.saturating_sub(range.start);
    let chunks = found.into_stream().map_err(|error| upstream::Error::Unavailable {
        what: Error::from(error).to_string(),
    });
    StoredObject {
        body: BlobBody::from_chunks(chunks.boxed(), Some(length), IDLE, permit),
        range,
        size,
        modified,
        first_link,
    }
}
