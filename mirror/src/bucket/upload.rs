//! Uploads of content: one request for a small blob, parts for a larger one, and never anything that is not whole.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{Attributes, PutMultipartOptions, PutOptions};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::client::Client;
use super::error::Error;
use super::keys::Keys;
use super::objects::FoundContent;
use super::{Bucket, BucketState, SMALL};
use crate::config::bucket::Provider;
use crate::digest::{Digest, Hasher};
use crate::store::{self, ContentLink, Store};

/// The bytes of content that all uploads hold in memory at a time.
pub(super) const MAX_BUFFERED: usize = 64 << 20;
/// The most parts of an upload.
const MAX_PARTS: u64 = 10_000;
/// The parts of an upload that are sent at a time.
const PARTS_AT_ONCE: usize = 2;
/// The time for a request without its bytes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The slowest upload, in bytes per second.
const SLOWEST: u64 = 64 << 10;
const ATTEMPTS: u32 = 2;
/// The longest id of an upload, in bytes: it is recorded, and a part of URLs.
const MAX_UPLOAD_ID: usize = 2 << 10;

/// The attributes of new content, as a client of the store makes them.
type ContentAttributes<'a> = &'a (dyn Fn(&Client) -> Attributes + Sync);

/// The result of an upload of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    /// The cache does not have the content any more.
    Gone,
    /// The bucket has the content, of this size, from a mirror.
    Own(u64),
    /// The bucket has the content, and the ledger does not: something else uploaded it, or the bucket has no limit.
    Foreign,
}

/// An upload that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// The bucket refused or did not answer.
    #[error(transparent)]
    Bucket(#[from] Error),
    /// The cache failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The local file cannot be read.
    #[error("the cached file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// The local file has other bytes than its digest says.
    #[error("the cached file does not match its digest")]
    Damaged,
}

impl UploadError {
    /// Returns the state of the bucket that the error shows.
    pub(super) fn state(&self) -> BucketState {
        match self {
            Self::Bucket(error) => error.state(),
            Self::Store(_) | Self::File(_) | Self::Damaged => BucketState::Reachable,
        }
    }
}

/// The memory of uploads.
#[derive(Clone, Debug)]
pub(super) struct UploadQuota(Arc<Semaphore>);

impl Default for UploadQuota {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BUFFERED)))
    }
}

impl UploadQuota {
    /// Reads a part of a file once there is room for it, and passes it to `send`.
    async fn with<T, F>(
        &self,
        file: &Arc<File>,
        at: u64,
        length: u64,
        send: impl FnOnce(Bytes) -> F,
    ) -> Result<T, UploadError>
    where
        F: Future<Output = Result<T, UploadError>>,
    {
        // The parts of the largest blobs are longer than the whole room.
        let room = u32::try_from(length.min(MAX_BUFFERED as u64)).unwrap_or(u32::MAX);
        let room = self.0.acquire_many(room).await;
        let bytes = read(file, at, length).await?;
        let outcome = send(bytes).await;
        drop(room);
        outcome
    }
}

async fn read(file: &Arc<File>, at: u64, length: u64) -> Result<Bytes, UploadError> {
    let file = Arc::clone(file);
    let read = move || {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact_at(&mut bytes, at)?;
        Ok(Bytes::from(bytes))
    };
    let bytes: std::io::Result<Bytes> = spawn_blocking(read).await.map_err(store::Error::from)?;
    Ok(bytes?)
}

impl Bucket {
    /// Writes an object by one request.
    pub(super) async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Error> {
        self.put_with(key, bytes, &Client::attributes).await
    }

    async fn put_with(
        &self,
        key: &Key,
        bytes: Bytes,
        attributes: ContentAttributes<'_>,
    ) -> Result<(), Error> {
        let length = bytes.len() as u64;
        self.sent(length, |client| {
            let (key, bytes) = (key.clone(), bytes.clone());
            let options = PutOptions {
                attributes: attributes(&client),
                ..PutOptions::default()
            };
            async move { client.objects().put_opts(&key, bytes.into(), options).await }
        })
        .await
        .map(drop)
    }

    /// Uploads content whose digest matches, for a link. In a bucket with a limit, content that is there stays as it is, unless its
    /// bytes are wrong.
    pub(super) async fn upload(
        &self,
        store: &Store,
        keys: &Keys,
        ContentLink { digest, link }: &ContentLink,
        buffers: &UploadQuota,
    ) -> Result<Upload, UploadError> {
        let is_wrong = self.wrong.contains_key(digest);
        if let Some(recent) = self.recent.get(digest).filter(|_| !is_wrong) {
            return Ok(recent);
        }
        let Some((file, size)) = store.content(digest).await? else {
            return Ok(Upload::Gone);
        };
        let key = keys.data(digest);
        // Empty content has no first byte, and takes no room.
        let is_counted = self.max_size().is_some() && size > 0;
        let found = if is_counted {
            self.find_content(&key).await?
        } else {
            None
        };
        let is_own = is_counted && found.is_none_or(|found| found.is_own);
        let attributes = |client: &Client| client.content_attributes(link, is_own);
        let uploaded = if is_own {
            Upload::Own(size)
        } else {
            Upload::Foreign
        };
        let is_current = |found: FoundContent| found.size == size && self.fetched(found.modified).is_ok();
        if found.is_some_and(is_current) && !is_wrong {
            self.recent.insert(digest.clone(), uploaded);
            return Ok(uploaded);
        }
        if size <= SMALL {
            let send = |bytes: Bytes| async {
                if hash(digest, bytes.clone()).await? != *digest {
                    return Err(UploadError::Damaged);
                }
                Ok(self.put_with(&key, bytes, &attributes).await?)
            };
            buffers.with(&file, 0, size, send).await?;
        } else {
            self.in_parts(store, &key, digest, (&file, size), (buffers, &attributes))
                .await?;
        }
        self.wrong.invalidate(digest);
        if self.max_size().is_some() {
            self.recent.insert(digest.clone(), uploaded);
        }
        Ok(uploaded)
    }

    /// Uploads a large file in parts; the object becomes visible when all of them match the digest.
    async fn in_parts(
        &self,
        store: &Store,
        key: &Key,
        digest: &Digest,
        content: (&Arc<File>, u64),
        (buffers, attributes): (&UploadQuota, ContentAttributes<'_>),
    ) -> Result<(), UploadError> {
        // The crate refuses attributes of uploads in parts to Azure: their first link costs a request of its own.
        let is_azure = matches!(self.settings.provider, Provider::Azure(_));
        let id = self
            .sent(0, |client| {
                let options = PutMultipartOptions {
                    attributes: if is_azure {
                        Attributes::new()
                    } else {
                        attributes(&client)
                    },
                    ..PutMultipartOptions::default()
                };
                let key = key.clone();
                async move { client.multipart().create_multipart_opts(&key, options).await }
            })
            .await?;
        if !is_usable_id(&id) {
            return Err(Error::unavailable("the id of an upload is too long").into());
        }
        let recorded = store.begin_upload(&id, key.as_ref()).await;
        let sent = match recorded {
            Ok(()) => self.parts(key, &id, digest, content, buffers).await,
            Err(error) => Err(error.into()),
        };
        let ended = match sent {
            Ok(parts) => self
                .sent(0, |client| {
                    let (key, id, parts) = (key.clone(), id.clone(), parts.clone());
                    async move { client.multipart().complete_multipart(&key, &id, parts).await }
                })
                .await
                .map(drop)
                .map_err(UploadError::from),
            Err(error) => Err(error),
        };
        if ended.is_err() {
            if let Err(error) = self.abort(store, &id, key).await {
                tracing::debug!(%error, "an upload that failed cannot be aborted now; the next start aborts it");
            }
            return ended;
        }
        Ok(store.end_upload(&id).await?)
    }

    /// Sends the parts of a file, and hashes them in their order.
    async fn parts(
        &self,
        key: &Key,
        id: &str,
        digest: &Digest,
        (file, size): (&Arc<File>, u64),
        buffers: &UploadQuota,
    ) -> Result<Vec<PartId>, UploadError> {
        let length = part_length(self.settings.part_size, size);
        let count = size.div_ceil(length);
        let hashed = hash_file(file, size, digest);
        let send = |number: u64| async move {
            let at = number * length;
            let send = |bytes: Bytes| async move {
                let index = usize::try_from(number).unwrap_or(usize::MAX);
                let part = self.sent(bytes.len() as u64, |client| {
                    let (key, id, bytes) = (key.clone(), id.to_owned(), bytes.clone());
                    async move { client.multipart().put_part(&key, &id, index, bytes.into()).await }
                });
                Ok(part.await?)
            };
            buffers.with(file, at, length.min(size - at), send).await
        };
        let parts = stream::iter(0..count)
            .map(send)
            .buffered(PARTS_AT_ONCE)
            .try_collect();
        let (parts, found) = futures::try_join!(parts, hashed)?;
        if found == *digest {
            Ok(parts)
        } else {
            Err(UploadError::Damaged)
        }
    }

    /// Aborts an upload in parts.
    pub(super) async fn abort(&self, store: &Store, id: &str, key: &Key) -> Result<(), UploadError> {
        if !is_usable_id(id) {
            // An earlier version recorded it; no request can name it.
            return Ok(store.end_upload(id).await?);
        }
        let aborted = self
            .sent(0, |client| {
                let (key, id) = (key.clone(), id.to_owned());
                async move { client.multipart().abort_multipart(&key, &id).await }
            })
            .await;
        match aborted {
            Ok(()) | Err(Error::NotFound) => Ok(store.end_upload(id).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a request that writes, twice if the first attempt fails.
    pub(super) async fn sent<T, F>(&self, length: u64, request: impl Fn(Arc<Client>) -> F) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let longest = PATIENCE + Duration::from_secs(length / SLOWEST);
        let mut attempt = 1;
        loop {
            let sent = tokio::time::timeout(longest, request(self.client.load_full())).await;
            let result = match sent {
                Ok(result) => result.map_err(Error::from),
                Err(_) => Err(Error::unavailable(format!(
                    "no answer in {} s",
                    longest.as_secs()
                ))),
            };
            match result {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }
}

/// Returns `true` if a URL can have this id of an upload.
pub(super) fn is_usable_id(id: &str) -> bool {
    id.len() <= MAX_UPLOAD_ID
}

/// Returns the length of the parts of an upload, such that there are not too many.
fn part_length(wanted: u64, size: u64) -> u64 {
    wanted.max(size.div_ceil(MAX_PARTS))
}

async fn hash(digest: &Digest, bytes: Bytes) -> Result<Digest, UploadError> {
    let algorithm = digest.algorithm();
    let hash = move || Digest::compute(algorithm, &bytes);
    Ok(spawn_blocking(hash).await.map_err(store::Error::from)?)
}

/// Hashes a file, whose pages the upload reads as well.
async fn hash_file(file: &Arc<File>, size: u64, digest: &Digest) -> Result<Digest, UploadError> {
    let (file, algorithm) = (Arc::clone(file), digest.algorithm());
    let hash = move || {
        let (mut hasher, mut at) = (Hasher::new(algorithm), 0);
        let mut block = vec![0; 256 << 10];
        while at < size {
            let wanted = block.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut block[..wanted], at)?;
            hasher.update(&block[..wanted]);
            at += wanted as u64;
        }
        Ok(hasher.finish())
    };
    let hashed: std::io::Result<Digest> = spawn_blocking(hash).await.map_err(store::Error::from)?;
    Ok(hashed?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    const MIB: u64 = 1 << 20;

    #[test_case(17 * MIB => 16 * MIB; "two parts")]
    #[test_case(160_000 * MIB => 16 * MIB; "as many as there may be")]
    #[test_case(320_000 * MIB => 32 * MIB; "longer parts")]
    fn part_length_keeps_the_limit(size: u64) -> u64 {
        part_length(16 * MIB, size)
    }
}
