//! The owner of the repositories without a prefix, and the keys that follow from it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use object_store::GetOptions;

use super::error::Error;
use super::keys::{self, Keys};
use super::{Bucket, MAX_LINK, WaitLimit};
use crate::name::Host;

impl Bucket {
    /// Returns the keys of the bucket, once its owner is known.
    pub(super) async fn keys(&self, patience: WaitLimit) -> Result<Keys, Error> {
        if let Some(keys) = self.known_keys() {
            return Ok(keys);
        }
        let _one = self.finding_owner.lock().await;
        if let Some(keys) = self.known_keys() {
            return Ok(keys);
        }
        let key = keys::owner(&self.settings.root);
        let owner = match self.read(&key, MAX_LINK, patience).await {
            Ok((bytes, _)) => host(&bytes)?,
            // A bucket that Distribution filled, or an empty one.
            Err(Error::NotFound) => self.default_host.clone(),
            Err(error) => return Err(error),
        };
        // An upload may have found the owner meanwhile.
        Ok(self.known_keys().unwrap_or_else(|| self.use_owner(owner)))
    }

    /// Returns the keys of the bucket, after it has an owner: this server's default upstream, if it had none. The circuit
    /// breaker of reads neither delays nor counts these requests: uploads have a pause of their own.
    pub(super) async fn claim(&self) -> Result<Keys, Error> {
        if self.claimed.load(Ordering::Relaxed)
            && let Some(keys) = self.known_keys()
        {
            return Ok(keys);
        }
        let owner = if let Some(owner) = self.stored_owner().await? {
            owner
        } else {
            let text = Bytes::from(self.default_host.to_string());
            self.put(&keys::owner(&self.settings.root), text).await?;
            // Another server may have been faster, with another upstream.
            let owner = self.stored_owner().await?;
            owner.unwrap_or_else(|| self.default_host.clone())
        };
        let keys = self.use_owner(owner);
        self.claimed.store(true, Ordering::Relaxed);
        Ok(keys)
    }

    /// Returns the owner that the bucket names; `None` if it names none.
    async fn stored_owner(&self) -> Result<Option<Host>, Error> {
        let key = keys::owner(&self.settings.root);
        let found = self
            .sent(0, |client| {
                let key = key.clone();
                async move { client.objects().get_opts(&key, GetOptions::default()).await }
            })
            .await;
        match found {
            Ok(found) => host(&self.read_small(found).await?).map(Some),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn known_keys(&self) -> Option<Keys> {
        (**self.keys.load()).clone()
    }

    fn use_owner(&self, owner: Host) -> Keys {
        let keys = Keys::new(&self.settings.root, owner);
        self.keys.store(Arc::new(Some(keys.clone())));
        keys
    }
}

fn host(text: &[u8]) -> Result<Host, Error> {
    let host = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.trim_end().parse().ok());
    host.ok_or_else(|| Error::unavailable("the object _mirror/v1/owner names no host"))
}
