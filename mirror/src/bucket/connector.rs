//! The HTTP client of the bucket: the TLS of this server, and bounds for what a store answers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{AUTHORIZATION, ETAG};
use http::{Method, Uri};
use http_body_util::{BodyExt as _, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use reqwest::redirect;

use crate::secret::mask_secrets;
use crate::tls::{self, TrustedCertificates};

const USER_AGENT: &str = concat!("registry-mirror/", env!("CARGO_PKG_VERSION"));
/// Below the 10 to 20 s after which stores close idle connections.
const KEPT_IDLE: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(3);
/// The longest request for credentials.
const CREDENTIALS: Duration = Duration::from_secs(10);
/// The longest answer other than an object or a listing, in bytes.
const MAX_DOCUMENT: usize = 1 << 20;
/// The longest page of a listing, in bytes.
const MAX_LIST_PAGE: usize = 2 << 20;
/// The part of an error that is read, in bytes: the code and the message come first.
const MAX_ERROR: usize = 16 << 10;
/// The shortest part of a header that is a credential, in characters.
const MIN_TOKEN: usize = 16;
/// The longest `ETag`, in bytes: an upload keeps one for each of its parts.
const MAX_ETAG: usize = 1 << 10;

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

/// A client that bounds all answers but objects, and masks in errors the credentials of their requests.
#[derive(Clone, Debug)]
struct BoundedService {
    client: reqwest::Client,
    /// A GET that succeeds has an object, or a listing.
    has_objects: bool,
}

#[async_trait]
impl HttpService for BoundedService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_get = self.has_objects && request.method() == Method::GET;
        let is_listing = is_get && is_listing(request.uri());
        let secrets = RequestSecrets::from_request(&request);
        let response = HttpService::call(&self.client, request).await?;
        let etag = response.headers().get(ETAG);
        if etag.is_some_and(|etag| etag.len() > MAX_ETAG) {
            let error = std::io::Error::other("the ETag of the answer is too long");
            return Err(HttpError::new(HttpErrorKind::Decode, error));
        }
        let (parts, body) = response.into_parts();
        let body = if !parts.status.is_success() {
            let text = beginning(body).await?;
            HttpResponseBody::from(Bytes::from(secrets.mask(&text)))
        } else if is_listing {
            limited(body, MAX_LIST_PAGE)
        } else if is_get {
            // An object is read in pieces by the caller.
            body
        } else {
            let text = limited(body, MAX_DOCUMENT).bytes().await?;
            HttpResponseBody::from(secrets.mask_error(text))
        };
        Ok(HttpResponse::from_parts(parts, body))
    }
}

fn limited(body: HttpResponseBody, most: usize) -> HttpResponseBody {
    let failed = |error| HttpError::new_boxed(HttpErrorKind::Decode, error);
    HttpResponseBody::new(Limited::new(body, most).map_err(failed))
}

/// Reads the first [`MAX_ERROR`] bytes of a body.
async fn beginning(mut body: HttpResponseBody) -> Result<Vec<u8>, HttpError> {
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let left = MAX_ERROR - text.len();
        text.extend_from_slice(&data[..data.len().min(left)]);
        if data.len() >= left {
            break;
        }
    }
    Ok(text)
}

/// Returns `true` for a listing of objects in the API of S3 or Azure.
fn is_listing(uri: &Uri) -> bool {
    let parameters = uri.query().unwrap_or_default().split('&');
    parameters
        .map(|parameter| parameter.split('=').next().unwrap_or_default())
        .any(|name| ["list-type", "comp"].contains(&name))
}

/// The credentials that a request carries, which its answer may repeat.
struct RequestSecrets(Vec<String>);

impl RequestSecrets {
    /// Collects the credentials of the headers and of the query.
    fn from_request(request: &HttpRequest) -> Self {
        let mut found = Vec::new();
        for name in [AUTHORIZATION.as_str(), "x-amz-security-token"] {
            for value in request.headers().get_all(name) {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                let parts = value
                    .split([' ', ','])
                    .filter_map(|part| match part.split_once('=') {
                        Some(("Signature", signature)) => Some(signature),
                        Some((name, _)) if name.len() < MIN_TOKEN => None,
                        _ => Some(part),
                    });
                found.extend(parts.filter(|part| part.len() >= MIN_TOKEN).map(str::to_owned));
                found.push(value);
            }
        }
        let query = request.uri().query().unwrap_or_default();
        let parameters = url::form_urlencoded::parse(query.as_bytes());
        let is_secret = |name: &str| {
            let name = name.to_ascii_lowercase();
            [
                "sig",
                "x-amz-signature",
                "x-amz-security-token",
                "x-goog-signature",
            ]
            .contains(&name.as_str())
        };
        found.extend(
            parameters
                .filter(|(name, _)| is_secret(name))
                .map(|(_, value)| value.into_owned()),
        );
        Self(found)
    }

    fn mask(&self, text: &[u8]) -> String {
        mask_secrets(&String::from_utf8_lossy(text), self.0.iter().map(String::as_str))
    }

    /// Masks an answer that is an error with the status of a success, as S3 sends it while an upload ends.
    fn mask_error(&self, text: Bytes) -> Bytes {
        let head = &text[..text.len().min(MAX_ERROR)];
        if head.windows(6).any(|part| part == b"<Error") {
            Bytes::from(self.mask(head))
        } else {
            text
        }
    }
}
