//! Blobs from peers: from the disk of the owner, from its fill under way, or from a fill that it starts.

use std::sync::Arc;

use futures::{StreamExt, stream};
use http::header::RANGE;
use http::{HeaderValue, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::answer::{ANSWER_SIGNATURE, answer_text, decode_error};
use super::member::{Member, PeerPlace};
use super::metadata::target;
use super::request::{IDLE, PeerAnswer, PeerError, PeerRequest};
use super::{Fleet, MAX_HOLDERS, Shard};
use crate::digest::Digest;
use crate::name::Repository;
use crate::upstream::{BlobAnswer, BodyStream, Error};

/// One blob, as peers are asked for it.
#[derive(Clone, Copy)]
pub(crate) struct PeerBlob<'a> {
    /// The repository that a client asked for.
    pub(crate) repository: &'a Repository,
    /// The digest of the blob.
    pub(crate) digest: &'a Digest,
    /// The first byte that is needed.
    pub(crate) from: u64,
}

/// A peer's part of a blob.
pub(crate) struct PeerBlobAnswer {
    /// The bytes.
    pub(crate) answer: BlobAnswer,
    /// The peer that sends them.
    pub(crate) member: Arc<Member>,
}

impl PeerBlob<'_> {
    fn request(self) -> PeerRequest {
        let target = target(self.repository, &format!("blobs/{}", self.digest), "");
        let mut request = PeerRequest::get(target).of_upstream(&self.repository.host);
        if self.from > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={}-", self.from))
        {
            request.headers.insert(RANGE, range);
        }
        request
    }
}

impl Fleet {
    /// Asks the owners of a blob for it, but for those `without`. `None` where this member is the owner, or none of the
    /// others can be asked.
    pub(crate) async fn blob_of_owner(
        self: &Arc<Self>,
        blob: PeerBlob<'_>,
        without: &mut Vec<Arc<Member>>,
    ) -> Option<Result<PeerBlobAnswer, Error>> {
        for member in self.owners(Shard::of_blob(blob.digest)) {
            if without.iter().any(|other| Arc::ptr_eq(other, &member)) {
                continue;
            }
            match self.blob(&member, blob, blob.request()).await {
                Ok(found) => return Some(Ok(found)),
                Err(PeerError::Upstream(error)) => return Some(Err(error)),
                Err(error) => self.on_error(&member, &error),
            }
            without.push(member);
        }
        None
    }

    /// Asks the other members for a blob that one of them has on its disk or receives from the upstream right now: a member
    /// that became the owner lacks what its predecessor has.
    pub(crate) async fn blob_of_holder(
        self: &Arc<Self>,
        blob: PeerBlob<'_>,
        without: &[Arc<Member>],
    ) -> Option<PeerBlobAnswer> {
        for member in self
            .others(Shard::of_blob(blob.digest))
            .into_iter()
            .take(MAX_HOLDERS)
        {
            if without.iter().any(|other| Arc::ptr_eq(other, &member)) {
                continue;
            }
            match self.blob(&member, blob, blob.request().only_if_cached()).await {
                Ok(found) => return Some(found),
                Err(error) => self.on_error(&member, &error),
            }
        }
        None
    }

    /// Has a peer checked of which the body of an answer broke: the cause may be the upstream behind it.
    pub(crate) fn on_break(&self) {
        self.wake.notify_one();
    }

    /// Records that a peer sent bytes of another digest.
    pub(crate) fn on_wrong_bytes(&self, member: &Member) {
        tracing::warn!(address = %member.address, "a peer sent wrong bytes; it is not asked for 5 min");
        member.exclude(self.clock.now());
    }

    pub(super) fn on_error(&self, member: &Member, error: &PeerError) {
        tracing::debug!(address = %member.address, %error, "a peer was asked in vain");
        match error {
            PeerError::Failed(_) | PeerError::Refused(_) => member.suspect(self.clock.now()),
            PeerError::NotListening => member.suspect_until_hello(self.clock.now()),
            _ => return,
        }
        self.wake.notify_one();
    }

    async fn blob(
        self: &Arc<Self>,
        member: &Arc<Member>,
        blob: PeerBlob<'_>,
        request: PeerRequest,
    ) -> Result<PeerBlobAnswer, PeerError> {
        let answer = self.send(member, &request).await?;
        let status = answer.response.status();
        if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Err(refused(&request, &answer));
        }
        let PeerAnswer { response, place, .. } = answer;
        let PeerPlace { permit, share } = place;
        let lost = member.lost();
        let read = |chunks| self.clone().guarded(chunks, lost, share);
        let answer = BlobAnswer::of_peer(response, blob.from, IDLE, permit, read);
        Ok(PeerBlobAnswer {
            answer: answer.map_err(|error| PeerError::Failed(error.to_string()))?,
            member: Arc::clone(member),
        })
    }

    /// Ends a body with an error once its peer is lost; has the life of a peer checked that sends nothing for a second. The
    /// body holds its place among the requests for content of its upstream.
    fn guarded(
        self: Arc<Self>,
        chunks: BodyStream,
        lost: CancellationToken,
        share: Option<OwnedSemaphorePermit>,
    ) -> BodyStream {
        let state = (self, chunks, (lost, share));
        stream::try_unfold(state, |(fleet, mut chunks, held)| async move {
            match fleet.unless_lost(chunks.next(), &held.0).await {
                Some(Some(chunk)) => Ok(Some((chunk?, (fleet, chunks, held)))),
                Some(None) => Ok(None),
                None => Err(Error::Unavailable {
                    what: "the peer is lost".to_owned(),
                }),
            }
        })
        .boxed()
    }
}

/// Returns the error of an answer without a blob. An error of the upstream has to be signed.
fn refused(request: &PeerRequest, answer: &PeerAnswer) -> PeerError {
    let (status, headers) = (answer.response.status(), answer.response.headers());
    // The body is not read: the header has the error, and the signature of an error covers no body.
    let text = answer_text(&request.method, status, headers, b"");
    let is_signed = answer
        .authorization
        .is_answer_signed(&text, headers.get(ANSWER_SIGNATURE));
    match decode_error(headers).filter(|_| is_signed) {
        Some(error) => PeerError::Upstream(error),
        None if status == StatusCode::GATEWAY_TIMEOUT => PeerError::Absent,
        None => PeerError::Status(status),
    }
}
