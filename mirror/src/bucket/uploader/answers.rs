//! The answers to other replicas that ask for the state of an upload.

use std::sync::Weak;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{IsFilling, Shared};
use crate::bucket::replicas;
use crate::peers::DocumentSource;
use crate::store::{ContentLink, Link, UploadState};

/// The source of these answers.
pub(super) struct UploadSource {
    /// Weak, as the replicas that hold this source are a part of it.
    pub(super) shared: Weak<Shared>,
    /// The fingerprint of the bucket: a member may have another one while the configuration changes.
    pub(super) bucket: u64,
    pub(super) is_filling: IsFilling,
}

impl UploadSource {
    async fn state(&self, linked: &ContentLink) -> UploadState {
        let Some(shared) = self.shared.upgrade() else {
            return UploadState::Absent;
        };
        // Asked before the index: a fill that ends meanwhile is in the index.
        let is_filling = match &linked.link {
            Link::Layer(repository, digest) => (self.is_filling)(repository, digest),
            Link::Revision(..) | Link::Tag(..) => false,
        };
        match shared.store.upload_state(linked).await {
            Ok(UploadState::Stored) => UploadState::Stored,
            Ok(UploadState::Pending) if shared.may_send() => UploadState::Pending,
            Ok(UploadState::Absent) if is_filling && shared.may_send() => UploadState::Pending,
            Ok(UploadState::Pending | UploadState::Absent) | Err(_) => UploadState::Absent,
        }
    }
}

impl DocumentSource for UploadSource {
    fn answer<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Option<Vec<u8>>> {
        async move {
            let (bucket, linked) = replicas::parse(target)?;
            let state = if bucket == self.bucket {
                self.state(&linked).await
            } else {
                UploadState::Absent
            };
            Some(replicas::encode(state).into())
        }
        .boxed()
    }
}
