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
use super::keys::{self, Keys};
use super::{Bucket, TURN};
use crate::digest::{Digest, Hashed};
use crate::metrics::Source;
use crate::name::{Repository, Tag};
use crate::upstream::{self, BlobAnswer, BlobBody, MAX_MANIFEST};

/// The largest blob that is verified before a client gets any of it, and that is uploaded by one request, in bytes.
pub(crate) const SMALL: u64 = 16 << 20;
/// The time for the head of an answer, both attempts together, while a registry can be asked instead.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
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
        (target == *digest || target.algorithm() != digest.algorithm()).then_some(target)
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
        let fetched = self.fetched(object.modified).ok()?;
        let answer = BlobAnswer {
            start: object.range.start,
            total: Some(object.size),
            body: object.body,
            source: Source::Bucket,
        };
        Some(StoredContent { answer, fetched })
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
        if self.wrong.contains_key(digest) {
            return None;
        }
        let keys = self.keys(patience).await.ok()?;
        let target = self.link(&keys.revision(repository, digest), patience).await?;
        if target != *digest && target.algorithm() == digest.algorithm() {
            return None;
        }
        let read = self.read(&keys.data(&target), MAX_MANIFEST, patience).await;
        let (bytes, modified) = read.ok()?;
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

    async fn link(&self, key: &Key, patience: WaitLimit) -> Option<Digest> {
        let (bytes, _) = match self.read(key, MAX_LINK, patience).await {
            Ok(read) => read,
            Err(Error::NotFound) => return None,
            Err(error) => {
                tracing::debug!(%key, %error, "a link of the bucket cannot be read");
                return None;
            }
        };
        std::str::from_utf8(&bytes).ok()?.trim_end().parse().ok()
    }

    /// Returns the bytes of a small object, with the time of its last change in ms since 1970.
    async fn read(&self, key: &Key, most: usize, patience: WaitLimit) -> Result<(Bytes, i64), Error> {
        let object = self.get(key, 0..u64::MAX, patience).await?;
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
        Ok((bytes?.freeze(), object.modified))
    }

    /// Returns the keys of the bucket, once its owner is known.
    pub(super) async fn keys(&self, patience: WaitLimit) -> Result<Keys, Error> {
        let known = || (**self.keys.load()).clone();
        if let Some(keys) = known() {
            return Ok(keys);
        }
        let _one = self.finding_owner.lock().await;
        if let Some(keys) = known() {
            return Ok(keys);
        }
        let owner = match self
            .read(&keys::owner(&self.settings.root), MAX_LINK, patience)
            .await
        {
            Ok((bytes, _)) => std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.trim_end().parse().ok())
                .ok_or_else(|| Error::unavailable("the object _mirror/v1/owner names no host"))?,
            // A bucket that Distribution filled, or an empty one.
            Err(Error::NotFound) => self.default_host.clone(),
            Err(error) => return Err(error),
        };
        let keys = Keys::new(&self.settings.root, owner);
        self.keys.store(Arc::new(Some(keys.clone())));
        Ok(keys)
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
        let found = self
            .tried(patience, |client| {
                let options = GetOptions {
                    range: range.clone(),
                    ..GetOptions::default()
                };
                async move { client.objects().get_opts(key, options).await }
            })
            .await?;
        Ok(object(found, permit))
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        turn_of(&self.reads).await
    }

    pub(super) async fn listing_turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        turn_of(&self.listings).await
    }

    /// Sends a request, twice if the first attempt fails, and skips a bucket that kept failing.
    pub(super) async fn tried<T, F>(
        &self,
        patience: WaitLimit,
        request: impl Fn(Arc<Client>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        if !self.breaker.admit() {
            return Err(Error::unavailable("it failed shortly before"));
        }
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
        let result = result.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "no answer in {} s",
                deadline.as_secs()
            )))
        });
        match &result {
            Ok(_) | Err(Error::NotFound) => self.breaker.close(),
            Err(_) => self.breaker.open(),
        }
        self.observe(&result);
        result
    }
}

async fn turn_of(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    match tokio::time::timeout(TURN, turns.clone().acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Error::unavailable("too many reads are under way")),
    }
}

fn object(found: GetResult, permit: OwnedSemaphorePermit) -> StoredObject {
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
    }
}
