//! Requests to a registry: authorization, redirects and rate limits.

use http::header::{AUTHORIZATION, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use super::Upstream;
use super::auth::challenge::Challenge;
use super::auth::trust::Audience;
use super::auth::{Authorization, Authorizer};
use super::error::Error;
use super::rate_limit::{RateLimit, RequestClass};
use super::response::{ServerKind, UpstreamResponse};
use super::transport::HttpRequest;
use super::transport::budget::RequestBudget;
use super::transport::redirect::{self, MAX_HOPS};

/// The pool of concurrent requests, separate for each kind so that pass-through clients cannot starve cache fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestPool {
    /// A blob for the cache.
    Fill,
    /// A blob, or a part of one, for a client only.
    PassThrough,
    /// All other requests.
    Other,
}

/// A request to a registry.
pub(super) struct UpstreamRequest<'a> {
    pub(super) class: RequestClass,
    pub(super) pool: RequestPool,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// The repository that a token must be for, by its name at the upstream.
    pub(super) repository: Option<&'a str>,
    /// `true` to follow redirects outside the API of registries too; else such a redirect is the response.
    pub(super) follow: bool,
}

impl UpstreamRequest<'_> {
    fn hop(&self) -> HttpRequest {
        HttpRequest {
            class: self.class,
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            form: None,
            budget: RequestBudget::new(),
        }
    }

    /// Returns the target of a redirect; `None` if the response is final.
    fn redirect(&self, from: &Url, response: &Response) -> Result<Option<Url>, Error> {
        if !redirect::is_redirect(response) {
            return Ok(None);
        }
        match redirect::target(from, response.headers()) {
            Ok(next) if self.follow || redirect::is_api(&next) => Ok(Some(next)),
            Err(refused) if self.follow => Err(refused.into()),
            _ => Ok(None),
        }
    }
}

/// The server of a request, and the repository of its token.
struct RequestTarget<'a> {
    server: ServerKind,
    audience: &'a Audience,
    repository: Option<&'a str>,
}

/// A response with its permit among concurrent requests.
pub(super) struct PermittedResponse {
    pub(super) answer: UpstreamResponse,
    pub(super) permit: OwnedSemaphorePermit,
}

impl Upstream {
    /// Sends a request. The caller judges any status but 401 and 429 (see [`Upstream::response_error`]).
    pub(super) async fn send(
        &self,
        authorizer: &Authorizer,
        request: &UpstreamRequest<'_>,
    ) -> Result<PermittedResponse, Error> {
        authorizer.admit(request.class)?;
        self.transport.reachability.admit()?;
        let permit = self.acquire_permit(request.pool).await?;
        let answer = self.send_authorized(authorizer, request).await;
        let is_refusal = match &answer {
            Ok(answer) => {
                answer.server == ServerKind::Upstream && answer.status() == StatusCode::UNAUTHORIZED
            }
            Err(error) => matches!(error, Error::Denied { .. }),
        };
        if is_refusal {
            self.refused.notify_one();
        }
        let answer = answer.inspect_err(|error| self.transport.errors.record(error))?;
        Ok(PermittedResponse { answer, permit })
    }

    /// Sends a request without checking reachability. Follows redirects, and answers the challenge of each registry on
    /// the way with the authorization that it may receive.
    pub(super) async fn send_authorized(
        &self,
        authorizer: &Authorizer,
        request: &UpstreamRequest<'_>,
    ) -> Result<UpstreamResponse, Error> {
        let (mut hop, mut audience) = (request.hop(), self.policy.home());
        for hops in 0..MAX_HOPS {
            let named = redirect::repository(&hop.url)
                .filter(|_| hops > 0)
                .map(str::to_owned);
            let target = RequestTarget {
                server: self.server_kind(&audience, &hop.url),
                audience: &audience,
                repository: named.as_deref().or(request.repository),
            };
            if !self.transport.is_registry(&hop.url, audience.trusted) {
                self.transport.cooldowns.admit(&hop.url)?;
            }
            let response = self.authorize(authorizer, &target, &mut hop).await?;
            let Some(next) = request.redirect(&hop.url, &response)? else {
                let answer = UpstreamResponse {
                    response,
                    server: target.server,
                    authorization: hop.headers.remove(AUTHORIZATION),
                    kind: request.hop().kind(),
                };
                self.record_rate_limit(authorizer, request.class, audience.trusted, &answer)?;
                return Ok(answer);
            };
            audience = self.policy.audience(&audience, &next);
            redirect::advance(&mut hop, next);
        }
        Err(Error::unavailable(format!("more than {MAX_HOPS} redirects")))
    }

    /// Returns the kind of server at a URL.
    fn server_kind(&self, audience: &Audience, url: &Url) -> ServerKind {
        match redirect::is_api(url) {
            api if audience.trusted && (api || self.transport.is_registry_origin(url)) => {
                ServerKind::Upstream
            }
            true => ServerKind::Registry,
            false => ServerKind::Elsewhere,
        }
    }

    /// Sends a request with the authorization that its audience required before, and again after a 401.
    async fn authorize(
        &self,
        authorizer: &Authorizer,
        target: &RequestTarget<'_>,
        hop: &mut HttpRequest,
    ) -> Result<Response, Error> {
        let (mut shown, mut tries) = (Authorization::Nothing, 2);
        if target.server == ServerKind::Upstream {
            shown = authorizer
                .initial_authorization((&self.transport, &hop.budget), target.audience, target.repository)
                .await;
            tries = 1;
        }
        // Other hosts get no authorization at first: a signed URL must not carry one. The cached token of the second
        // request may have expired, so there is a third.
        for _ in 0..tries {
            shown.add_to(&mut hop.headers);
            let response = self.transport.send(hop).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            let headers = response.headers();
            let answered = self.respond_to_challenge(authorizer, target, &hop.budget, headers, &shown);
            shown = match Box::pin(answered).await? {
                Some(better) => better,
                None => return Ok(response),
            };
        }
        shown.add_to(&mut hop.headers);
        self.transport.send(hop).await
    }

    /// Returns the authorization that answers a 401: with the credential if the server may receive it, else anonymous.
    /// `None`: the 401 is final.
    async fn respond_to_challenge(
        &self,
        authorizer: &Authorizer,
        target: &RequestTarget<'_>,
        budget: &RequestBudget,
        headers: &HeaderMap,
        before: &Authorization,
    ) -> Result<Option<Authorization>, Error> {
        let RequestTarget {
            audience, repository, ..
        } = *target;
        let challenge = Challenge::read(headers);
        let is_known = challenge.is_some() || matches!(before, Authorization::Token(_));
        let is_refused = matches!(
            (&challenge, before),
            (Some(Challenge::Basic), Authorization::Basic(_))
        );
        if !is_known || is_refused {
            // The response is final, and its body gives the reason.
            return Ok(None);
        }
        // A storage never receives the credential, even if the configuration names its host.
        let answering = match target.server {
            ServerKind::Upstream => authorizer,
            ServerKind::Registry | ServerKind::Elsewhere => &self.anonymous,
        };
        let answered = answering
            .answer_challenge((&self.transport, budget), audience, headers, repository, before)
            .await;
        match (target.server, answered) {
            // Probably a storage, and a signed URL that expired.
            (ServerKind::Elsewhere, answered) => Ok(answered.ok()),
            (ServerKind::Upstream, answered) => answered.map(Some),
            (ServerKind::Registry, answered) => answered
                .map(Some)
                .map_err(|error| authorizer.foreign_denial(audience, error)),
        }
    }

    pub(super) async fn acquire_permit(&self, pool: RequestPool) -> Result<OwnedSemaphorePermit, Error> {
        let timeouts = &self.transport.timeouts;
        let (slots, patience) = match pool {
            RequestPool::Fill => (&self.blobs, timeouts.queue),
            RequestPool::PassThrough => (&self.passing, timeouts.patience),
            RequestPool::Other => (&self.others, timeouts.queue),
        };
        let waited = tokio::time::timeout(patience, slots.clone().acquire_owned()).await;
        match waited {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::unavailable("too many requests to it are under way")),
        }
    }

    /// Records the rate limit that the response reports.
    fn record_rate_limit(
        &self,
        authorizer: &Authorizer,
        class: RequestClass,
        trusted: bool,
        answer: &UpstreamResponse,
    ) -> Result<(), Error> {
        let (url, headers) = (answer.response.url(), answer.headers());
        let is_registry = self.transport.is_registry(url, trusted);
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            if !is_registry {
                return Err(self.transport.cooldowns.start(url, headers));
            }
            let retry_after = authorizer.rate_limits.start_cooldown(class, headers);
            return Err(Error::RateLimited {
                retry_after,
                host: None,
            });
        }
        let reported = RateLimit::read(headers, self.clock.now());
        if let Some(remaining) = reported.remaining.filter(|_| is_registry) {
            authorizer.rate_limits.set_reported(reported);
            if remaining < 1 {
                authorizer
                    .rate_limits
                    .start_cooldown(RequestClass::Manifest, headers);
            }
        }
        if answer.status().is_success() || answer.status().is_redirection() {
            authorizer.rate_limits.end_cooldown(class);
        }
        Ok(())
    }

    /// Turns a response of unexpected status into an error, and records it.
    pub(super) async fn response_error(&self, authorizer: &Authorizer, answer: UpstreamResponse) -> Error {
        let error = self.classify_response(authorizer, answer).await;
        self.transport.errors.record(&error);
        error
    }

    async fn classify_response(&self, authorizer: &Authorizer, answer: UpstreamResponse) -> Error {
        let (status, server) = (answer.status(), answer.server);
        let judges = match server {
            ServerKind::Upstream => true,
            // The request had the authorization that the server required, without the credential.
            ServerKind::Registry => answer.authorization.is_some(),
            // Probably an expired signed URL, which proves nothing about the credential.
            ServerKind::Elsewhere => false,
        };
        match status.as_u16() {
            404 | 410 if server == ServerKind::Elsewhere => Error::StrangeNotFound {
                host: Some(answer.host().to_owned()),
            },
            404 | 410 => answer.error_body(&self.transport, authorizer).await.not_found(),
            code @ (401 | 403) if judges => {
                let audience = answer.audience();
                let passes = answer.is_page() || answer.headers().contains_key(RETRY_AFTER);
                let body = answer.error_body(&self.transport, authorizer).await;
                let mut denied = authorizer.denied(&audience, code, body.message());
                if let Error::Denied { lasting, .. } = &mut denied {
                    *lasting = !passes;
                }
                denied
            }
            400 if server == ServerKind::Upstream && answer.response.url().scheme() == "http" => {
                let expects_tls = answer.names_https(&self.transport).await;
                Error::unavailable(if expects_tls {
                    "it answered 400 to plain HTTP, as it speaks TLS on this port: use https://"
                } else {
                    "it answered 400"
                })
            }
            code if server == ServerKind::Upstream => Error::unavailable(format!("it answered {code}")),
            code => Error::unavailable(format!(
                "{}, where it redirects to, answered {code}",
                answer.host()
            )),
        }
    }
}
