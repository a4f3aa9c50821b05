//! One request to one address, and its answer: no authorization, no redirects, no judgement.

use std::sync::Arc;

use http::{HeaderMap, Method};
use reqwest::{Client, Response};
use tokio::sync::Semaphore;
use tracing::Instrument;
use url::Url;

use super::address::AddressPolicy;
use super::clients::{Clients, Route};
use super::error::{Error, Failure, describe};
use super::health::{Contact, Health};
use super::host_cooldown::HostCooldowns;
use super::options::Timeouts;
use super::rest::Class;
use super::span;
use crate::metrics::Metrics;
use crate::name::Host;
use crate::transfer_coding;

/// The connections to one upstream and to where it leads.
pub(super) struct Wire {
    pub(super) host: Host,
    /// Without user information, query and fragment; the path ends without a slash.
    pub(super) remote: Url,
    pub(super) timeouts: Timeouts,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) addresses: Arc<AddressPolicy>,
    /// Hosts other than the registry that answered 429.
    pub(super) cooldowns: HostCooldowns,
    pub(super) clients: Clients,
    /// The places of large documents (see [`LargePermit`](super::json_body::LargePermit)).
    pub(super) large_documents: Arc<Semaphore>,
}

/// A request as it is sent.
#[derive(Clone)]
pub(super) struct Hop {
    pub(super) class: Class,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// A form.
    pub(super) form: Option<String>,
}

impl Hop {
    /// A plain GET.
    pub(super) fn get(class: Class, url: Url) -> Self {
        Self {
            class,
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            form: None,
        }
    }
}

impl Wire {
    /// Whether a URL is of the upstream itself.
    pub(super) fn is_home(&self, url: &Url) -> bool {
        url.origin() == self.remote.origin()
    }

    /// A URL below the upstream's `/v2/`; `rest` consists of checked names.
    pub(super) fn url(&self, rest: &str) -> Url {
        let mut url = self.remote.clone();
        url.set_path(&format!("{}/v2/{rest}", self.remote.path().trim_end_matches('/')));
        url
    }

    /// Returns true for the registry itself: a redirect on its host leads to no other server where it keeps the trust
    /// in it.
    pub(super) fn is_registry(&self, url: &Url, trusted: bool) -> bool {
        self.is_home(url) || (trusted && url.host() == self.remote.host())
    }

    /// Fails for a URL that may not be asked.
    fn admit(&self, url: &Url) -> Result<(), Error> {
        let addresses = &self.addresses;
        let is_proxied = || self.clients.route(url) == Route::Proxied;
        if addresses.admits_literal(url) && (addresses.admits_proxied(url) || !is_proxied()) {
            return Ok(());
        }
        let refused = addresses.refuse(url.host_str().unwrap_or_default());
        Err(Error::unavailable(refused.to_string()))
    }

    /// Sends a request and waits for the answer's header.
    pub(super) async fn send(self: &Arc<Self>, hop: &Hop) -> Result<Response, Error> {
        self.admit(&hop.url)?;
        let mut sent = self.attempt(hop).await;
        if let Err((Failure::Cut, _)) = sent {
            // Most likely a kept connection that the other side closed just now.
            sent = self.attempt(hop).await;
        }
        let home = self.is_home(&hop.url);
        match sent {
            Ok(response) => {
                self.metrics.upstream_answer(&self.host, response.status());
                if home {
                    self.health.set(Contact::Up);
                }
                self.prove_address(&response);
                if !transfer_coding::is_supported(response.headers()) {
                    return Err(Error::malformed("its Transfer-Encoding is not a single chunked"));
                }
                Ok(response)
            }
            Err((failure, what)) => {
                self.metrics.upstream_failure(&self.host, failure.as_str());
                if home {
                    self.suspect();
                }
                Err(Error::unavailable(what))
            }
        }
    }

    /// Notes the address of the upstream where TLS proved its name.
    fn prove_address(&self, response: &Response) {
        let url = response.url();
        let is_proven = self.addresses.is_verified(url) && self.clients.route(url) == Route::Upstream;
        if let Some(address) = response.remote_addr().filter(|_| is_proven) {
            self.addresses.prove(address.ip());
        }
    }

    async fn attempt(self: &Arc<Self>, hop: &Hop) -> Result<Response, (Failure, String)> {
        let span = span::begin(&self.host, hop);
        let answer = self.timed(hop).instrument(span.clone()).await;
        let said = answer
            .as_ref()
            .map(Response::status)
            .map_err(|(failure, _)| *failure);
        span::end(&span, said);
        answer
    }

    async fn timed(self: &Arc<Self>, hop: &Hop) -> Result<Response, (Failure, String)> {
        let client = self.clients.of(hop.class, self.clients.route(&hop.url));
        let answer = self.start(client, hop);
        let mut answer = std::pin::pin!(tokio::time::timeout(self.timeouts.header, answer));
        let timed = if let Ok(timed) = tokio::time::timeout(self.timeouts.suspect, &mut answer).await {
            timed
        } else {
            if self.is_home(&hop.url) {
                self.suspect();
            }
            answer.await
        };
        let place = hop.url.host_str().unwrap_or_default();
        match timed {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err((Failure::of(&error), format!("{place}: {}", describe(error)))),
            Err(_) => {
                let seconds = self.timeouts.header.as_secs();
                Err((
                    Failure::Timeout,
                    format!("{place} gave no answer within {seconds} s"),
                ))
            }
        }
    }

    async fn start(&self, client: &Client, hop: &Hop) -> reqwest::Result<Response> {
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

    /// Whether the upstream answers anything at all.
    pub(super) async fn probe(&self) -> Result<(), String> {
        let hop = Hop::get(Class::List, self.url(""));
        let client = self.clients.of(hop.class, self.clients.route(&hop.url));
        match tokio::time::timeout(self.timeouts.probe, self.start(client, &hop)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(describe(error)),
            Err(_) => Err(format!("no answer within {} s", self.timeouts.probe.as_secs())),
        }
    }
}
