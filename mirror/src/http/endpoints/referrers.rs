//! `GET /v2/<name>/referrers/<digest>` (distribution-spec, "Listing Referrers").

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};

use super::blobs;
use super::document::hold_document;
use crate::http::error::RegistryError;
use crate::http::{EndpointResponse, RequestContext};
use crate::pull::{self, Served};
use crate::query;

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Returns the referrers of a digest, filtered by `artifactType` if the request asks for it.
pub(in crate::http) async fn get(
    context: &RequestContext<'_>,
    name: &str,
    digest: &str,
) -> Result<EndpointResponse, RegistryError> {
    let digest = blobs::parse(digest)?;
    let repository = context.repository(name)?;
    let fetch = || async {
        let (pull, peer) = (&context.app.pull, &context.peer.name);
        Ok(pull.referrers(&repository, &digest, peer).await?)
    };
    // The filter needs as much memory as the list at most, and the list may leave the cache meanwhile.
    let length = |served: &Served<Bytes>| served.value.len();
    let served = hold_document(&context.peer.memory, fetch, length).await?;
    // Registries read an empty value as no filter.
    let filter = query::value(context.query, "artifactType").filter(|value| !value.is_empty());
    let filtered = match filter {
        Some(artifact_type) => pull::of_type(&served.document.value, &artifact_type).await,
        None => None,
    };
    let outcome = served.document.outcome;
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    let index = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");
    headers.insert(header::CONTENT_TYPE, index);
    if filtered.is_some() {
        headers.insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    *response.body_mut() = served.body(|served| filtered.unwrap_or(served.value));
    Ok(EndpointResponse::new(response, outcome, repository))
}
