//! `GET /v2/<name>/referrers/<digest>` (distribution-spec, "Listing Referrers").

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, header};
use url::form_urlencoded;

use super::error::RegistryError;
use super::{Answer, Asked, blobs};
use crate::pull;

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

pub(super) async fn get(asked: &Asked<'_>, name: &str, digest: &str) -> Result<Answer, RegistryError> {
    let digest = blobs::parse(digest)?;
    let repository = asked.repository(name)?;
    let served = asked.app.pull.referrers(&repository, &digest).await?;
    let filter = form_urlencoded::parse(asked.query.as_bytes()).find(|(key, _)| key == "artifactType");
    let filtered = filter.and_then(|(_, artifact_type)| pull::of_type(&served.value, &artifact_type));
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    let index = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");
    headers.insert(header::CONTENT_TYPE, index);
    if filtered.is_some() {
        headers.insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    *response.body_mut() = Body::from(filtered.unwrap_or(served.value));
    Ok(Answer::new(response, served.outcome, repository))
}
