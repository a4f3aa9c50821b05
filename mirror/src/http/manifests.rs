//! `GET` and `HEAD /v2/<name>/manifests/<reference>` (distribution-spec, "Pulling manifests").

use axum::body::Body;
use http::{HeaderValue, StatusCode, header};

use super::error::RegistryError;
use super::{Answer, Asked, conditional};
use crate::name::{InvalidName, Reference};

pub(super) async fn get(asked: &Asked<'_>, name: &str, reference: &str) -> Result<Answer, RegistryError> {
    let reference = parse(reference)?;
    let repository = asked.repository(name)?;
    let served = asked
        .app
        .pull
        .manifest(&repository, &reference, asked.headers)
        .await?;
    let manifest = served.value;
    let etag = conditional::etag(manifest.digest());
    let mut response = conditional::response(asked.headers, &etag);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type(&manifest.media_type));
    headers.insert(header::CONTENT_LENGTH, manifest.bytes().len().into());
    if let Reference::Digest(_) = reference {
        headers.insert(header::CACHE_CONTROL, conditional::IMMUTABLE);
    }
    if response.status() == StatusCode::OK {
        *response.body_mut() = Body::from(manifest.bytes().clone());
    }
    Ok(Answer::new(response, served.outcome, repository))
}

/// A tag that can't be one is a tag that is not there; a broken digest is a mistake of the client.
pub(super) fn parse(reference: &str) -> Result<Reference, RegistryError> {
    reference.parse().map_err(|error: InvalidName| {
        if reference.contains(':') {
            return RegistryError::digest_invalid(
                "the reference is neither a tag nor a sha256 or sha512 digest",
            );
        }
        RegistryError::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", error.to_string())
    })
}

/// Upstream's word where it can stand in a header.
fn content_type(media_type: &str) -> HeaderValue {
    HeaderValue::from_str(media_type).unwrap_or(HeaderValue::from_static("application/json"))
}
