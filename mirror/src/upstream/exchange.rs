//! A question to the registry, through authorization, redirects and rests to its answer.

use std::sync::Arc;

use http::header::{AUTHORIZATION, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use super::Upstream;
use super::access::{Access, Shown};
use super::answer::Answer;
use super::error::Error;
use super::redirect::{self, MOST_HOPS};
use super::rest::{Class, requests_left};
use super::wire::{Hop, Wire};

/// Whose turn a request waits for, so that clients past the cache never hold up what is fetched into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// A blob on its way into the cache.
    Fill,
    /// A blob, or a part of one, on its way past it.
    Past,
    /// Everything else.
    Other,
}

/// What the registry is asked.
pub(super) struct Question<'a> {
    pub(super) class: Class,
    pub(super) lane: Lane,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// The repository, by its name at the upstream, that a token has to be for.
    pub(super) repository: Option<&'a str>,
    /// Whether a redirect is followed, or is the answer.
    pub(super) follow: bool,
}

impl Question<'_> {
    fn hop(&self, shown: &Shown) -> Hop {
        let mut headers = self.headers.clone();
        shown.add_to(&mut headers);
        Hop {
            class: self.class,
            method: self.method.clone(),
            url: self.url.clone(),
            headers,
            form: None,
        }
    }
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
            Ok(answer) => answer.home && answer.status() == StatusCode::UNAUTHORIZED,
            Err(error) => matches!(error, Error::Denied { .. }),
        };
        if is_refusal {
            self.refused.notify_one();
        }
        let answer = answer?;
        Ok(Held { answer, permit })
    }

    /// As [`Self::ask`], whatever is known about the upstream being down.
    pub(super) async fn converse(&self, access: &Access, question: &Question<'_>) -> Result<Answer, Error> {
        let shown = access.show(&self.wire, question.repository).await?;
        let mut answer = self.wire.follow(question.hop(&shown), question.follow).await?;
        if answer.home && answer.status() == StatusCode::UNAUTHORIZED {
            let headers = answer.headers().clone();
            let shown = access
                .answer(&self.wire, &headers, question.repository, &shown)
                .await?;
            answer = self.wire.follow(question.hop(&shown), question.follow).await?;
        }
        self.note(access, question.class, &answer)?;
        Ok(answer)
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

    /// Takes note of what the answer says about the rate of requests.
    fn note(&self, access: &Access, class: Class, answer: &Answer) -> Result<(), Error> {
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            let retry_after = access.rests.limited(class, answer.headers());
            return Err(Error::RateLimited { retry_after });
        }
        if let Some(left) = requests_left(answer.headers()) {
            self.wire.metrics.rate_limit_remaining(&self.wire.host, left);
            access.rests.note_left(left);
            if left < 1 {
                access.rests.limited(Class::Manifest, answer.headers());
            }
        }
        if answer.status().is_success() || answer.status().is_redirection() {
            access.rests.succeeded(class);
        }
        Ok(())
    }

    /// What an answer means that is not the one hoped for.
    pub(super) async fn fault(&self, access: &Access, answer: Answer) -> Error {
        let (status, home) = (answer.status(), answer.home);
        match status.as_u16() {
            404 | 410 if home => answer.error_body(&self.wire, access).await.not_found(),
            404 | 410 => Error::StrangeNotFound,
            code @ (401 | 403) if home => access.denial(code, &answer.error_body(&self.wire, access).await),
            // A signed URL that ended, most likely: says nothing about the credential.
            code if !home => Error::unavailable(format!("where it redirects to answered {code}")),
            code => Error::unavailable(format!("it answered {code}")),
        }
    }
}

impl Wire {
    /// Sends a request, and goes where redirects lead. Whatever another origin is asked has no
    /// Authorization, also after a redirect back.
    pub(super) async fn follow(self: &Arc<Self>, mut hop: Hop, follow: bool) -> Result<Answer, Error> {
        let start = hop.url.origin();
        for _ in 0..MOST_HOPS {
            let response = self.send(&hop).await?;
            // Without a Location it leads nowhere, and is an answer like any other.
            let leads_on =
                redirect::is_redirect(response.status()) && response.headers().contains_key(LOCATION);
            if !follow || !leads_on {
                let home = hop.url.origin() == start;
                let shown = hop.headers.remove(AUTHORIZATION);
                return Ok(Answer {
                    response,
                    shown,
                    home,
                });
            }
            if hop.form.is_some() {
                return Err(Error::unavailable(
                    "the token server redirects a request that holds a secret",
                ));
            }
            let next = redirect::target(&hop.url, response.headers().get(LOCATION))
                .map_err(|refused| Error::unavailable(format!("{refused} is not followed")))?;
            if next.origin() != start {
                hop.headers.remove(AUTHORIZATION);
            }
            hop.url = next;
        }
        Err(Error::unavailable(format!("more than {MOST_HOPS} redirects")))
    }
}
