//! Redirects of clients to the bucket, for large blobs that this server verified and uploaded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moka::sync::Cache;

use super::Pull;
use crate::client_address::REPLICA;
use crate::digest::Digest;
use crate::name::Repository;
use crate::secret::Secret;

/// The most redirects that are remembered.
const MAX_REDIRECTED: u64 = 10_000;
/// The time in which a client that comes back for content gets it from here: it could not use the redirect.
const CAME_BACK: Duration = Duration::from_mins(1);

/// The redirects of the last minute; clients of a unix socket have no address.
pub(super) struct Redirects(Cache<(Option<IpAddr>, Digest), ()>);

impl Default for Redirects {
    fn default() -> Self {
        let cache = Cache::builder().max_capacity(MAX_REDIRECTED);
        Self(cache.time_to_live(CAME_BACK).build())
    }
}

impl Pull {
    /// Returns whether a client may be redirected for a cached blob of this size.
    pub(crate) fn may_redirect(&self, size: u64) -> bool {
        let redirects = self.bucket.get().and_then(|bucket| bucket.redirects());
        redirects.is_some_and(|settings| size >= settings.min_size)
    }

    /// Returns the signed URL that a client is redirected to for a whole cached blob; `None` if the client gets the blob from
    /// here.
    ///
    /// The repository has a link to the blob, and the upstream refused nothing of it since. A replica is never redirected,
    /// and neither is a client for the same blob twice in a minute.
    pub(crate) async fn redirect(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        peer: &str,
    ) -> Option<Secret> {
        let bucket = self.bucket.get()?;
        // Also where the settings let the copy be served in spite of a refusal.
        if peer.starts_with(REPLICA) || self.refusals.has_repository(repository) {
            return None;
        }
        let address = peer.parse().ok().map(|peer: SocketAddr| peer.ip().to_canonical());
        let client = (address, digest.clone());
        if self.redirects.0.contains_key(&client) {
            return None;
        }
        let is_kept = self.store.is_kept(digest, None).await;
        if !is_kept.unwrap_or(false) {
            return None;
        }
        let url = bucket.signed_url(digest, size).await?;
        let first = self.redirects.0.entry(client).or_insert(());
        first.is_fresh().then_some(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    /// The table of redirects stays below its limit, whatever clients ask for.
    #[test]
    fn table_of_redirects_is_bounded() {
        let redirects = Redirects::default();
        for number in 0..2 * MAX_REDIRECTED {
            let digest = Digest::compute(Algorithm::Sha256, &number.to_be_bytes());
            redirects.0.insert((None, digest), ());
        }
        redirects.0.run_pending_tasks();
        assert!(redirects.0.entry_count() <= MAX_REDIRECTED);
    }
}
