//! A cached blob as an answer reads it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::block;
use crate::digest::Digest;
use crate::fill::Cut;
use crate::pull::Pull;
use crate::store::Blob;

/// A blob in the cache, and whom to tell if it can't be read.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) blob: Blob,
    pub(super) digest: Digest,
    pub(super) pull: Arc<Pull>,
}

impl Stored {
    /// The first bytes of this range, a block at most. What can't be read is dropped from the cache.
    pub(super) async fn read(&self, range: &Range<u64>) -> Result<Bytes, Cut> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        match block::read(&self.blob.file, range.start, length).await {
            Ok(chunk) => Ok(chunk),
            Err(error) => {
                self.pull.damaged(&self.digest, &error).await;
                Err(Cut(error.to_string()))
            }
        }
    }
}
