//! Documents about the bucket between members: of its ledger, and of uploads to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::StatusCode;

use super::request::{PeerError, PeerRequest};
use super::{Fleet, Member, Shard};

/// The start of the paths of these documents.
pub(crate) const PEER_PATH: &str = "/peer/v1/";

/// A source of the documents that other members ask for.
pub(crate) trait DocumentSource: Send + Sync {
    /// Returns the document at a path and query below [`PEER_PATH`]; `None` if there is none.
    fn answer<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Option<Vec<u8>>>;
}

/// The answer of a member to a request for a document.
#[derive(Debug)]
pub(crate) enum DocumentAnswer {
    /// The document.
    Document(Bytes),
    /// The member has no such document.
    Absent,
    /// The member did not answer.
    Failed,
}

impl Fleet {
    /// Answers requests of members from a further source.
    pub(crate) fn add_source(&self, source: Arc<dyn DocumentSource>) {
        self.sources.lock().push(source);
    }

    /// Returns the document at a path and query, if a source has one.
    pub(crate) async fn document_at(&self, target: &str) -> Option<Vec<u8>> {
        let target = target.strip_prefix(PEER_PATH)?;
        let sources = self.sources.lock().clone();
        for source in sources {
            if let Some(document) = source.answer(target).await {
                return Some(document);
            }
        }
        None
    }

    /// Returns whether this member has looked for the others.
    pub(crate) fn has_searched(&self) -> bool {
        self.has_searched.load(Ordering::Relaxed)
    }

    /// Returns the shards that this member owns now; `None` before it has looked for the others.
    pub(crate) fn owned_shards(&self) -> Option<Vec<u8>> {
        if !self.has_searched() {
            return None;
        }
        let is_owned = |shard: &u8| self.owners(Shard::from(*shard)).is_empty();
        Some((0..=u8::MAX).filter(is_owned).collect())
    }

    /// Returns the other members that answer, with their ids.
    pub(crate) fn answering(&self) -> Vec<(String, Arc<Member>)> {
        let members = self.members.load();
        let answering = members.iter().filter_map(|member| {
            let id = member.id_if_answering()?;
            Some((id, Arc::clone(member)))
        });
        answering.collect()
    }

    /// Asks a member for the document at a path and query below [`PEER_PATH`].
    pub(crate) async fn ask_document(&self, member: &Member, target: &str) -> DocumentAnswer {
        let request = PeerRequest::get(format!("{PEER_PATH}{target}"));
        match self.document(member, request).await {
            Ok(answer) => DocumentAnswer::Document(answer.body),
            Err(PeerError::Status(StatusCode::NOT_FOUND) | PeerError::Absent | PeerError::Upstream(_)) => {
                DocumentAnswer::Absent
            }
            Err(error) => {
                tracing::debug!(address = %member.address, %error, "a member sent no document about the bucket");
                DocumentAnswer::Failed
            }
        }
    }
}
