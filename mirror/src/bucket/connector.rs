//! The HTTP client of the bucket: the TLS of this server, and bounds for what a store answers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use http_body_util::{BodyExt as _, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use reqwest::redirect;

use crate::tls::{self, TrustedCertificates};

const USER_AGENT: &str = concat!("registry-mirror/", env!("CARGO_PKG_VERSION"));
/// Below the 10 to 20 s after which stores close idle connections.
const KEPT_IDLE: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(3);
/// The longest request for credentials.
const CREDENTIALS: Duration = Duration::from_secs(10);
/// The longest answer other than an object, in bytes.
const MAX_DOCUMENT: usize = 1 << 20;

/// A connector that gives every client of a store the same HTTP client.
#[derive(Clone, Debug)]
pub(super) struct Connector(BoundedService);

impl Connector {
    /// Creates the HTTP client.
    ///
    /// # Errors
    /// The provider of cryptography cannot be used.
    pub(super) fn new(trusted: Arc<TrustedCertificates>, skip_verify: bool) -> Result<Self, String> {
        let builder = builder();
        let builder = if skip_verify {
            builder.tls_danger_accept_invalid_certs(true)
        } else {
            let config = tls::client_config(trusted, false).map_err(|error| error.to_string())?;
            builder.tls_backend_preconfigured(config)
        };
        Ok(Self(BoundedService {
            client: builder.build().map_err(tls::describe)?,
            has_objects: true,
        }))
    }

    /// Creates the HTTP client for requests for credentials, of which all answers are short; `is_local`: they come from an
    /// agent of the node, which no proxy reaches.
    ///
    /// # Errors
    /// The provider of cryptography cannot be used.
    pub(super) fn for_credentials(trusted: Arc<TrustedCertificates>, is_local: bool) -> Result<Self, String> {
        let config = tls::client_config(trusted, false).map_err(|error| error.to_string())?;
        let builder = builder().timeout(CREDENTIALS).tls_backend_preconfigured(config);
        let builder = if is_local { builder.no_proxy() } else { builder };
        Ok(Self(BoundedService {
            client: builder.build().map_err(tls::describe)?,
            has_objects: false,
        }))
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT)
        .pool_idle_timeout(KEPT_IDLE)
        .http1_only()
}

impl Connector {
    /// Returns the HTTP client.
    pub(super) fn client(&self) -> reqwest::Client {
        self.0.client.clone()
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// A client that reads no more of an error, or of an answer that is no object, than [`MAX_DOCUMENT`].
#[derive(Clone, Debug)]
struct BoundedService {
    client: reqwest::Client,
    /// A GET that succeeds has an object.
    has_objects: bool,
}

#[async_trait]
impl HttpService for BoundedService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_object = self.has_objects && request.method() == Method::GET;
        let response = HttpService::call(&self.client, request).await?;
        // An object is read in pieces by the caller.
        if is_object && response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_DOCUMENT)
            .map_err(|error| HttpError::new_boxed(HttpErrorKind::Decode, error));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}
