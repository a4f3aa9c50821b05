//! The task behind a fill: requests, writes, resumes, verifies, commits.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::batch::{Batch, BatchBody};
use super::{HELD_BACK, Phase, Progress, Repositories, link};
use crate::digest::Digest;
use crate::metrics::FillResult;
use crate::name::Repository;
use crate::origins::BlobOrigins;
use crate::pull_error::{PullError, RequestedContent};
use crate::store::{Announcement, Found, StageError, Staged, Store};
use crate::upstream::{BlobAnswer, Error, meets_minimum};

/// The number of consecutive attempts without progress after which a fill fails.
const MAX_STALLED_ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A task that runs one fill.
pub(crate) struct FillTask {
    pub(super) digest: Digest,
    pub(super) repository: Repository,
    pub(super) origins: BlobOrigins,
    pub(super) store: Store,
    /// The size that a manifest names.
    pub(super) named: Option<u64>,
    /// The bytes that had come when the room ran out the last time, else 0.
    pub(super) least: u64,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) file: Arc<ArcSwapOption<File>>,
    pub(super) repositories: Arc<Mutex<Repositories>>,
    pub(super) unused: Arc<Mutex<Option<BlobAnswer>>>,
}

/// The reason why a fill stops.
enum Stop {
    Upstream(Error),
    Stage(StageError),
    Mismatch(String),
}

impl FillTask {
    /// Runs to the end, even if all clients leave. `on_end` receives the result of a download.
    pub(crate) async fn run(mut self, on_end: impl FnOnce(FillResult)) {
        if self.found().await {
            self.link_late_comers(vec![self.repository.clone()]).await;
            return;
        }
        let mut fetched = self.fetch().await;
        if let Err(Stop::Mismatch(what)) = &fetched
            && self.origins.on_wrong_bytes()
        {
            fetched = self.fetch_again(what.clone()).await;
        }
        match fetched {
            Ok(staged) => on_end(self.commit(staged).await),
            Err(stop) => {
                let (phase, result) = self.classify(stop);
                // Before the readers are notified, so that a client that retries is refused if necessary.
                on_end(result);
                self.progress.send_modify(|progress| progress.phase = phase);
            }
        }
    }

    /// Fetches a blob again of which a replica sent wrong bytes, unless a client may have some of them.
    async fn fetch_again(&mut self, what: String) -> Result<Staged, Stop> {
        let progress = self.progress.borrow().clone();
        if progress.size.unwrap_or(u64::MAX) > HELD_BACK {
            warn!(digest = %self.digest, what, "a replica sent wrong bytes; clients are cut before the end of them");
            return Err(Stop::Upstream(Error::Unavailable {
                what: "another replica of this mirror sent wrong bytes; it is not asked again".to_owned(),
            }));
        }
        self.progress.send_modify(|progress| {
            *progress = Progress {
                phase: Phase::Asking,
                written: 0,
                size: None,
            };
        });
        self.fetch().await
    }

    /// Uses the blob of a fill that ended between the lookup in the cache and the start of this one.
    async fn found(&self) -> bool {
        let blob = match self.store.find(&self.repository, &self.digest).await {
            Ok(Found::Linked(blob)) => blob,
            Ok(Found::Unlinked(blob)) if self.is_permitted().await => blob,
            _ => return false,
        };
        self.file.store(Some(blob.file));
        let (written, size) = (blob.size, Some(blob.size));
        self.progress.send_modify(|progress| {
            *progress = Progress {
                phase: Phase::Verified,
                written,
                size,
            }
        });
        true
    }

    /// Asks the upstream to authorize content of another repository; this requires no second download.
    async fn is_permitted(&self) -> bool {
        let (repository, digest) = (&self.repository, &self.digest);
        if self.origins.authorize().await.is_err() {
            return false;
        }
        link(&self.store, repository, digest).await;
        true
    }

    fn classify(&mut self, stop: Stop) -> (Phase, FillResult) {
        let failed = |message: String| Phase::Failed(PullError::unavailable(message));
        let (repository, digest) = (self.repository.clone(), self.digest.clone());
        match stop {
            Stop::Stage(StageError::ReadOnly) => (Phase::NoRoom, FillResult::ReadOnly),
            Stop::Stage(error) => {
                warn!(%repository, %digest, %error, "a blob could not be kept");
                (Phase::NoRoom, FillResult::NoRoom)
            }
            Stop::Upstream(error) => {
                debug!(%repository, %digest, %error, "a blob could not be fetched");
                (
                    Phase::Failed(PullError::from_upstream(&error, RequestedContent::Blob)),
                    FillResult::Failed,
                )
            }
            Stop::Mismatch(what) if self.origins.is_stored() => {
                self.origins.reject_stored(true);
                (
                    failed(format!("the bucket has wrong bytes: {what}")),
                    FillResult::Failed,
                )
            }
            Stop::Mismatch(what) => {
                warn!(%repository, %digest, what, "upstream sent wrong bytes; nothing of them is kept");
                (
                    failed(format!("upstream sent wrong bytes: {what}")),
                    FillResult::Mismatch,
                )
            }
        }
    }

    fn written(&self) -> u64 {
        self.progress.borrow().written
    }

    /// Downloads all bytes and verifies them.
    async fn fetch(&mut self) -> Result<Staged, Stop> {
        let (mut answer, mut staged) = self.begin().await?;
        if self.origins.is_verified_first(&answer) {
            if let Some(staged) = self.fetch_unannounced(answer, staged).await {
                return Ok(staged);
            }
            (answer, staged) = self.begin().await?;
        }
        let size = answer.total;
        self.file.store(Some(staged.file()));
        self.progress.send_modify(|progress| {
            *progress = Progress {
                phase: Phase::Filling,
                written: 0,
                size,
            };
        });
        let mut source = Ok(answer);
        let (mut stalled, mut began) = (0, Instant::now());
        loop {
            let before = staged.written();
            let trouble = match source {
                Ok(answer) => {
                    let (back, trouble) = self.write_response(staged, answer, size).await?;
                    staged = back;
                    trouble
                }
                Err(error) => Some(error),
            };
            let whole = size.map_or(trouble.is_none(), |size| size == staged.written());
            if whole {
                return verify(staged);
            }
            stalled = if meets_minimum(staged.written() - before, began.elapsed()) {
                0
            } else {
                stalled + 1
            };
            if stalled >= MAX_STALLED_ATTEMPTS {
                return Err(Stop::Upstream(
                    trouble.unwrap_or_else(|| ended_early(staged.written())),
                ));
            }
            debug!(digest = %self.digest, at = staged.written(), ?trouble, "upstream closed early, resuming");
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(stalled)).await;
            began = Instant::now();
            // At the registry again: the address that it redirected to may have expired.
            source = self.origins.ask(staged.written()).await;
        }
    }

    /// Asks for the whole blob, and makes room for it.
    async fn begin(&mut self) -> Result<(BlobAnswer, Staged), Stop> {
        let answer = self.origins.ask(0).await.map_err(Stop::Upstream)?;
        let (origin, size) = (&self.repository.host, answer.total);
        let announcement = Announcement {
            size,
            named: self.named,
            least: self.least,
        };
        let staged = self.store.stage_announced(origin, &self.digest, announcement);
        match staged.await {
            Ok(staged) => Ok((answer, staged)),
            Err(error) => {
                self.progress.send_modify(|progress| progress.size = size);
                *self.unused.lock() = Some(answer);
                Err(Stop::Stage(error))
            }
        }
    }

    /// Downloads a small blob of the bucket before a client gets any of it; `None` if its bytes are wrong or do not come,
    /// and the next origin has to be asked.
    async fn fetch_unannounced(&mut self, answer: BlobAnswer, staged: Staged) -> Option<Staged> {
        let size = answer.total;
        let written = self.write_response(staged, answer, size).await;
        let is_cut = matches!(&written, Ok((_, Some(_))));
        let verified = match written {
            Ok((staged, None)) => verify(staged),
            Ok((_, Some(error))) => Err(Stop::Upstream(error)),
            Err(stop) => Err(stop),
        };
        if let Ok(staged) = verified {
            self.file.store(Some(staged.file()));
            return Some(staged);
        }
        self.origins.reject_stored(!is_cut);
        self.progress.send_modify(|progress| progress.written = 0);
        None
    }

    /// Writes the bytes of one response until it ends or fails; returns the error with the file.
    async fn write_response(
        &self,
        mut staged: Staged,
        answer: BlobAnswer,
        size: Option<u64>,
    ) -> Result<(Staged, Option<Error>), Stop> {
        let contradiction = size.is_some() && answer.total.is_some() && size != answer.total;
        // A registry that ignores Range starts over; what is there already is skipped.
        let skip = staged.written().checked_sub(answer.start);
        let (false, Some(skip)) = (contradiction, skip) else {
            return Err(contradicts());
        };
        let mut body = BatchBody::new(answer.body, skip);
        let mut batch = Batch::default();
        loop {
            body.fill(&mut batch).await;
            let written = staged.written() + batch.length();
            if size.is_some_and(|size| written > size) {
                return Err(contradicts());
            }
            if let Some(named) = self.named.filter(|named| size.is_none() && written > *named) {
                let what = format!("it sends more than the {named} bytes that a manifest names");
                return Err(Stop::Upstream(Error::Malformed { what }));
            }
            let Batch { chunks, end } = batch;
            let appended = self.append(staged, chunks);
            if let Some(end) = end {
                return Ok((appended.await.map_err(Stop::Stage)?, end.err()));
            }
            // The next bytes arrive while these are written.
            let (appended, next) = body.receive_during(appended).await;
            (staged, batch) = (appended.map_err(Stop::Stage)?, next);
        }
    }

    /// Writes on a thread that may block. Notifies the readers there, a thread switch earlier than from here.
    async fn append(&self, staged: Staged, chunks: Vec<Bytes>) -> Result<Staged, StageError> {
        let progress = self.progress.clone();
        let on_written = move |written| progress.send_modify(|progress| progress.written = written);
        staged.append_all(chunks, on_written).await
    }

    /// Lets the readers finish, then commits the blob.
    async fn commit(self, staged: Staged) -> FillResult {
        self.progress.send_modify(|progress| {
            progress.phase = Phase::Verified;
            progress.size = Some(progress.written);
        });
        self.origins.record_stored(&self.store).await;
        let repositories = self.repositories.lock().all.clone();
        match staged.commit(&repositories).await {
            Ok(_) => {
                info!(repository = %self.repository, digest = %self.digest, bytes = self.written(), "a blob was cached");
                self.origins.record_fetch(&self.store).await;
                self.link_late_comers(repositories).await;
                FillResult::Stored
            }
            Err(error) => {
                error!(digest = %self.digest, %error, "a blob was fetched but could not be kept");
                FillResult::NoRoom
            }
        }
    }

    /// Links the blob to the repositories that joined while it was committed, until there is none without a link.
    async fn link_late_comers(&self, mut linked: Vec<Repository>) {
        loop {
            let late = self.repositories.lock().without(&linked);
            if late.is_empty() {
                return;
            }
            for repository in &late {
                link(&self.store, repository, &self.digest).await;
            }
            linked.extend(late);
        }
    }
}

fn contradicts() -> Stop {
    Stop::Mismatch("upstream contradicts itself about the blob's size".into())
}

fn ended_early(at: u64) -> Error {
    Error::Unavailable {
        what: format!("upstream ended the blob early, at byte {at}"),
    }
}

fn verify(mut staged: Staged) -> Result<Staged, Stop> {
    staged
        .verify()
        .map_err(|mismatch| Stop::Mismatch(mismatch.to_string()))?;
    Ok(staged)
}
