//! The other replicas, whose uploads spare this one's: content and links that all of them have are uploaded once.
//!
//! The first member that has a link, in the order of the owners of its shard, uploads it. A member asks the others before
//! each upload, and members that disagree about the order upload twice. An upload that another member lost is found by
//! the next question.

use std::sync::Arc;

use crate::peers::{DocumentAnswer, Fleet, MAX_HOLDERS, Member, Shard};
use crate::query;
use crate::store::{ContentLink, Link, UploadState};

/// The path of the document, below the one of all documents.
const PATH: &str = "upload";

/// The uploads of the other replicas to the bucket.
pub(super) struct ReplicaUploads {
    fleet: Arc<Fleet>,
    /// The fingerprint of the bucket: a member may have another one while the configuration changes.
    bucket: u64,
}

impl ReplicaUploads {
    pub(super) fn new(fleet: Arc<Fleet>, bucket: u64) -> Self {
        Self { fleet, bucket }
    }

    /// Returns the state of an upload at the other members: `Stored` if one of them knows that the bucket has the link and
    /// its content, `Pending` if a member before this one uploads it, or does not answer.
    pub(super) async fn state(&self, linked: &ContentLink) -> UploadState {
        if !self.fleet.has_searched() {
            return UploadState::Pending;
        }
        let shard = shard(linked);
        let before = self.fleet.owners(shard);
        let is_before = |member: &Arc<Member>| before.iter().any(|other| Arc::ptr_eq(member, other));
        let mut found = UploadState::Absent;
        for member in self.fleet.others(shard).into_iter().take(MAX_HOLDERS) {
            match self.ask(&member, linked).await {
                UploadState::Stored => return UploadState::Stored,
                UploadState::Pending if is_before(&member) => found = UploadState::Pending,
                UploadState::Pending | UploadState::Absent => {}
            }
        }
        found
    }

    async fn ask(&self, member: &Member, linked: &ContentLink) -> UploadState {
        match self
            .fleet
            .ask_document(member, &target(self.bucket, linked))
            .await
        {
            DocumentAnswer::Document(text) => decode(&text),
            DocumentAnswer::Absent => UploadState::Absent,
            DocumentAnswer::Failed => UploadState::Pending,
        }
    }
}

/// Returns the shard whose owner fills the cache with the content of a link.
fn shard(linked: &ContentLink) -> Shard {
    match &linked.link {
        Link::Layer(..) => Shard::of_blob(&linked.digest),
        Link::Revision(repository, _) | Link::Tag(repository, _) => Shard::of_repository(repository),
    }
}

fn target(bucket: u64, ContentLink { digest, link }: &ContentLink) -> String {
    let pairs = [
        ("bucket", format!("{bucket:x}")),
        ("digest", digest.to_string()),
        ("kind", link.kind().to_string()),
        ("repository", link.repository().to_string()),
        ("name", link.name().to_owned()),
    ];
    let all = pairs.iter().fold(String::new(), |query, (name, value)| {
        query::with(&query, name, value)
    });
    format!("{PATH}?{all}")
}

/// Returns the fingerprint of the bucket and the link that another member asks about; `None` for another document.
pub(super) fn parse(target: &str) -> Option<(u64, ContentLink)> {
    let query = target.strip_prefix(PATH)?.strip_prefix('?')?;
    let value = |name| query::value(query, name);
    let link = Link::from_key(
        value("kind")?.parse().ok()?,
        &value("repository")?,
        &value("name")?,
    )?;
    let digest = value("digest")?.parse().ok()?;
    let bucket = u64::from_str_radix(&value("bucket")?, 16).ok()?;
    Some((bucket, ContentLink { digest, link }))
}

/// Returns the document with a state.
pub(super) fn encode(state: UploadState) -> &'static str {
    match state {
        UploadState::Stored => "stored",
        UploadState::Pending => "pending",
        UploadState::Absent => "absent",
    }
}

fn decode(text: &[u8]) -> UploadState {
    match text {
        b"stored" => UploadState::Stored,
        b"pending" => UploadState::Pending,
        _ => UploadState::Absent,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::name::Repository;

    fn repository() -> Repository {
        Repository {
            host: "quay.io:443".parse().unwrap(),
            name: "team/app".parse().unwrap(),
        }
    }

    #[test_case(|digest| Link::Layer(repository(), digest); "a blob")]
    #[test_case(|digest| Link::Revision(repository(), digest); "a manifest")]
    #[test_case(|_| Link::Tag(repository(), "1.0-x".parse().unwrap()); "a tag")]
    fn target_reads_back(link: fn(Digest) -> Link) {
        let digest = Digest::compute(Algorithm::Sha512, b"a");
        let link = link(digest.clone());
        let linked = ContentLink { digest, link };
        assert_eq!(parse(&target(7, &linked)), Some((7, linked)));
    }

    #[test_case(UploadState::Stored)]
    #[test_case(UploadState::Pending)]
    #[test_case(UploadState::Absent)]
    fn upload_state_reads_back(state: UploadState) {
        assert_eq!(decode(encode(state).as_bytes()), state);
    }

    proptest! {
        #[test]
        fn any_upload_query_is_read_without_panic(text: String) {
            let _ = (parse(&format!("upload?{text}")), decode(text.as_bytes()));
        }
    }
}
