//! Fills as responses read them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::digest::Digest;
use crate::fill::{Cut, Fill};
use crate::name::Repository;
use crate::pull::Pull;

/// A fill, and what it takes to continue past the cache if room for the blob runs out.
#[derive(Clone)]
pub(super) struct FillBlob {
    pub(super) fill: Arc<Fill>,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
    pub(super) pull: Arc<Pull>,
    /// The address of the client.
    pub(super) peer: Arc<str>,
}

impl FillBlob {
    /// Returns the bytes of a range from the upstream, if the fill ran out of room; `None` after any other end.
    pub(super) async fn past_the_cache(
        &self,
        range: &Range<u64>,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, Cut>>>, Cut> {
        if !self.fill.ran_out_of_room() {
            return Ok(None);
        }
        let Self {
            fill,
            repository,
            digest,
            pull,
            peer,
        } = self;
        let passed = pull.rest_past_the_cache(repository, digest, peer, fill, range.clone());
        let passed = passed.await.map_err(|error| Cut(error.to_string()))?;
        Ok(Some(passed.body))
    }
}
