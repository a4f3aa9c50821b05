//! Signed URLs, by which clients get content from the bucket itself.

use std::time::Duration;

use futures::StreamExt as _;

use super::error::Error;
use super::read::PATIENCE;
use super::{Bucket, WaitLimit};
use crate::config::bucket::RedirectSettings;
use crate::digest::Digest;
use crate::secret::Secret;

/// The validity of a signed URL: a client that may no longer pull keeps it no longer than that.
const VALID: Duration = Duration::from_mins(1);

impl Bucket {
    /// Returns the settings of redirects; `None`: no client is redirected.
    pub(crate) fn redirects(&self) -> Option<&RedirectSettings> {
        self.settings.redirect.as_ref()
    }

    /// Returns a URL, valid for a minute, from which a client gets content of this size; the caller checked that this server
    /// verified the content and that the client may have it. `None` if the bucket lacks the content or fails: one GET of one
    /// byte checks that for all clients, once a minute for each digest.
    pub(crate) async fn signed_url(&self, digest: &Digest, size: u64) -> Option<Secret> {
        if self.wrong.contains_key(digest) || !self.has(digest, size).await {
            return None;
        }
        let keys = self.keys(WaitLimit::Short).await.ok()?;
        let (key, client) = (keys.data(digest), self.client.load_full());
        let signed = client.signer()?.sign(&key, VALID);
        match tokio::time::timeout(PATIENCE, signed).await {
            Ok(Ok(url)) => Some(Secret::new(url)),
            Ok(Err(error)) => {
                let error = Error::from(error);
                tracing::debug!(%error, "no URL of the bucket can be signed; content is served from here");
                None
            }
            Err(_) => None,
        }
    }

    /// Returns whether the bucket answers and has content of this size.
    async fn has(&self, digest: &Digest, size: u64) -> bool {
        if !self.breaker.is_closed() {
            // After a pause one request tries.
            self.present.invalidate(digest).await;
        }
        let asked = self
            .present
            .try_get_with_by_ref(digest, self.ask_for_byte(digest, size));
        asked.await.unwrap_or(false)
    }

    async fn ask_for_byte(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        let keys = self.keys(WaitLimit::Short).await?;
        match self.get(&keys.data(digest), 0..1, WaitLimit::Short).await {
            Ok(mut object) => {
                let is_current = self.fetched(object.modified).is_ok() && object.size == size;
                // Read, so that the connection can be used again.
                let byte = object.body.next().await;
                Ok(is_current && matches!(byte, Some(Ok(_))))
            }
            Err(Error::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
