//! The responses of endpoints.

use axum::response::Response;
use http::{HeaderName, HeaderValue, header};

use super::NAMESPACE;
use crate::digest::Digest;
use crate::metrics::{self, Outcome};
use crate::name::{Host, Repository};

const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// A response of an endpoint, with data for headers, log and metrics.
pub(super) struct EndpointResponse {
    pub(super) response: Response,
    pub(super) outcome: Outcome,
    /// The upstream of a request that failed, if it is known.
    pub(super) upstream: Option<Host>,
    pub(super) repository: Option<Repository>,
    /// The digest of the blob in the body.
    pub(super) digest: Option<Digest>,
    /// The origin of bytes that the cache did not have.
    pub(super) origin: metrics::Source,
}

impl EndpointResponse {
    pub(super) fn new(response: Response, outcome: Outcome, repository: Repository) -> Self {
        Self {
            repository: Some(repository),
            outcome,
            ..Self::plain(response)
        }
    }

    pub(super) fn plain(response: Response) -> Self {
        Self {
            response,
            outcome: Outcome::None,
            upstream: None,
            repository: None,
            digest: None,
            origin: metrics::Source::Upstream,
        }
    }

    /// Adds the headers that name the origin of the content.
    pub(super) fn with_origin(mut self) -> Self {
        let headers = self.response.headers_mut();
        let Some(cache) = self.outcome.cache_status() else {
            return self;
        };
        headers.insert(X_CACHE, HeaderValue::from_static(cache));
        if self.outcome == Outcome::Stale {
            let warning = "299 - \"upstream could not be asked: this is the last known answer\"";
            headers.insert(header::WARNING, HeaderValue::from_static(warning));
        }
        if let Some(Ok(host)) = self
            .repository
            .as_ref()
            .map(|r| HeaderValue::from_str(r.host.as_str()))
        {
            headers.insert(NAMESPACE, host);
        }
        self
    }
}
