//! Manifests (distribution-spec, "Pulling manifests").

use std::collections::HashMap;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING};
use http::{HeaderMap, HeaderValue, Method};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Upstream;
use super::answer::Answer;
use super::error::Error;
use super::exchange::{Lane, Question};
use super::rest::Class;
use crate::digest::Digest;
use crate::name::{Reference, RepositoryName};

/// The most that a manifest may be (distribution-spec, "Pushing Manifests").
pub const MOST_MANIFEST: usize = 4 * 1024 * 1024;

/// Everything that is served, whatever a client asked for: its wishes must not vary the cache.
const KINDS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

/// A manifest as upstream has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestAnswer {
    /// At most [`MOST_MANIFEST`] bytes, a JSON object; of the asked digest, if one was asked for.
    pub bytes: Bytes,
    /// `Content-Type` without parameters, in lower case.
    pub media_type: Option<String>,
    /// `Docker-Content-Digest`, unchecked.
    pub digest_header: Option<Digest>,
}

/// What a HEAD of a manifest says; all `None` where the registry knows no HEAD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`.
    pub digest: Option<Digest>,
    /// `Content-Type` without parameters, in lower case.
    pub media_type: Option<String>,
    /// `Content-Length`.
    pub size: Option<u64>,
}

impl Upstream {
    /// A manifest, whole.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::Malformed`] also for bytes that are not of the asked digest.
    pub async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestAnswer, Error> {
        let access = self.access();
        let name = self.name(name);
        let question = self.about_manifest(Method::GET, &name, reference);
        let held = self.ask(&access, &question).await?;
        if held.answer.status() != 200 {
            return Err(self.fault(&access, held.answer).await);
        }
        let answer = self.take_manifest(held.answer).await?;
        if let Reference::Digest(wanted) = reference
            && Digest::of(wanted.algorithm(), &answer.bytes) != *wanted
        {
            return Err(Error::malformed(format!("a manifest that is not {wanted}")));
        }
        Ok(answer)
    }

    /// A manifest's digest, type and size, without counting as a pull where upstream counts them.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn manifest_head(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        let access = self.access();
        let full = self.name(name);
        let question = self.about_manifest(Method::HEAD, &full, reference);
        let held = self.ask(&access, &question).await?;
        match held.answer.status().as_u16() {
            200 => Ok(ManifestHead {
                digest: digest_of(held.answer.headers()),
                media_type: held.answer.media_type(),
                size: held.answer.length(),
            }),
            // No body says whether a registry or an ingress knows nothing: a GET tells.
            404 => {
                drop(held);
                let answer = self.manifest(name, reference).await?;
                Ok(ManifestHead {
                    size: Some(answer.bytes.len() as u64),
                    digest: answer.digest_header,
                    media_type: answer.media_type,
                })
            }
            405 | 501 => Ok(ManifestHead::default()),
            _ => Err(self.fault(&access, held.answer).await),
        }
    }

    fn about_manifest<'a>(&self, method: Method, name: &'a str, reference: &Reference) -> Question<'a> {
        let class = if method == Method::HEAD {
            Class::Head
        } else {
            Class::Manifest
        };
        Question {
            class,
            lane: Lane::Other,
            method,
            url: self.wire.url(&format!("{name}/manifests/{reference}")),
            headers: HeaderMap::from_iter([
                (ACCEPT, HeaderValue::from_static(KINDS)),
                (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            ]),
            repository: Some(name),
            follow: true,
        }
    }

    /// Reads a manifest that has been found.
    pub(super) async fn take_manifest(&self, answer: Answer) -> Result<ManifestAnswer, Error> {
        answer.check_encoding()?;
        let media_type = answer.media_type();
        let digest_header = digest_of(answer.headers());
        let bytes = answer.read(MOST_MANIFEST, self.wire.timeouts.body).await?;
        // A login page is not cached as a tag.
        if !is_object(&bytes) {
            let kind = media_type.unwrap_or_else(|| "no type".to_owned());
            return Err(Error::malformed(format!(
                "no JSON object where a manifest was asked for ({kind})"
            )));
        }
        Ok(ManifestAnswer {
            bytes,
            media_type,
            digest_header,
        })
    }
}

fn digest_of(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Object {
    #[expect(
        dead_code,
        clippy::zero_sized_map_values,
        reason = "only whether it can be read counts"
    )]
    fields: HashMap<String, IgnoredAny>,
}

fn is_object(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Object>(bytes).is_ok()
}
