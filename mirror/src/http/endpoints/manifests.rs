//! `GET` and `HEAD /v2/<name>/manifests/<reference>` (distribution-spec, "Pulling manifests").

use http::{Method, StatusCode, header};

use super::document::hold_document;
use crate::http::error::RegistryError;
use crate::http::{EndpointResponse, RequestContext, headers, peer_port};
use crate::name::{InvalidName, Reference, Repository};
use crate::pull::{ClientRequest, Served};
use crate::store::Manifest;

/// Returns a manifest, or its headers.
pub(in crate::http) async fn get(
    context: &RequestContext<'_>,
    name: &str,
    reference: &str,
) -> Result<EndpointResponse, RegistryError> {
    let reference = parse(reference)?;
    let repository = context.repository(name)?;
    let fetch = || served(context, &repository, &reference);
    let is_head = context.method == Method::HEAD;
    let length = |served: &Served<Manifest>| if is_head { 0 } else { served.value.bytes().len() };
    let served = hold_document(&context.peer.memory, fetch, length).await?;
    let (manifest, outcome, origin) = (
        &served.document.value,
        served.document.outcome,
        served.document.origin,
    );
    let etag = headers::etag(manifest.digest());
    headers::check_if_match(context.headers, Some(&etag))?;
    let mut response = headers::response(context.headers, &etag);
    let own = response.headers_mut();
    own.insert(header::CONTENT_TYPE, manifest.content_type().clone());
    own.insert(header::CONTENT_LENGTH, manifest.bytes().len().into());
    if let Reference::Digest(_) = reference {
        own.insert(header::CACHE_CONTROL, headers::IMMUTABLE);
    }
    if let Reference::Tag(tag) = &reference
        && context.is_of_replica()
        && let Some(age) = context.app.pull.tag_age(&repository, tag).await
    {
        response.headers_mut().insert(header::AGE, age.as_secs().into());
    }
    if response.status() == StatusCode::OK {
        if !is_head && !context.is_of_replica() {
            context.app.pull.count_pull(manifest);
        }
        *response.body_mut() = served.body(|served| served.value.bytes().clone());
    }
    Ok(EndpointResponse {
        origin,
        ..EndpointResponse::new(response, outcome, repository)
    })
}

/// Returns a manifest. Another replica may want only one that is here.
async fn served(
    context: &RequestContext<'_>,
    repository: &Repository,
    reference: &Reference,
) -> Result<Served<Manifest>, RegistryError> {
    let pull = &context.app.pull;
    if context.is_of_replica() && peer_port::is_only_if_cached(context.headers) {
        let held = pull.held_manifest(repository, reference).await;
        return held.map(Served::hit).ok_or_else(RegistryError::not_held);
    }
    let client = ClientRequest {
        headers: context.headers,
        peer: &context.peer.name,
    };
    Ok(pull.manifest(repository, reference, client).await?)
}

/// Parses a tag or digest of a path. An invalid tag is an unknown tag (404); a malformed digest is an error of the client
/// (400).
pub(in crate::http) fn parse(reference: &str) -> Result<Reference, RegistryError> {
    reference.parse().map_err(|error: InvalidName| {
        if reference.contains(':') {
            return RegistryError::digest_invalid(
                "the reference is neither a tag nor a sha256 or sha512 digest",
            );
        }
        RegistryError::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", error.to_string())
    })
}
