//! Transport: one request to one address, without authorization and redirects.

pub(super) mod address_policy;
pub(super) mod budget;
pub(super) mod clients;
mod host_pool;
pub(super) mod reachability;
pub(super) mod redirect;
pub(super) mod span;

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method};
use reqwest::{Client, Response};
use tokio::sync::Semaphore;
use tracing::{Instrument, Span};
use url::Url;

use super::error::{Error, Failure, describe};
use super::host_cooldown::HostCooldowns;
use super::last_error::ErrorRecord;
use super::options::Timeouts;
use super::rate_limit::RequestClass;
use crate::metrics::{Kind, UpstreamMetrics};
use crate::name::Host;
use crate::{traces, transfer_coding};
use address_policy::AddressPolicy;
use budget::RequestBudget;
use clients::{ClientRoute, Clients};
use reachability::{Reachability, ReachabilityState};

/// The connections to one upstream and to the hosts that it names.
pub(super) struct Transport {
    pub(super) host: Host,
    /// Without user information, query and fragment; the path ends without a slash.
    pub(super) remote: Url,
    pub(super) timeouts: Timeouts,
    pub(super) metrics: Arc<UpstreamMetrics>,
    pub(super) reachability: ReachabilityState,
    pub(super) addresses: Arc<AddressPolicy>,
    /// Hosts other than the registry that answered 429.
    pub(super) cooldowns: HostCooldowns,
    pub(super) errors: ErrorRecord,
    pub(super) clients: Clients,
    /// The places of large documents (see [`DocumentPlace`](super::json_body::DocumentPlace)).
    pub(super) large_documents: Arc<Semaphore>,
}

/// An HTTP request.
#[derive(Clone)]
pub(super) struct HttpRequest {
    pub(super) class: RequestClass,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// A form.
    pub(super) form: Option<String>,
    pub(super) budget: RequestBudget,
}

impl HttpRequest {
    /// Creates a GET without headers.
    pub(super) fn get(class: RequestClass, url: Url, budget: RequestBudget) -> Self {
        Self {
            class,
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            form: None,
            budget,
        }
    }

    /// Returns the kind of content that the request is for.
    pub(super) fn kind(&self) -> Kind {
        let path = self.url.path();
        match self.class {
            RequestClass::Manifest => Kind::Manifest,
            RequestClass::Blob => Kind::Blob,
            RequestClass::List if path.ends_with("/tags/list") => Kind::Tags,
            RequestClass::List if path.contains("/referrers/") => Kind::Referrers,
            RequestClass::Head | RequestClass::Token | RequestClass::List => Kind::Other,
        }
    }
}

impl Transport {
    /// Returns `true` for a URL with the origin of the registry.
    pub(super) fn is_registry_origin(&self, url: &Url) -> bool {
        url.origin() == self.remote.origin()
    }

    /// Returns a URL below `/v2/` of the upstream; `rest` consists of validated names.
    pub(super) fn url(&self, rest: &str) -> Url {
        let mut url = self.remote.clone();
        url.set_path(&format!("{}/v2/{rest}", self.remote.path().trim_end_matches('/')));
        url
    }

    /// Returns true for the registry itself: a redirect on its host leads to no other server where it keeps the trust
    /// in it.
    pub(super) fn is_registry(&self, url: &Url, trusted: bool) -> bool {
        self.is_registry_origin(url) || (trusted && url.host() == self.remote.host())
    }

    /// Fails for a URL that may not be asked.
    fn admit(&self, url: &Url) -> Result<(), Error> {
        let addresses = &self.addresses;
        let is_proxied = || self.clients.route(url) == ClientRoute::Proxied;
        if addresses.admits_literal(url) && (addresses.admits_proxied(url) || !is_proxied()) {
            return Ok(());
        }
        let refused = addresses.refuse(url.host_str().unwrap_or_default());
        Err(Error::unavailable(refused.to_string()))
    }

    /// Sends a request and waits for the header of the response.
    pub(super) async fn send(self: &Arc<Self>, hop: &HttpRequest) -> Result<Response, Error> {
        self.admit(&hop.url)?;
        hop.budget.spend()?;
        let started = Instant::now();
        let mut sent = self.attempt(hop).await;
        if matches!(sent, Err((Failure::Cut, _))) && hop.budget.spend().is_ok() {
            // Probably a pooled connection that the server just closed.
            sent = self.attempt(hop).await;
        }
        let home = self.is_registry_origin(&hop.url);
        let trace = traces::sampled_trace(&Span::current());
        match sent {
            Ok(response) => {
                self.metrics.response(response.status(), started.elapsed(), trace);
                if home {
                    self.reachability.set(Reachability::Up);
                }
                self.prove_address(&response);
                if !transfer_coding::is_supported(response.headers()) {
                    return Err(Error::malformed("its Transfer-Encoding is not a single chunked"));
                }
                Ok(response)
            }
            Err((failure, what)) => {
                self.metrics.error(failure.as_str(), started.elapsed(), trace);
                if home {
                    self.start_probe();
                }
                Err(Error::unavailable(what))
            }
        }
    }

    /// Notes the address of the upstream where TLS proved its name.
    fn prove_address(&self, response: &Response) {
        let url = response.url();
        let is_proven = self.addresses.is_verified(url) && self.clients.route(url) == ClientRoute::Upstream;
        if let Some(address) = response.remote_addr().filter(|_| is_proven) {
            self.addresses.prove(address.ip());
        }
    }

    async fn attempt(self: &Arc<Self>, hop: &HttpRequest) -> Result<Response, (Failure, String)> {
        let span = span::begin(&self.host, hop);
        let answer = self.timed(hop).instrument(span.clone()).await;
        let said = answer
            .as_ref()
            .map(Response::status)
            .map_err(|(failure, _)| *failure);
        span::end(&span, said);
        answer
    }

    async fn timed(self: &Arc<Self>, hop: &HttpRequest) -> Result<Response, (Failure, String)> {
        let client = self.clients.get(hop.class, &hop.url);
        let answer = self.start(client, hop);
        let mut answer = std::pin::pin!(tokio::time::timeout(self.timeouts.header, answer));
        let timed = if let Ok(timed) = tokio::time::timeout(self.timeouts.suspect, &mut answer).await {
            timed
        } else {
            if self.is_registry_origin(&hop.url) {
                self.start_probe();
            }
            answer.await
        };
        let place = hop.url.host_str().unwrap_or_default();
        match timed {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err((
                Failure::from_reqwest(&error),
                format!("{place}: {}", describe(error)),
            )),
            Err(_) => {
                let seconds = self.timeouts.header.as_secs();
                Err((
                    Failure::Timeout,
                    format!("{place} gave no answer within {seconds} s"),
                ))
            }
        }
    }

    async fn start(&self, client: &Client, hop: &HttpRequest) -> reqwest::Result<Response> {
        let mut request = client
            .request(hop.method.clone(), hop.url.clone())
            .headers(hop.headers.clone());
        if let Some(form) = &hop.form {
            request = request
                .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone());
        }
        request.send().await
    }

    /// Sends a probe; any response counts as success.
    pub(super) async fn probe(&self) -> Result<(), String> {
        let hop = HttpRequest::get(RequestClass::List, self.url(""), RequestBudget::new());
        let client = self.clients.get(hop.class, &hop.url);
        match tokio::time::timeout(self.timeouts.probe, self.start(client, &hop)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(describe(error)),
            Err(_) => Err(format!("no answer within {} s", self.timeouts.probe.as_secs())),
        }
    }
}
