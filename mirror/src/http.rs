//! The registry API: the pull side of the distribution-spec, read-only.

mod access_log;
mod auth;
pub mod connection;
mod endpoint_response;
mod endpoints;
mod error;
mod failures;
mod headers;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod peer;
mod peer_port;
pub mod route;
mod span;

use std::borrow::Cow;
use std::sync::Arc;

use axum::response::IntoResponse;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use tracing::Instrument;

use access_log::Record;
pub use access_log::RecordedBody;
pub use auth::{Htpasswd, MAX_BCRYPT_COST, check_htpasswd};
use connection::SendfileQueue;
use endpoint_response::EndpointResponse;
use endpoints::{base, blobs, manifests, referrers, tags};
use error::RegistryError;
use failures::{Failed, FailureLog, Kind};
pub use peer::Peer;
use route::Route;

use crate::client_table::ClientTable;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::name::Repository;
use crate::peers::{Fleet, PEER_ERROR};
use crate::pull::{Pull, UpstreamSelectionError};
use crate::query;
use crate::transfer_coding;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The longest URL, in bytes, that a response redirects to.
const MAX_LOCATION: usize = 4 * 1024;

/// The settings of the registry API.
pub struct Settings {
    /// The scheme of client requests: `http` or `https`.
    pub scheme: &'static str,
    /// The prefix before `/v2/`: empty, or with a slash at its start and none at its end.
    pub prefix: String,
    /// The headers of every response.
    pub headers: HeaderMap,
    /// The users that may pull; `None`: every client.
    pub access: Option<Htpasswd>,
    /// `true` if each request gets a line in the log.
    pub access_log: bool,
    /// The health checks: while one fails, clients get 503.
    pub health: Health,
}

struct App {
    pull: Arc<Pull>,
    settings: Settings,
    metrics: Metrics,
    failures: FailureLog,
    clients: ClientTable,
    /// The other replicas, if this is the service of the peer port.
    fleet: Option<Arc<Fleet>>,
}

/// A request as the endpoints read it.
struct RequestContext<'a> {
    app: &'a App,
    method: &'a Method,
    headers: &'a HeaderMap,
    peer: &'a Peer,
    query: &'a str,
    /// `true` if the client can detect a truncated body without Content-Length (HTTP/1.1 chunked, HTTP/2); HTTP/1.0
    /// cannot.
    detects_truncation: bool,
    sendfile: Option<&'a SendfileQueue>,
}

/// The service that answers requests; clones share their state.
///
/// Connections call it directly: a router and its boxed futures would cost each hit as much as finding the file.
#[derive(Clone)]
pub struct Service {
    app: Arc<App>,
}

/// Creates the service on top of a pull path.
pub fn service(pull: Arc<Pull>, settings: Settings, metrics: Metrics) -> Service {
    new_service(pull, settings, metrics, None)
}

/// Creates the service of the peer port, for the other replicas of this mirror alone.
pub(crate) fn peer_service(
    pull: Arc<Pull>,
    settings: Settings,
    metrics: Metrics,
    fleet: Arc<Fleet>,
) -> Service {
    new_service(pull, settings, metrics, Some(fleet))
}

fn new_service(pull: Arc<Pull>, settings: Settings, metrics: Metrics, fleet: Option<Arc<Fleet>>) -> Service {
    let app = Arc::new(App {
        pull,
        settings,
        metrics,
        failures: FailureLog::default(),
        clients: ClientTable::default(),
        fleet,
    });
    Service { app }
}

impl Service {
    /// Returns the clients of all requests.
    pub(crate) fn clients(&self) -> ClientTable {
        self.app.clients.clone()
    }

    /// Returns the response to a request; no endpoint reads a request body.
    pub async fn answer(self, request: Parts, peer: &Peer) -> http::Response<RecordedBody> {
        let app = self.app;
        let replica = app.fleet.is_some().then(|| peer_port::as_replica(peer));
        let peer = replica.as_ref().unwrap_or(peer);
        let route = Route::parse(request.uri.path(), &app.settings.prefix);
        let span = span::begin(&request, &route, &app.settings, peer);
        let mut record = Record::begin(&app, route.kind(), &request, peer, &span);
        let context = RequestContext {
            app: &app,
            method: &request.method,
            headers: &request.headers,
            peer,
            query: request.uri.query().unwrap_or_default(),
            detects_truncation: request.version >= http::Version::HTTP_11,
            sendfile: peer
                .sendfile
                .as_ref()
                .filter(|_| request.version <= http::Version::HTTP_11),
        };
        let result = match refuse(&app, &request) {
            Some(error) => Err(error),
            None => dispatch(&context, &request, &route, &mut record.user)
                .instrument(span)
                .await
                // Paths that are not clean always end in an error.
                .or_else(|error| redirect(&request.uri, &app.settings.prefix).ok_or(error)),
        };
        let response = match result {
            Ok(response) => {
                if let Some(repository) = &response.repository {
                    peer.record_pull(&app.clients, &repository.host, record.started);
                }
                response.with_origin()
            }
            Err(error) => context.on_error(&route, error, &record),
        };
        let mut response = with_common_headers(response, &app.settings.headers, &record.id);
        if let Some(fleet) = &app.fleet
            && let Ok(authorization) = peer_port::admit(fleet, &request)
        {
            response = Box::pin(peer_port::sign(&authorization, &request, &route, response)).await;
        }
        record.attach(response)
    }
}

/// Returns the error for a request that no endpoint answers.
fn refuse(app: &App, request: &Parts) -> Option<RegistryError> {
    // Two servers in a chain must not read different hosts from a request (RFC 9112, 3.2).
    let hosts = request.headers.get_all(header::HOST).iter().count();
    if request.version == http::Version::HTTP_11 && hosts != 1 {
        return Some(RegistryError::no_single_host());
    }
    if !transfer_coding::is_supported(&request.headers) {
        return Some(RegistryError::unsupported_transfer_coding());
    }
    // A query alone has the path `/` in an absolute target, and none in `:path`.
    let (path, target) = (request.uri.path(), request.uri.path_and_query());
    let is_query = |target: &PathAndQuery| target.as_str().starts_with('?');
    let is_of_query = request.version == http::Version::HTTP_2 && target.is_some_and(is_query);
    let is_of_server = request.method == Method::OPTIONS && path == "*";
    let has_path = path.starts_with('/') && !is_of_query;
    if !(has_path || is_of_server || request.method == Method::CONNECT) {
        return Some(RegistryError::no_path());
    }
    let failing = app.settings.health.is_failing();
    failing.then(RegistryError::unhealthy)
}

/// Returns the redirect from a path that is not clean to the one that is; see [`route::clean`].
fn redirect(uri: &Uri, prefix: &str) -> Option<EndpointResponse> {
    let mut location = route::clean(uri.path(), prefix)?;
    if let Some(query) = uri.query() {
        location.extend(["?", query]);
    }
    // No path with a name, a reference and a page is as long as that.
    let location = (location.len() <= MAX_LOCATION).then_some(location)?;
    let location = HeaderValue::try_from(location).ok()?;
    let mut response = StatusCode::MOVED_PERMANENTLY.into_response();
    response.headers_mut().insert(header::LOCATION, location);
    Some(EndpointResponse::plain(response))
}

/// Dispatches a request to the endpoint of its route.
async fn dispatch(
    context: &RequestContext<'_>,
    request: &Parts,
    route: &Route<'_>,
    user: &mut Option<Box<str>>,
) -> Result<EndpointResponse, RegistryError> {
    if let Some(fleet) = &context.app.fleet {
        peer_port::admit(fleet, request)?;
        if let Some(hello) = peer_port::hello(fleet, request) {
            return Ok(hello);
        }
        // Boxed, because its future would enlarge that of a blob.
        if let Some(answer) = Box::pin(peer_port::document(fleet, request)).await {
            return answer;
        }
    }
    if context.method == Method::OPTIONS {
        return Ok(EndpointResponse::plain(base::preflight()));
    }
    if let Some(access) = &context.app.settings.access
        && *route != Route::Root
    {
        access.admit(context.headers, &context.peer.name, user).await?;
    }
    if !matches!(*context.method, Method::GET | Method::HEAD) || *route == Route::Upload {
        return Err(reject_write(route));
    }
    match route {
        Route::Manifest { name, reference } => manifests::get(context, name, reference).await,
        Route::Blob { name, digest } => blobs::get(context, name, digest).await,
        // Boxed, because their futures would enlarge that of a manifest or a blob.
        route => Box::pin(dispatch_unversioned(context, route)).await,
    }
}

/// Dispatches a request to an endpoint whose responses have no validator.
async fn dispatch_unversioned(
    context: &RequestContext<'_>,
    route: &Route<'_>,
) -> Result<EndpointResponse, RegistryError> {
    let response = match route {
        Route::Root | Route::Base => EndpointResponse::plain(base::get()),
        Route::Catalog => tags::catalog(context).await?,
        Route::Tags { name } => tags::list(context, name).await?,
        Route::Referrers { name, digest } => referrers::get(context, name, digest).await?,
        _ => return Err(RegistryError::nothing_here()),
    };
    headers::check_if_match(context.headers, None)?;
    Ok(response)
}

/// Returns the error for a write: 405, but a malformed reference or digest takes precedence (distribution-spec end-7,
/// end-9, end-10).
fn reject_write(route: &Route<'_>) -> RegistryError {
    let mistake = match route {
        Route::Manifest { reference, .. } => manifests::parse(reference).err(),
        Route::Blob { digest, .. } => blobs::parse(digest).err(),
        _ => None,
    };
    mistake.unwrap_or_else(RegistryError::read_only)
}

/// Adds the headers of every response.
fn with_common_headers(
    mut response: EndpointResponse,
    configured: &HeaderMap,
    id: &HeaderValue,
) -> EndpointResponse {
    let cache_control = default_cache_control(response.response.status());
    let headers = response.response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(access_log::REQUEST_ID, id.clone());
    // Headers of the content take precedence over configured ones, as in Distribution.
    for name in configured
        .keys()
        .filter(|name| !headers.contains_key(*name))
        .collect::<Vec<_>>()
    {
        for value in configured.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    if let Some(value) = cache_control {
        headers.entry(header::CACHE_CONTROL).or_insert(value);
    }
    response
}

/// Returns the `Cache-Control` of a response whose content may change.
fn default_cache_control(status: StatusCode) -> Option<HeaderValue> {
    match status {
        StatusCode::OK | StatusCode::NOT_MODIFIED => Some(HeaderValue::from_static("no-cache")),
        // Caches keep a 404 without it, too (RFC 9111, 4.2.2).
        status if status.is_client_error() || status.is_server_error() => {
            Some(HeaderValue::from_static("no-store"))
        }
        _ => None,
    }
}

impl RequestContext<'_> {
    /// Returns whether another replica of this mirror asks.
    fn is_of_replica(&self) -> bool {
        self.app.fleet.is_some()
    }

    /// Returns the raw value of `?ns=`, in which containerd names the registry that the client requests.
    fn ns(&self) -> Option<&str> {
        query::encoded_value(self.query, "ns")
    }

    /// Returns the decoded value of `?ns=`.
    fn registry(&self) -> Option<Cow<'_, str>> {
        let ns = self.ns()?;
        Some(percent_encoding::percent_decode_str(ns).decode_utf8_lossy())
    }

    /// Logs a failed request and returns its response.
    fn on_error(&self, route: &Route<'_>, error: RegistryError, record: &Record) -> EndpointResponse {
        let named = self.registry().and_then(|ns| self.app.pull.host(&ns));
        let (name, reference) = route.subject();
        let repository = name.and_then(|name| self.repository(name).ok());
        let upstream = repository
            .as_ref()
            .map(|repository| &repository.host)
            .or(named.as_ref());
        self.app.failures.log(Failed {
            level: error.level(),
            kind: Kind {
                upstream: upstream.cloned(),
                status: error.status.as_u16(),
                code: Some(error.code),
                class: error.class,
            },
            reason: error.reason().to_owned(),
            repository: repository.as_ref().map(ToString::to_string).or(name.map(shown)),
            reference: reference.map(shown),
            user: record.user.clone(),
            id: record.id.clone(),
        });
        let passed_on = error.passed_on().filter(|_| self.is_of_replica());
        let (mut response, upstream) = (error.into_response(upstream), upstream.cloned());
        if let Some(error) = passed_on {
            response.headers_mut().insert(PEER_ERROR, error);
        }
        // Names the upstream that the client requested with `?ns=`, if it is configured.
        if let Some(Ok(host)) = named.map(|host| HeaderValue::from_str(host.as_str())) {
            response.headers_mut().insert(NAMESPACE, host);
        }
        EndpointResponse {
            upstream,
            ..EndpointResponse::plain(response)
        }
    }

    fn repository(&self, name: &str) -> Result<Repository, RegistryError> {
        self.app
            .pull
            .select_repository(self.registry().as_deref(), name)
            .map_err(|error| match error {
                UpstreamSelectionError::InvalidName(_) => RegistryError::name_invalid(error.to_string()),
                _ => RegistryError::name_unknown(error.to_string()),
            })
    }
}

/// Returns a text of a client, truncated for the log.
fn shown(text: &str) -> String {
    text.chars().take(255).collect()
}
