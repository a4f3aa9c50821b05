//! Content that was found on the disk: hashed before its first byte is served.
//!
//! Another registry may have left it, or any process that can write to the directory. Small blobs and manifests are hashed
//! whenever they are read; a larger blob is hashed once, and the index remembers that. It is hashed again if its file was
//! changed since, by the times of change of its content and of its metadata, which no program can set back.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::digest::Digest;
use crate::store::blobs::changed_ms;
use crate::store::durable::on;
use crate::store::index::Op;
use crate::store::scrub::{self, ScrubRate};
use crate::store::{Error, Inner, Store, durable, no_links, stripe_of};

/// Blobs that are hashed at once; requests for one blob wait for one hash.
const AT_ONCE: usize = 4;
/// The tries for a blob that is replaced, or whose index is rebuilt, while it is hashed.
const TRIES: usize = 3;

/// The locks under which content is verified before its first use.
#[derive(Debug, Default)]
pub(super) struct FirstUseVerifications([Arc<Mutex<()>>; AT_ONCE]);

impl Store {
    /// Looks for content on the disk; what was never verified is verified first.
    pub(super) async fn verified<T: Send + 'static>(
        &self,
        look: impl Fn(&Inner) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        for _ in 1..TRIES {
            match self.blocking(look.clone()).await {
                Err(Error::Unverified(digest)) => self.verify_first_use(digest).await?,
                found => return found,
            }
        }
        self.blocking(look).await
    }

    /// Verifies content, or removes it. Continues without its client: its result is not lost, and a client that comes
    /// and goes starts no second hash.
    async fn verify_first_use(&self, digest: Digest) -> Result<(), Error> {
        let first_use = &self.inner.maintenance.first_use.0;
        let lock = Arc::clone(&first_use[stripe_of(&digest) % AT_ONCE]);
        let lock = lock.lock_owned().await;
        self.blocking(move |inner| {
            let _lock = lock;
            inner.verify_found(&digest)
        })
        .await
    }
}

impl Inner {
    fn verify_found(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.layout.blob_data(digest);
        let entry = self.index.get(digest)?;
        // A missing file, or an entry that is no file, is a miss for the caller.
        let (Some(entry), Ok(file)) = (entry, durable::open(&path)) else {
            return Ok(());
        };
        let metadata = file.metadata().map_err(on("inspect", &path))?;
        if !self.is_unverified(digest, &entry, &metadata) {
            return Ok(());
        }
        match scrub::hash(&file, digest, ScrubRate::Full, || false) {
            Ok(Some(found)) if found == *digest => {
                // Never the time of its fetch: content with both at once counts as fetched by this server.
                let now = self
                    .clock
                    .now()
                    .as_millisecond()
                    .max(entry.fetched.saturating_add(1))
                    // Also where the clock of the file system is ahead.
                    .max(changed_ms(&metadata));
                self.index.write(vec![Op::Verified(digest.clone(), now)])?;
                self.hot_cache.verified(digest);
                Ok(())
            }
            found => {
                let reason = found.err().map(|error| error.to_string());
                tracing::warn!(%digest, reason, "content that was found on the disk is removed: its bytes have another digest, or cannot be read");
                let is_replaced = || !no_links::is_same_file(&path, &file);
                self.remove_unless(digest, is_replaced)
            }
        }
    }
}
