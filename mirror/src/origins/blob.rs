//! The origins of one blob, asked again from an offset after each break.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Origins;
use super::stored::BucketSource;
use crate::bucket::SMALL;
use crate::digest::Digest;
use crate::metrics::Source;
use crate::name::Repository;
use crate::peers::{Fleet, Member, PeerBlob, PeerBlobAnswer, Shard};
use crate::store::Store;
use crate::upstream::{BlobAnswer, Error};

/// The source of the bytes of a fill.
///
/// Replicas that read each other's fills must not wait in a circle. A fill that a replica reads therefore asks no replica
/// from then on: it ends its requests that have no answer yet, keeps an answer that it has, and after a break asks the
/// bucket or the upstream. So the fill that gets an answer last is read by no replica, and closes no circle. Only the
/// first request of a fill to members for what they hold is free: until it has an answer, no other fill gets bytes of it.
#[derive(Debug)]
pub(crate) struct FillSource {
    /// The fill waits for no owner among the replicas, and never will.
    is_direct: AtomicBool,
    /// The origin of the last bytes.
    origin: Mutex<Source>,
    /// Cancelled once another replica reads the fill.
    feeds_replica: CancellationToken,
}

impl FillSource {
    /// Returns whether a fill waits for no owner among the replicas, and never will.
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed) || self.feeds_replica.is_cancelled()
    }

    /// Returns the origin of the bytes.
    pub(crate) fn origin(&self) -> Source {
        *self.origin.lock()
    }

    /// Records that another replica reads the fill, which asks no replica any more.
    pub(crate) fn feed_replica(&self) {
        self.feeds_replica.cancel();
    }
}

/// The origins of one blob, as one fill asks them.
pub(crate) struct BlobOrigins {
    origins: Origins,
    repository: Repository,
    digest: Digest,
    source: Arc<FillSource>,
    /// The member that sent the last answer.
    current: Option<Arc<Member>>,
    /// The members that this fill asks no more.
    left_out: Vec<Arc<Member>>,
    /// The members that sent bytes.
    senders: Vec<Arc<Member>>,
    asked_holders: bool,
    /// The upstream sent bytes, too.
    asked_upstream: bool,
    stored: Option<BucketSource>,
    /// The last answer was the bucket's.
    is_stored: bool,
}

impl BlobOrigins {
    pub(super) fn new(origins: Origins, repository: Repository, digest: Digest) -> Self {
        let has_owner = |fleet: &Arc<Fleet>| !fleet.owners(Shard::of_blob(&digest)).is_empty();
        let source = FillSource {
            is_direct: AtomicBool::new(!origins.fleet.as_ref().is_some_and(has_owner)),
            origin: Mutex::new(Source::Upstream),
            feeds_replica: CancellationToken::new(),
        };
        Self {
            stored: origins.stored_blob(&repository, &digest),
            is_stored: false,
            origins,
            repository,
            digest,
            source: Arc::new(source),
            current: None,
            left_out: Vec::new(),
            senders: Vec::new(),
            asked_holders: false,
            asked_upstream: false,
        }
    }

    /// Returns the source of the bytes.
    pub(crate) fn source(&self) -> Arc<FillSource> {
        Arc::clone(&self.source)
    }

    /// Asks the first origin that has the blob for its bytes from `from` to the end. The answer may start before `from`.
    /// The previous answer, if there was one, ended early.
    pub(crate) async fn ask(&mut self, from: u64) -> Result<BlobAnswer, Error> {
        let answer = self.ask_in_order(from).await?;
        *self.source.origin.lock() = answer.source;
        Ok(answer)
    }

    async fn ask_in_order(&mut self, from: u64) -> Result<BlobAnswer, Error> {
        if let Some(fleet) = self.origins.holders.clone() {
            if let Some(broken) = self.current.take() {
                fleet.on_break();
                self.left_out.push(broken);
            }
            if let Some(answer) = self.ask_fleet(&fleet, from).await {
                return answer;
            }
        }
        if let Some(stored) = &mut self.stored
            && let Some(answer) = stored.ask(from).await
        {
            self.is_stored = true;
            return Ok(answer);
        }
        self.is_stored = false;
        let (name, upstream) = (&self.repository.name, self.origins.upstream()?);
        let answer = upstream.blob(name, &self.digest, from, None).await;
        self.asked_upstream |= answer.is_ok();
        answer
    }

    /// Asks the members for the blob, unless another replica reads the fill.
    async fn ask_fleet(&mut self, fleet: &Arc<Fleet>, from: u64) -> Option<Result<BlobAnswer, Error>> {
        let source = Arc::clone(&self.source);
        let fed = &source.feeds_replica;
        let is_first = self.senders.is_empty() && !self.asked_upstream && !self.is_stored;
        if !source.is_direct()
            && let Some(found) = fed
                .run_until_cancelled(self.ask_owner(fleet, from))
                .await
                .flatten()
            && (found.is_err() || !fed.is_cancelled())
        {
            return Some(found.map(|found| self.take(found)));
        }
        source.is_direct.store(true, Ordering::Relaxed);
        if self.asked_holders || (fed.is_cancelled() && !is_first) {
            return None;
        }
        self.asked_holders = true;
        let (repository, digest) = (self.repository.clone(), self.digest.clone());
        let asked = fleet.blob_of_holder(peer_blob(&repository, &digest, from), &self.left_out);
        let found = if is_first {
            asked.await
        } else {
            let found = fed.run_until_cancelled(asked).await.flatten();
            found.filter(|_| !fed.is_cancelled())
        };
        Some(Ok(self.take(found?)))
    }

    async fn ask_owner(&mut self, fleet: &Arc<Fleet>, from: u64) -> Option<Result<PeerBlobAnswer, Error>> {
        let blob = peer_blob(&self.repository, &self.digest, from);
        fleet.blob_of_owner(blob, &mut self.left_out).await
    }

    fn take(&mut self, found: PeerBlobAnswer) -> BlobAnswer {
        self.is_stored = false;
        self.senders.push(Arc::clone(&found.member));
        self.current = Some(found.member);
        found.answer
    }

    /// Records that the bytes have another digest. Returns whether some came from other replicas, so that nothing is known
    /// about the upstream. Replicas that sent all of them are not asked again for a while.
    pub(crate) fn on_wrong_bytes(&mut self) -> bool {
        let senders = std::mem::take(&mut self.senders);
        let is_ambiguous = std::mem::take(&mut self.asked_upstream);
        if let Some(fleet) = self.origins.holders.as_ref().filter(|_| !is_ambiguous) {
            for member in &senders {
                fleet.on_wrong_bytes(member);
            }
        }
        self.current = None;
        let is_theirs = !senders.is_empty();
        self.left_out.extend(senders);
        is_theirs
    }

    /// Returns whether the last answer was the bucket's.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_stored
    }

    /// Returns whether an answer is verified before a client gets any of it, so that the next origin can be asked if its
    /// bytes are wrong.
    pub(crate) fn is_verified_first(&self, answer: &BlobAnswer) -> bool {
        self.is_stored && answer.total.is_some_and(|size| size <= SMALL)
    }

    /// Stops asking the bucket, whose bytes are `wrong` or did not come whole.
    pub(crate) fn reject_stored(&mut self, wrong: bool) {
        if let Some(stored) = &mut self.stored {
            stored.reject(wrong);
        }
    }

    /// Records that the bucket has the blob, if it came from there.
    pub(crate) async fn record_stored(&self, store: &Store) {
        if let Some(stored) = self.stored.as_ref().filter(|_| self.is_stored) {
            stored.record(store).await;
        }
    }

    /// Lets the time to live of the blob count from its upload, if it came from the bucket.
    pub(crate) async fn record_fetch(&self, store: &Store) {
        if let Some(stored) = self.stored.as_ref().filter(|_| self.is_stored) {
            stored.record_fetch(store).await;
        }
    }

    /// Asks the upstream to authorize the blob for the repository; this requires no second download.
    pub(crate) async fn authorize(&self) -> Result<(), Error> {
        let name = &self.repository.name;
        self.origins.blob_head(name, &self.digest).await.map(drop)
    }
}

fn peer_blob<'a>(repository: &'a Repository, digest: &'a Digest, from: u64) -> PeerBlob<'a> {
    PeerBlob {
        repository,
        digest,
        from,
    }
}
