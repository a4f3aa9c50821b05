//! The registry's face: the pull side of the distribution-spec, read-only.

mod access;
mod auth;
mod blobs;
mod body;
mod conditional;
mod error;
mod failures;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod lists;
mod manifests;
mod patience;
mod referrers;
pub mod route;
mod sendfile;
pub mod serve;
mod span;
mod stored;
mod threads;
pub mod tls;

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use tracing::Instrument;

use access::Record;
pub use access::Recorded;
pub use auth::{Htpasswd, trouble_with_users};
use error::RegistryError;
use failures::{Failed, FailureLog, Kind};
use route::Route;
use sendfile::Pieces;

use crate::digest::Digest;
use crate::health::Health;
use crate::metrics::{Metrics, Outcome};
use crate::name::Repository;
use crate::pull::{NoChoice, Pull};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// What the configuration says of the answers.
pub struct Settings {
    /// What clients speak: `http` or `https`.
    pub scheme: &'static str,
    /// What stands before `/v2/`: empty, or with a slash at its start and none at its end.
    pub prefix: String,
    /// Put into every answer.
    pub headers: HeaderMap,
    /// Who may pull; `None`: anybody.
    pub access: Option<Htpasswd>,
    /// Whether each request gets a line in the log.
    pub access_log: bool,
    /// While one of these fails, nobody is served.
    pub health: Health,
}

struct App {
    pull: Arc<Pull>,
    settings: Settings,
    metrics: Metrics,
    failures: FailureLog,
}

/// A request as the endpoints see it.
struct Asked<'a> {
    app: &'a App,
    method: &'a Method,
    headers: &'a HeaderMap,
    query: &'a str,
    /// What is cut can be told from what is whole, though no length was announced: not so before HTTP/1.1.
    cuts_show: bool,
    pieces: Option<&'a Pieces>,
}

/// An endpoint's answer, and what is to be said of it.
struct Answer {
    response: Response,
    outcome: Outcome,
    repository: Option<Repository>,
    /// The blob that a body is sent of.
    digest: Option<Digest>,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub struct Peer {
    /// For the log.
    name: Arc<str>,
    /// What the kernel is to send, where the connection can have it do so.
    pieces: Option<Pieces>,
}

impl Peer {
    /// A client that gets all bytes through the body of its answer.
    pub fn named(name: &str) -> Self {
        let (name, pieces) = (name.into(), None);
        Self { name, pieces }
    }
}

/// Answers requests. Clones share everything.
///
/// Connections call it directly: a router and its boxed futures would cost each hit as much as finding the file does.
#[derive(Clone)]
pub struct Service {
    app: Arc<App>,
}

/// The service over this pull path.
pub fn service(pull: Arc<Pull>, settings: Settings, metrics: Metrics) -> Service {
    let app = Arc::new(App {
        pull,
        settings,
        metrics,
        failures: FailureLog::default(),
    });
    Service { app }
}

impl Service {
    /// Returns the answer to one request, whose body is not read: no endpoint has one.
    pub async fn answer(self, request: Parts, peer: &Peer) -> http::Response<Recorded> {
        let app = self.app;
        let route = Route::parse(request.uri.path(), &app.settings.prefix);
        let span = span::begin(&request, &route, &app.settings, peer);
        let mut record = Record::begin(&app, route.kind(), &request)
            .logged(&request, peer)
            .traced(span.clone());
        let asked = Asked {
            app: &app,
            method: &request.method,
            headers: &request.headers,
            query: request.uri.query().unwrap_or_default(),
            cuts_show: request.version >= http::Version::HTTP_11,
            pieces: peer
                .pieces
                .as_ref()
                .filter(|_| request.version <= http::Version::HTTP_11),
        };
        let answer = match refuse(&app, &request) {
            Some(error) => Err(error),
            None => endpoint(&asked, &route, &mut record.user)
                .instrument(span)
                .await
                // Paths that are not clean always end in an error.
                .or_else(|error| redirect(&request.uri, &app.settings.prefix).ok_or(error)),
        };
        let answer = match answer {
            Ok(answer) => answer.named(),
            Err(error) => asked.failed(&route, error, &record),
        };
        let answer = finished(answer, &app.settings.headers, &record.id);
        record.answered(answer)
    }
}

/// Returns the error for a request that no endpoint answers.
fn refuse(app: &App, request: &Parts) -> Option<RegistryError> {
    // Two servers in a row must not understand a request as one for different hosts (RFC 9112, 3.2).
    let hosts = request.headers.get_all(header::HOST).iter().count();
    if request.version == http::Version::HTTP_11 && hosts != 1 {
        return Some(RegistryError::no_single_host());
    }
    let failing = app.settings.health.is_failing();
    failing.then(RegistryError::unhealthy)
}

/// Returns the redirect from a path that is not clean to the one that is; see [`route::clean`].
fn redirect(uri: &Uri, prefix: &str) -> Option<Answer> {
    let mut location = route::clean(uri.path(), prefix)?;
    if let Some(query) = uri.query() {
        location.extend(["?", query]);
    }
    let location = HeaderValue::try_from(location).ok()?;
    let mut response = StatusCode::MOVED_PERMANENTLY.into_response();
    response.headers_mut().insert(header::LOCATION, location);
    Some(Answer::plain(response))
}

/// Answers by the endpoint of the route.
async fn endpoint(
    asked: &Asked<'_>,
    route: &Route<'_>,
    user: &mut Option<Box<str>>,
) -> Result<Answer, RegistryError> {
    if asked.method == Method::OPTIONS {
        return Ok(Answer::plain(preflight()));
    }
    if let Some(access) = &asked.app.settings.access
        && *route != Route::Root
    {
        access.admit(asked.headers, user).await?;
    }
    if !matches!(*asked.method, Method::GET | Method::HEAD) || *route == Route::Upload {
        return Err(refused_change(route));
    }
    match route {
        Route::Root | Route::Base => Ok(Answer::plain(base())),
        // Boxed, as a request for a manifest or a blob would make room for them.
        Route::Catalog => Box::pin(lists::catalog(asked)).await,
        Route::Manifest { name, reference } => manifests::get(asked, name, reference).await,
        Route::Blob { name, digest } => blobs::get(asked, name, digest).await,
        Route::Tags { name } => Box::pin(lists::tags(asked, name)).await,
        Route::Referrers { name, digest } => Box::pin(referrers::get(asked, name, digest)).await,
        Route::Upload | Route::Unknown => Err(RegistryError::nothing_here()),
    }
}

/// Nothing can be changed here. What nothing can be named by is a mistake before that (end-7, end-9, end-10).
fn refused_change(route: &Route<'_>) -> RegistryError {
    let mistake = match route {
        Route::Manifest { reference, .. } => manifests::parse(reference).err(),
        Route::Blob { digest, .. } => blobs::parse(digest).err(),
        _ => None,
    };
    mistake.unwrap_or_else(RegistryError::read_only)
}

/// Returns the answer to `OPTIONS`, which browsers send before a request to another origin. They send no credentials in
/// it, so it needs no login.
fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(header::ALLOW, error::ALLOWED);
    response
}

/// `GET /v2/` (end-1): this is a registry.
fn base() -> Response {
    let mut response = Response::new(Body::from("{}"));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns the answer with the headers that every answer has.
fn finished(mut answer: Answer, configured: &HeaderMap, id: &HeaderValue) -> Answer {
    let cache_control = default_cache_control(answer.response.status());
    let headers = answer.response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(access::REQUEST_ID, id.clone());
    // What an answer says of its content stays, as with Distribution.
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
    answer
}

/// Returns the `Cache-Control` of an answer whose content may be another one the next time.
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

impl Asked<'_> {
    /// containerd's `?ns=`: the registry that the client believes to talk to.
    fn ns(&self) -> Option<&str> {
        let value = |pair: &'_ str| pair.strip_prefix("ns=").is_some_and(|ns| !ns.is_empty());
        self.query
            .split('&')
            .find(|pair| value(pair))
            .and_then(|pair| pair.strip_prefix("ns="))
    }

    /// The same, decoded.
    fn registry(&self) -> Option<Cow<'_, str>> {
        let ns = self.ns()?;
        Some(percent_encoding::percent_decode_str(ns).decode_utf8_lossy())
    }

    /// Returns the answer to a request that failed, once the log has it.
    fn failed(&self, route: &Route<'_>, error: RegistryError, record: &Record) -> Answer {
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
        let mut response = error.into_response(upstream);
        // Says for which registry it is, where the client named one that is known here.
        if let Some(Ok(host)) = named.map(|host| HeaderValue::from_str(host.as_str())) {
            response.headers_mut().insert(NAMESPACE, host);
        }
        Answer::plain(response)
    }

    fn repository(&self, name: &str) -> Result<Repository, RegistryError> {
        self.app
            .pull
            .choose(self.registry().as_deref(), name)
            .map_err(|error| match error {
                NoChoice::InvalidName(_) => RegistryError::name_invalid(error.to_string()),
                _ => RegistryError::name_unknown(error.to_string()),
            })
    }
}

/// Returns what a client sent, within limits.
fn shown(text: &str) -> String {
    text.chars().take(255).collect()
}

impl Answer {
    fn new(response: Response, outcome: Outcome, repository: Repository) -> Self {
        Self {
            repository: Some(repository),
            outcome,
            ..Self::plain(response)
        }
    }

    fn plain(response: Response) -> Self {
        Self {
            response,
            outcome: Outcome::None,
            repository: None,
            digest: None,
        }
    }

    /// Says in the headers where the content comes from.
    fn named(mut self) -> Self {
        let headers = self.response.headers_mut();
        let cache = match self.outcome {
            Outcome::Hit => "HIT",
            Outcome::Stale => "STALE",
            Outcome::Coalesced => "COALESCED",
            Outcome::Miss | Outcome::PassThrough => "MISS",
            Outcome::None => return self,
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
