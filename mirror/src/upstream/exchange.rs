//! A question to the registry, through authorization, redirects and rests to its answer.

use http::header::{AUTHORIZATION, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use super::Upstream;
use super::access::{Access, Shown};
use super::answer::{Answer, ServerKind};
use super::challenge::Challenge;
use super::error::Error;
use super::redirect::{self, MOST_HOPS};
use super::rest::{Class, requests_left};
use super::trust::Audience;
use super::wire::Hop;

/// The queue that a request waits in, so that clients past the cache never hold up what is fetched into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// A blob on its way into the cache.
    Fill,
    /// A blob, or a part of one, on its way past it.
    Past,
    /// Everything else.
    Other,
}

/// The request to a registry.
pub(super) struct Question<'a> {
    pub(super) class: Class,
    pub(super) lane: Lane,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// The repository, by its name at the upstream, that a token has to be for.
    pub(super) repository: Option<&'a str>,
    /// A redirect to anything but a registry's API is followed; else it is the answer.
    pub(super) follow: bool,
}

impl Question<'_> {
    fn hop(&self) -> Hop {
        Hop {
            class: self.class,
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            form: None,
        }
    }

    /// Returns where an answer redirects to; `None` where it is the answer itself.
    fn redirect(&self, from: &Url, response: &Response) -> Result<Option<Url>, Error> {
        if !redirect::leads_on(response) {
            return Ok(None);
        }
        match redirect::target(from, response.headers()) {
            Ok(next) if self.follow || redirect::is_api(&next) => Ok(Some(next)),
            Err(refused) if self.follow => Err(refused.into()),
            _ => Ok(None),
        }
    }
}

/// The server that a request has reached, and the repository that it is asked for.
struct Party<'a> {
    server: ServerKind,
    audience: &'a Audience,
    repository: Option<&'a str>,
}

/// An answer, and its place among those that may be under way.
pub(super) struct Held {
    pub(super) answer: Answer,
    pub(super) permit: OwnedSemaphorePermit,
}

impl Upstream {
    /// Asks; any status but 401 and 429 is the caller's to judge (see [`Upstream::fault`]).
    pub(super) async fn ask(&self, access: &Access, question: &Question<'_>) -> Result<Held, Error> {
        access.admit(question.class)?;
        self.wire.health.admit()?;
        let permit = self.permit(question.lane).await?;
        let answer = self.converse(access, question).await;
        let is_refusal = match &answer {
            Ok(answer) => {
                answer.server == ServerKind::Upstream && answer.status() == StatusCode::UNAUTHORIZED
            }
            Err(error) => matches!(error, Error::Denied { .. }),
        };
        if is_refusal {
            self.refused.notify_one();
        }
        let answer = answer?;
        Ok(Held { answer, permit })
    }

    /// Asks as [`Self::ask`] does, although the upstream is known to be down. Follows redirects, and answers the
    /// challenge of each registry on the way with what that one may be shown.
    pub(super) async fn converse(&self, access: &Access, question: &Question<'_>) -> Result<Answer, Error> {
        let (mut hop, mut audience) = (question.hop(), self.policy.home());
        for hops in 0..MOST_HOPS {
            let named = redirect::repository(&hop.url)
                .filter(|_| hops > 0)
                .map(str::to_owned);
            let party = Party {
                server: self.server_kind(&audience, &hop.url),
                audience: &audience,
                repository: named.as_deref().or(question.repository),
            };
            if !self.wire.is_registry(&hop.url, audience.trusted) {
                self.wire.cooldowns.admit(&hop.url)?;
            }
            let response = self.authorize(access, &party, &mut hop).await?;
            let Some(next) = question.redirect(&hop.url, &response)? else {
                let answer = Answer {
                    response,
                    server: party.server,
                    shown: hop.headers.remove(AUTHORIZATION),
                };
                self.note(access, question.class, audience.trusted, &answer)?;
                return Ok(answer);
            };
            audience = self.policy.audience(&audience, &next);
            redirect::advance(&mut hop, next);
        }
        Err(Error::unavailable(format!("more than {MOST_HOPS} redirects")))
    }

    /// Returns the kind of server that this URL is of.
    fn server_kind(&self, audience: &Audience, url: &Url) -> ServerKind {
        match redirect::is_api(url) {
            api if audience.trusted && (api || self.wire.is_home(url)) => ServerKind::Upstream,
            true => ServerKind::Registry,
            false => ServerKind::Elsewhere,
        }
    }

    /// Sends a request with what its audience asked for before, and again with what a 401 asks for.
    async fn authorize(&self, access: &Access, party: &Party<'_>, hop: &mut Hop) -> Result<Response, Error> {
        let (mut shown, mut tries) = (Shown::Nothing, 2);
        if party.server == ServerKind::Upstream {
            shown = access.show(&self.wire, party.audience, party.repository).await;
            tries = 1;
        }
        // Others are shown nothing at first: a signed URL may not come with an authorization. The token that they get
        // then may be of an earlier request and have ended: there is a second try.
        for _ in 0..tries {
            shown.add_to(&mut hop.headers);
            let response = self.wire.send(hop).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            let headers = response.headers();
            shown = match Box::pin(self.meet_challenge(access, party, headers, &shown)).await? {
                Some(better) => better,
                None => return Ok(response),
            };
        }
        shown.add_to(&mut hop.headers);
        self.wire.send(hop).await
    }

    /// Returns what to show after a 401: of the credential where it may be shown, else what anyone gets. `None`: the 401
    /// is the answer.
    async fn meet_challenge(
        &self,
        access: &Access,
        party: &Party<'_>,
        headers: &HeaderMap,
        before: &Shown,
    ) -> Result<Option<Shown>, Error> {
        let Party {
            audience, repository, ..
        } = *party;
        let challenge = Challenge::read(headers);
        let is_known = challenge.is_some() || matches!(before, Shown::Token(_));
        let is_refused = matches!((&challenge, before), (Some(Challenge::Basic), Shown::Basic(_)));
        if !is_known || is_refused {
            // The answer is final, and its body says why.
            return Ok(None);
        }
        // A storage never gets the credential, though the configuration names its host.
        let answering = match party.server {
            ServerKind::Upstream => access,
            ServerKind::Registry | ServerKind::Elsewhere => &self.strangers,
        };
        let answered = answering
            .answer(&self.wire, audience, headers, repository, before)
            .await;
        match (party.server, answered) {
            // Most likely a storage, and a signed URL that ended.
            (ServerKind::Elsewhere, answered) => Ok(answered.ok()),
            (ServerKind::Upstream, answered) => answered.map(Some),
            (ServerKind::Registry, answered) => answered
                .map(Some)
                .map_err(|error| access.of_stranger(audience, error)),
        }
    }

    pub(super) async fn permit(&self, lane: Lane) -> Result<OwnedSemaphorePermit, Error> {
        let timeouts = &self.wire.timeouts;
        let (slots, patience) = match lane {
            Lane::Fill => (&self.blobs, timeouts.queue),
            Lane::Past => (&self.passing, timeouts.patience),
            Lane::Other => (&self.others, timeouts.queue),
        };
        let waited = tokio::time::timeout(patience, slots.clone().acquire_owned()).await;
        match waited {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::unavailable("too many requests to it are under way")),
        }
    }

    /// Records what the answer says about the rate of requests. Of a host that is not the registry, only a 429 counts,
    /// and for that host alone.
    fn note(&self, access: &Access, class: Class, trusted: bool, answer: &Answer) -> Result<(), Error> {
        let (url, headers) = (answer.response.url(), answer.headers());
        let is_registry = self.wire.is_registry(url, trusted);
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            if !is_registry {
                return Err(self.wire.cooldowns.start(url, headers));
            }
            let retry_after = access.rests.limited(class, headers);
            return Err(Error::RateLimited { retry_after });
        }
        if let Some(left) = requests_left(headers).filter(|_| is_registry) {
            self.wire.metrics.rate_limit_remaining(&self.wire.host, left);
            access.rests.note_left(left);
            if left < 1 {
                access.rests.limited(Class::Manifest, headers);
            }
        }
        if answer.status().is_success() || answer.status().is_redirection() {
            access.rests.succeeded(class);
        }
        Ok(())
    }

    /// Returns what an answer means that is not the one hoped for.
    pub(super) async fn fault(&self, access: &Access, answer: Answer) -> Error {
        let (status, server) = (answer.status(), answer.server);
        let judges = match server {
            ServerKind::Upstream => true,
            // It was asked as it wants to be, though without the credential.
            ServerKind::Registry => answer.shown.is_some(),
            // A signed URL that ended, most likely: says nothing about the credential.
            ServerKind::Elsewhere => false,
        };
        match status.as_u16() {
            404 | 410 if server == ServerKind::Elsewhere => Error::StrangeNotFound,
            404 | 410 => answer.error_body(&self.wire, access).await.not_found(),
            code @ (401 | 403) if judges => {
                let audience = answer.audience();
                let passes = answer.is_page() || answer.headers().contains_key(RETRY_AFTER);
                let body = answer.error_body(&self.wire, access).await;
                let mut denied = access.denied(&audience, code, body.message());
                if let Error::Denied { lasting, .. } = &mut denied {
                    *lasting = !passes;
                }
                denied
            }
            code if server == ServerKind::Upstream => Error::unavailable(format!("it answered {code}")),
            code => {
                let host = answer.response.url().host_str().unwrap_or_default();
                Error::unavailable(format!("{host}, where it redirects to, answered {code}"))
            }
        }
    }
}
