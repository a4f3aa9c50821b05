//! Cached blobs as responses read them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::block_reader;
use crate::digest::Digest;
use crate::fill::Cut;
use crate::pull::Pull;
use crate::store::Blob;

/// A blob in the cache, which is dropped if it cannot be read.
#[derive(Clone)]
pub(in crate::http) struct StoredBlob {
    pub(super) blob: Blob,
    pub(super) digest: Digest,
    pub(super) pull: Arc<Pull>,
}

impl StoredBlob {
    /// Reads the first bytes of this range, at most a block. Drops the blob from the cache if that fails.
    pub(in crate::http) async fn read(&self, range: &Range<u64>) -> Result<Bytes, Cut> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        match block_reader::read(&self.blob.file, range.start, length).await {
            Ok(chunk) => Ok(chunk),
            Err(error) => {
                Box::pin(self.pull.damaged(&self.digest, &error)).await;
                Err(Cut(error.to_string()))
            }
        }
    }
}
