//! Manifests, tags and lists from the owner of their repository.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};

use super::request::{PeerDocument, PeerError, PeerRequest};
use super::{Fleet, MAX_HOLDERS, Shard};
use crate::digest::Digest;
use crate::name::{Reference, Repository};
use crate::query;
use crate::upstream::{Accept, Error, ListAnswer, ManifestAnswer, ManifestHead};

/// The answer of an owner; `None` where this member is the owner, or the owner cannot be asked.
type OwnerAnswer<T> = Option<Result<T, Error>>;

impl Fleet {
    /// Asks the owner for a manifest.
    pub(crate) async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &Accept,
    ) -> OwnerAnswer<ManifestAnswer> {
        let target = target(repository, &format!("manifests/{reference}"), "");
        let request = || {
            PeerRequest::get(target.clone())
                .of_upstream(&repository.host)
                .accept(accept.header())
        };
        let found = self.ask_owner(Shard::of_repository(repository), request).await?;
        usable(found.and_then(|found| manifest(found, reference)))
    }

    /// Asks the other members for a manifest that one of them has: a member that became the owner lacks what its
    /// predecessor has. A tag may have moved since, so only digests are asked for.
    pub(crate) async fn manifest_of_holder(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &Accept,
    ) -> Option<ManifestAnswer> {
        if matches!(reference, Reference::Tag(_)) {
            return None;
        }
        let target = target(repository, &format!("manifests/{reference}"), "");
        let shard = Shard::of_repository(repository);
        for member in self.others(shard).into_iter().take(MAX_HOLDERS) {
            let request = PeerRequest::get(target.clone())
                .of_upstream(&repository.host)
                .accept(accept.header());
            match self.document(&member, request.only_if_cached()).await {
                Ok(found) => match manifest(found, reference) {
                    Ok(answer) => return Some(answer),
                    Err(_) => self.on_wrong_bytes(&member),
                },
                Err(error) => self.on_error(&member, &error),
            }
        }
        None
    }

    /// Asks the owner for the digest of a manifest.
    pub(crate) async fn manifest_head(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &Accept,
    ) -> OwnerAnswer<ManifestHead> {
        let target = target(repository, &format!("manifests/{reference}"), "");
        let request = || {
            PeerRequest::head(target.clone())
                .of_upstream(&repository.host)
                .accept(accept.header())
        };
        let found = self.ask_owner(Shard::of_repository(repository), request).await?;
        let read = |found: PeerDocument| ManifestHead {
            digest: content_digest(&found.headers),
            media_type: text(&found.headers, &CONTENT_TYPE),
            size: length(&found.headers),
            age: age(&found.headers),
        };
        Some(found.map(read))
    }

    /// Asks the owner for the size of a blob, and so for the upstream's permission; the inner `None` where it is not known.
    pub(crate) async fn blob_head(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> OwnerAnswer<Option<u64>> {
        let target = target(repository, &format!("blobs/{digest}"), "");
        let request = || PeerRequest::head(target.clone()).of_upstream(&repository.host);
        let found = self.ask_owner(Shard::of_blob(digest), request).await?;
        Some(found.map(|found| length(&found.headers)))
    }

    /// Asks the owner for a page of tags.
    pub(crate) async fn tags(&self, repository: &Repository, query: &str) -> OwnerAnswer<ListAnswer> {
        let target = target(repository, "tags/list", query);
        let request = || PeerRequest::get(target.clone()).of_upstream(&repository.host);
        let found = self.ask_owner(Shard::of_repository(repository), request).await?;
        let read = |found: PeerDocument| {
            let mut list = ListAnswer::parse(&found.headers, &found.body)?;
            list.next = list.next.map(|next| query::without(&next, "ns"));
            Ok(list)
        };
        usable(found.and_then(read))
    }

    /// Asks the owner for the referrers of a manifest.
    pub(crate) async fn referrers(&self, repository: &Repository, digest: &Digest) -> OwnerAnswer<Bytes> {
        let target = target(repository, &format!("referrers/{digest}"), "");
        let request = || PeerRequest::get(target.clone()).of_upstream(&repository.host);
        let found = self.ask_owner(Shard::of_repository(repository), request).await?;
        Some(found.map(|found| found.body))
    }

    /// Asks the owners of a shard in their order.
    async fn ask_owner(&self, shard: Shard, request: impl Fn() -> PeerRequest) -> OwnerAnswer<PeerDocument> {
        for member in self.owners(shard) {
            match self.document(&member, request()).await {
                Ok(found) => return Some(Ok(found)),
                Err(PeerError::Upstream(error)) => return Some(Err(error)),
                // The owner could not ask the upstream: this member tries it.
                Err(PeerError::Status(StatusCode::SERVICE_UNAVAILABLE)) => return None,
                Err(error) => self.on_error(&member, &error),
            }
        }
        None
    }
}

/// Reads a manifest, and checks it against its digest.
fn manifest(found: PeerDocument, reference: &Reference) -> Result<ManifestAnswer, Error> {
    let media_type = text(&found.headers, &CONTENT_TYPE);
    let header = content_digest(&found.headers);
    let answer = ManifestAnswer::parse(found.body, media_type, header.as_ref(), reference)?;
    let age = age(&found.headers);
    Ok(ManifestAnswer { age, ..answer })
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// Drops an answer that cannot be used, so that the upstream is asked.
fn usable<T>(answer: Result<T, Error>) -> OwnerAnswer<T> {
    match answer {
        Err(Error::Malformed { .. }) => None,
        answer => Some(answer),
    }
}

/// Returns path and query of a request for something of a repository. The host is repeated in the path where the owner
/// would take the first part of the name for a host, and remove it.
pub(super) fn target(repository: &Repository, rest: &str, query: &str) -> String {
    let Repository { host, name } = repository;
    let first = name.as_str().split('/').next().unwrap_or_default();
    let separator = if query.is_empty() { "" } else { "&" };
    if first == host.as_str() || first.contains('.') {
        return format!("/v2/{host}/{name}/{rest}?{query}{separator}ns={host}");
    }
    format!("/v2/{name}/{rest}?{query}{separator}ns={host}")
}

fn text(headers: &HeaderMap, name: &http::HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}

/// Returns the time since the owner last had the answer confirmed by the upstream.
fn age(headers: &HeaderMap) -> Duration {
    let seconds = text(headers, &AGE).and_then(|age| age.parse().ok());
    Duration::from_secs(seconds.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    /// The owner reads the same repository from a path that a name with a host in it makes.
    #[test_case("team/app", "", "/v2/team/app/tags/list?ns=quay.io"; "a plain name")]
    #[test_case("quay.io/app", "n=2", "/v2/quay.io/quay.io/app/tags/list?n=2&ns=quay.io"; "a name with the host")]
    #[test_case("docker.io/app", "", "/v2/quay.io/docker.io/app/tags/list?ns=quay.io"; "a name with another host")]
    fn target_names_one_repository(name: &str, query: &str, expected: &str) {
        let repository = Repository {
            host: "quay.io".parse().unwrap(),
            name: name.parse().unwrap(),
        };
        assert_eq!(target(&repository, "tags/list", query), expected);
    }
}
