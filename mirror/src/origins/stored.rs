//! The bucket as the origin of one blob.

use std::sync::Arc;

use crate::bucket::{Bucket, StoredContent, WaitLimit};
use crate::digest::Digest;
use crate::name::Repository;
use crate::store::{Link, Store};
use crate::upstream::BlobAnswer;

/// The answers of the bucket that may break before the next origin is asked.
const MAX_ANSWERS: u32 = 2;

/// The bucket, as one fill asks it.
pub(super) struct BucketSource {
    bucket: Arc<Bucket>,
    patience: WaitLimit,
    repository: Repository,
    digest: Digest,
    step: Step,
    /// The time that a time to live of the content counts from, in ms since 1970.
    fetched: Option<i64>,
}

/// The progress of a fill with the bucket.
enum Step {
    /// The bucket was not asked yet.
    Unasked,
    /// The bucket has this content, and answered so many times.
    Found(Digest, u32),
    /// The bucket is not asked any more.
    Done,
}

impl BucketSource {
    pub(super) fn new(
        bucket: Arc<Bucket>,
        patience: WaitLimit,
        repository: Repository,
        digest: Digest,
    ) -> Self {
        Self {
            bucket,
            patience,
            repository,
            digest,
            step: Step::Unasked,
            fetched: None,
        }
    }

    /// Asks for the bytes from `from` to the end; `None` if another origin has to be asked.
    pub(super) async fn ask(&mut self, from: u64) -> Option<BlobAnswer> {
        let range = from..u64::MAX;
        let (target, answers) = match std::mem::replace(&mut self.step, Step::Done) {
            Step::Unasked => {
                let (repository, digest) = (&self.repository, &self.digest);
                let asked = self.bucket.blob(repository, digest, range, self.patience);
                let (target, content) = asked.await?;
                return Some(self.take(target, 1, content));
            }
            Step::Found(_, MAX_ANSWERS) => {
                self.bucket.skip_for_a_while();
                return None;
            }
            Step::Found(target, answers) => (target, answers),
            Step::Done => return None,
        };
        let content = self.bucket.content(&target, range, self.patience).await?;
        Some(self.take(target, answers + 1, content))
    }

    fn take(&mut self, target: Digest, answers: u32, content: StoredContent) -> BlobAnswer {
        self.step = Step::Found(target, answers);
        self.fetched = content.fetched;
        content.answer
    }

    /// Stops asking the bucket; its bytes are `wrong`, or did not come whole.
    pub(super) fn reject(&mut self, wrong: bool) {
        self.step = Step::Done;
        if wrong {
            let (repository, digest) = (&self.repository, &self.digest);
            tracing::warn!(%repository, %digest, "the bucket has wrong bytes for a blob: the registry is asked instead");
            self.bucket.mark_wrong(&self.digest);
        } else {
            self.bucket.skip_for_a_while();
        }
    }

    /// Records that the bucket has the content and the link that the fill is about to write.
    pub(super) async fn record(&self, store: &Store) {
        if let Step::Found(target, _) = &self.step
            && *target == self.digest
        {
            let link = Link::Layer(self.repository.clone(), self.digest.clone());
            if let Err(error) = store.mark_kept(&self.digest, vec![link]).await {
                tracing::debug!(%error, "content of the bucket is uploaded to it once more");
            }
        }
    }

    /// Lets the time to live of content of the bucket count from its upload.
    pub(super) async fn record_fetch(&self, store: &Store) {
        if let (Step::Found(..), Some(fetched)) = (&self.step, self.fetched)
            && let Err(error) = store.set_fetched(&self.digest, fetched).await
        {
            tracing::debug!(%error, "the time to live of content of the bucket counts from now");
        }
    }
}
