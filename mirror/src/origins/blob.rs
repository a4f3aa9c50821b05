//! The origins of one blob, asked again from an offset after each break.

use super::Origins;
use crate::digest::Digest;
use crate::name::RepositoryName;
use crate::upstream::{BlobAnswer, Error};

/// The origins of one blob, as one fill asks them.
pub(crate) struct BlobOrigins {
    origins: Origins,
    name: RepositoryName,
    digest: Digest,
}

impl BlobOrigins {
    pub(super) fn new(origins: Origins, name: RepositoryName, digest: Digest) -> Self {
        Self {
            origins,
            name,
            digest,
        }
    }

    /// Asks the first origin that has the blob for its bytes from `from` to the end. The answer may start before `from`.
    pub(crate) async fn ask(&mut self, from: u64) -> Result<BlobAnswer, Error> {
        self.origins
            .upstream
            .blob(&self.name, &self.digest, from, None)
            .await
    }

    /// Asks the upstream to authorize the blob for the repository; this requires no second download.
    pub(crate) async fn authorize(&self) -> Result<(), Error> {
        self.origins.blob_head(&self.name, &self.digest).await.map(drop)
    }
}
