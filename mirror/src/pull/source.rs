//! The source of the bytes of a blob.

use std::sync::Arc;

use super::passthrough::PassThrough;
use crate::fill::Fill;
use crate::metrics;
use crate::store::Blob;

/// The source of the bytes of a blob.
pub(crate) enum Source {
    /// The cache.
    Stored(Blob),
    /// A fill; readers wait for bytes that have not arrived.
    Filling(Arc<Fill>),
    /// A response of the upstream for this request only.
    PassThrough(PassThrough),
}

impl Source {
    /// Returns the origin of the bytes, for the metrics.
    pub(super) fn origin(&self) -> metrics::Source {
        match self {
            Self::Stored(_) => metrics::Source::Cache,
            Self::Filling(fill) => fill.origin(),
            Self::PassThrough(passed) => passed.origin,
        }
    }
}
