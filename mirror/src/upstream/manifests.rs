//! Manifests (distribution-spec, "Pulling manifests").

use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, Method};

use super::Upstream;
use super::accept::Accept;
use super::error::Error;
use super::json_body::DocumentPlace;
use super::rate_limit::RequestClass;
use super::request::{RequestPool, UpstreamRequest};
use crate::digest::{Algorithm, Digest, Hashed};
use crate::json::MAX_ENTRIES;
use crate::manifest::Document;
use crate::name::{Reference, RepositoryName};

/// The most that a manifest may be (distribution-spec, "Pushing Manifests").
pub const MAX_MANIFEST: usize = 4 * 1024 * 1024;

/// A manifest as upstream has it.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// At most [`MAX_MANIFEST`] bytes; of the asked digest, if one was asked for, and of the one in upstream's header.
    pub content: Hashed,
    /// The parsed document.
    pub document: Document,
    /// `Content-Type` without parameters, in lower case.
    pub media_type: Option<String>,
    /// The time since the upstream confirmed it; zero but for an answer of a peer.
    pub age: Duration,
    /// The place of a large manifest, until the answer is dropped.
    pub(crate) place: DocumentPlace,
}

/// The headers of a HEAD of a manifest; all `None` if the registry does not support HEAD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`.
    pub digest: Option<Digest>,
    /// `Content-Type` without parameters, in lower case.
    pub media_type: Option<String>,
    /// `Content-Length`.
    pub size: Option<u64>,
    /// The time since the upstream confirmed it; zero but for an answer of a peer.
    pub age: Duration,
}

impl ManifestAnswer {
    /// Checks the bytes of a manifest against the requested digest and the one of a header, and parses them.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn parse(
        bytes: Bytes,
        media_type: Option<String>,
        header: Option<&Digest>,
        reference: &Reference,
    ) -> Result<Self, Error> {
        let document = Document::read(&bytes).ok_or_else(|| no_object(media_type.clone()))?;
        if document.has_too_many() {
            return Err(Error::malformed(format!(
                "a manifest of more than {MAX_ENTRIES} descriptors"
            )));
        }
        Ok(Self {
            content: verified(bytes, header, reference)?,
            document,
            media_type,
            age: Duration::ZERO,
            place: DocumentPlace::default(),
        })
    }
}

impl Upstream {
    /// Returns a manifest, whole.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::Malformed`] also for bytes that are not of the asked digest.
    pub async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestAnswer, Error> {
        self.manifest_as(name, reference, &Accept::default()).await
    }

    /// Returns a manifest of a type that a client names, or of another one.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn manifest_as(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestAnswer, Error> {
        let authorizer = self.authorizer();
        let name = self.name(name);
        let request = self.about_manifest(Method::GET, &name, reference, accept);
        let permitted = self.send(&authorizer, &request).await?;
        if permitted.answer.status() != 200 {
            return Err(self.response_error(&authorizer, permitted.answer).await);
        }
        let (media_type, header) = (
            permitted.answer.media_type(),
            digest_of(permitted.answer.headers()),
        );
        let reference = reference.clone();
        let parsed = match permitted.answer.read(&self.transport, MAX_MANIFEST).await {
            Ok(body) => {
                let place = body.place();
                let parsed = body
                    .parse(move |bytes| ManifestAnswer::parse(bytes, media_type, header.as_ref(), &reference))
                    .await;
                parsed.map(|answer| ManifestAnswer { place, ..answer })
            }
            Err(error) => Err(error),
        };
        parsed.inspect_err(|error| self.transport.errors.record(error))
    }

    /// Returns a manifest's digest, type and size, without counting as a pull where upstream counts them. All are
    /// `None` where only a GET can tell.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn manifest_head(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestHead, Error> {
        let authorizer = self.authorizer();
        let full = self.name(name);
        let request = self.about_manifest(Method::HEAD, &full, reference, accept);
        let permitted = match self.send(&authorizer, &request).await {
            // Some registries refuse a HEAD of what they give.
            Err(Error::Denied { .. }) => return Ok(ManifestHead::default()),
            permitted => permitted?,
        };
        match permitted.answer.status().as_u16() {
            200 => Ok(ManifestHead {
                digest: digest_of(permitted.answer.headers()),
                media_type: permitted.answer.media_type(),
                size: permitted.answer.length(),
                age: Duration::ZERO,
            }),
            404 | 410 if permitted.answer.is_marked() => {
                Err(self.response_error(&authorizer, permitted.answer).await)
            }
            // Without a body nothing tells whether a registry or an ingress knows nothing: a GET does.
            404 | 410 => {
                drop(permitted);
                let answer = self.manifest_as(name, reference, accept).await?;
                Ok(ManifestHead {
                    size: Some(answer.content.bytes().len() as u64),
                    digest: Some(answer.content.digest().clone()),
                    media_type: answer.media_type,
                    age: Duration::ZERO,
                })
            }
            400..=499 | 501 => Ok(ManifestHead::default()),
            _ => Err(self.response_error(&authorizer, permitted.answer).await),
        }
    }

    fn about_manifest<'a>(
        &self,
        method: Method,
        name: &'a str,
        reference: &Reference,
        accept: &Accept,
    ) -> UpstreamRequest<'a> {
        let class = if method == Method::HEAD {
            RequestClass::Head
        } else {
            RequestClass::Manifest
        };
        UpstreamRequest {
            class,
            pool: RequestPool::Other,
            method,
            url: self.transport.url(&format!("{name}/manifests/{reference}")),
            headers: HeaderMap::from_iter([(ACCEPT, accept.header())]),
            repository: Some(name),
            follow: true,
        }
    }
}

/// Hashes the bytes, and checks them against the requested digest and the header of the upstream. Bytes are hashed
/// twice only for digests of different algorithms.
fn verified(bytes: Bytes, header: Option<&Digest>, reference: &Reference) -> Result<Hashed, Error> {
    let asked = match reference {
        Reference::Digest(digest) => Some(digest),
        Reference::Tag(_) => None,
    };
    let claims = [asked, header];
    let mut claims = claims.into_iter().flatten();
    let check = |claim: &Digest, bytes: Bytes| {
        Hashed::checked(claim, bytes)
            .map_err(|found| Error::malformed(format!("a manifest whose digest is {found} as {claim}")))
    };
    let Some(first) = claims.next() else {
        return Ok(Hashed::compute(Algorithm::Sha256, bytes));
    };
    let content = check(first, bytes)?;
    match claims.next().filter(|claim| *claim != content.digest()) {
        Some(other) => check(other, content.bytes().clone()).map(|_| content),
        None => Ok(content),
    }
}

/// Returns the error for a document that is no JSON object, such as a login page.
fn no_object(media_type: Option<String>) -> Error {
    let kind = media_type.unwrap_or_else(|| "no type".to_owned());
    Error::malformed(format!("no JSON object where a manifest was asked for ({kind})"))
}

fn digest_of(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(algorithm: Algorithm, text: &'static str) -> Digest {
        Digest::compute(algorithm, text.as_bytes())
    }

    fn taken(header: Option<&Digest>, reference: &Reference) -> Result<Digest, Error> {
        verified(Bytes::from_static(b"{}"), header, reference).map(|content| content.digest().clone())
    }

    /// A digest header that does not match the content is refused.
    #[test]
    fn wrong_digest_header_is_refused() {
        let tag = "latest".parse().unwrap();
        let (lie, truth) = (hash(Algorithm::Sha256, "other"), hash(Algorithm::Sha256, "{}"));
        assert!(matches!(taken(Some(&lie), &tag), Err(Error::Malformed { .. })));
        assert_eq!(taken(Some(&truth), &tag), Ok(truth.clone()));
        assert_eq!(taken(None, &tag), Ok(truth));
        let long = hash(Algorithm::Sha512, "{}");
        assert_eq!(taken(Some(&long), &tag), Ok(long));
    }

    /// Content is named by the digest algorithm that the client requested.
    #[test]
    fn content_is_named_by_requested_algorithm() {
        let (asked, also) = (hash(Algorithm::Sha512, "{}"), hash(Algorithm::Sha256, "{}"));
        let reference = Reference::Digest(asked.clone());
        assert_eq!(taken(Some(&also), &reference), Ok(asked.clone()));
        assert_eq!(taken(Some(&asked), &reference), Ok(asked));
        assert!(taken(Some(&hash(Algorithm::Sha256, "other")), &reference).is_err());
        let other = Reference::Digest(hash(Algorithm::Sha512, "other"));
        assert!(taken(None, &other).is_err());
    }
}
