//! Authorization: a credential with its tokens, its cooldowns, and the challenges that servers sent for it.

pub(super) mod challenge;
mod challenge_parser;
pub(super) mod token;
mod token_request;
pub(super) mod trust;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use moka::sync::Cache;

use super::error::Error;
use super::rate_limit::{Cooldowns, RequestClass};
use super::transport::Transport;
use super::transport::budget::RequestBudget;
use crate::clock::Clock;
use crate::credential::Credential;
use crate::secret::mask_secrets;
use challenge::Challenge;
use token::{Token, TokenKey, Tokens};
use trust::{Audience, Policy};

/// The most bytes of challenges that are kept for single repositories, keys among them.
pub(crate) const MAX_SCOPES: u64 = 1 << 20;
/// The most registries whose last challenge is kept: the upstream, and the hosts that the configuration names or that
/// redirects lead to.
pub(crate) const MAX_CHALLENGES: u64 = 100;
/// The time for which a challenge or a scope is kept without use.
const KEPT_UNUSED: Duration = Duration::from_hours(24);
/// The bytes that an entry takes besides its texts.
const ENTRY: usize = 256;

/// An authorizer for one credential, which is `Anonymous` for audiences that may not receive any.
pub(super) struct Authorizer {
    /// The credential, or the error of every request without one.
    pub(super) credential: Result<Credential, Error>,
    pub(super) policy: Policy,
    pub(super) rate_limits: Cooldowns,
    tokens: Tokens,
    /// The last challenge of each audience, without its scope, which saves the next request a 401.
    learned: Cache<Audience, Challenge>,
    /// The last challenges for repositories that have another token server than the last one, or not the usual scope.
    special: Cache<(Audience, String), Challenge>,
}

/// The transport of a request, and the further requests that it may cause.
pub(super) type RequestTransport<'a> = (&'a Arc<Transport>, &'a RequestBudget);

/// The authorization that a request carries.
#[derive(Clone, Debug)]
pub(super) enum Authorization {
    Nothing,
    Basic(HeaderValue),
    Token(Arc<Token>),
}

impl Authorization {
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        let value = match self {
            Self::Nothing => return,
            Self::Basic(value) => value.clone(),
            Self::Token(token) => token.header.clone(),
        };
        headers.insert(AUTHORIZATION, value);
    }
}

impl Authorizer {
    pub(super) fn new(credential: Result<Credential, Error>, policy: Policy, clock: Clock) -> Self {
        Self {
            credential,
            policy,
            rate_limits: Cooldowns::new(clock.clone()),
            tokens: Tokens::new(clock),
            learned: Cache::builder()
                .max_capacity(MAX_CHALLENGES)
                .time_to_idle(KEPT_UNUSED)
                .build(),
            special: Cache::builder()
                .max_capacity(MAX_SCOPES)
                .weigher(special_weight)
                .time_to_idle(KEPT_UNUSED)
                .build(),
        }
    }

    /// Fails while there is no usable credential, or the class cools down.
    pub(super) fn admit(&self, class: RequestClass) -> Result<(), Error> {
        if let Err(error) = &self.credential {
            return Err(error.clone());
        }
        match self.rate_limits.cooldown(class) {
            Some(retry_after) => Err(Error::RateLimited {
                retry_after,
                host: None,
            }),
            None => Ok(()),
        }
    }

    /// Returns the authorization for the first request to a server, by its last challenge. A token server that fails is
    /// forgotten: the registry may have another one by now, or none.
    pub(super) async fn initial_authorization(
        &self,
        way: RequestTransport<'_>,
        audience: &Audience,
        repository: Option<&str>,
    ) -> Authorization {
        let Some(challenge) = self.learned(audience, repository) else {
            return Authorization::Nothing;
        };
        let met = self.respond_to(way, audience, challenge, repository, &Authorization::Nothing);
        // A token server that hangs must leave time for the registry: clients give up after 30 s.
        match tokio::time::timeout(way.0.timeouts.connect, met).await {
            Ok(Ok(shown)) => shown,
            // Another repository required it; only the upstream knows if this one does.
            Ok(Err(Error::Denied { .. })) => Authorization::Nothing,
            Ok(Err(_)) | Err(_) => {
                self.learned.invalidate(audience);
                if let Some(repository) = repository {
                    self.special
                        .invalidate(&(audience.clone(), repository.to_owned()));
                }
                Authorization::Nothing
            }
        }
    }

    /// Returns the authorization that answers a 401.
    ///
    /// # Errors
    /// No better authorization is available.
    pub(super) async fn answer_challenge(
        &self,
        way: RequestTransport<'_>,
        audience: &Audience,
        headers: &HeaderMap,
        repository: Option<&str>,
        shown: &Authorization,
    ) -> Result<Authorization, Error> {
        let challenge = match (Challenge::read(headers), shown) {
            (Some(challenge), _) => {
                self.learn(audience, &challenge, repository);
                Some(challenge)
            }
            // Some registries report only that a token expired.
            (None, Authorization::Token(_)) => self.learned(audience, repository),
            (None, Authorization::Nothing | Authorization::Basic(_)) => None,
        };
        let unknown = || Error::denied(401, "it asks for no kind of authorization known here");
        let challenge = challenge.ok_or_else(unknown)?;
        self.respond_to(way, audience, challenge, repository, shown).await
    }

    /// Returns the last challenge for a repository: its own, else the last one of the server.
    fn learned(&self, audience: &Audience, repository: Option<&str>) -> Option<Challenge> {
        let special = repository.and_then(|repository| {
            let key = (audience.clone(), repository.to_owned());
            self.special.get(&key)
        });
        special.or_else(|| self.learned.get(audience))
    }

    /// Keeps a challenge; as one of its repository if its scope is not the usual one, or if the server sent another one
    /// for another repository before.
    fn learn(&self, audience: &Audience, challenge: &Challenge, repository: Option<&str>) {
        let mut general = challenge.clone();
        let scope = match &mut general {
            Challenge::Bearer(bearer) => bearer.scope.take(),
            Challenge::Basic => None,
        };
        if let Some(repository) = repository {
            let key = (audience.clone(), repository.to_owned());
            let has_own_scope = scope.is_some_and(|scope| scope != usual_scope(repository));
            let last = self.learned.get(audience);
            let is_other = last.is_some_and(|last| last != general);
            if has_own_scope || is_other || self.special.contains_key(&key) {
                let special = if has_own_scope { challenge } else { &general };
                self.special.insert(key, special.clone());
            }
        }
        self.learned.insert(audience.clone(), general);
    }

    async fn respond_to(
        &self,
        way: RequestTransport<'_>,
        audience: &Audience,
        challenge: Challenge,
        repository: Option<&str>,
        before: &Authorization,
    ) -> Result<Authorization, Error> {
        let mut bearer = match challenge {
            Challenge::Basic => return self.basic(audience, before),
            Challenge::Bearer(bearer) => bearer,
        };
        if let (None, Some(repository)) = (&bearer.scope, repository) {
            let special = self.special.get(&(audience.clone(), repository.to_owned()));
            let scope = match special {
                Some(Challenge::Bearer(special)) => special.scope,
                Some(Challenge::Basic) | None => None,
            };
            bearer.scope = Some(scope.unwrap_or_else(|| usual_scope(repository)));
        }
        let spent = match before {
            Authorization::Token(token) => Some(token),
            Authorization::Nothing | Authorization::Basic(_) => None,
        };
        let asked = bearer.clone();
        // Boxed, because it is rare and large.
        let fetch = async move { Box::pin(self.fetch(way, audience, asked)).await };
        let key = TokenKey {
            audience: audience.clone(),
            scope: bearer.scope.take(),
        };
        let token = self.tokens.get(key, bearer, spent, fetch).await;
        token.map(Authorization::Token)
    }

    fn basic(&self, audience: &Audience, before: &Authorization) -> Result<Authorization, Error> {
        let denied = |message: &str| Err(Error::denied(401, message));
        match (&self.credential, before) {
            _ if !audience.trusted => denied("it asks for user and password"),
            (_, Authorization::Basic(_)) => denied("user or password are refused"),
            (Ok(Credential::Basic { username, password }), _) => {
                if self.policy.may_send_to(&audience.url) {
                    basic_header(username, password.expose()).map(Authorization::Basic)
                } else {
                    denied("credentials are not sent in clear text; use https or allow it for this upstream")
                }
            }
            (Ok(Credential::IdentityToken { .. }), _) => {
                denied("it asks for user and password, but an identity token is configured")
            }
            _ => denied("it asks for user and password, and none are configured"),
        }
    }

    /// Returns the denial of a host without the credential, with its origin, and the key that lets it receive the
    /// credential.
    pub(super) fn foreign_denial(&self, audience: &Audience, error: Error) -> Error {
        let Error::Denied { status, message, .. } = error else {
            return error;
        };
        let at = audience.url.origin().ascii_serialization();
        self.denied(
            audience,
            status,
            format!("{at}, where it redirects to: {message}"),
        )
    }

    /// Returns the reason why the server at `audience` or its token server does not receive the credential, and the key
    /// that allows it; `None` if it does, or without a credential.
    pub(super) fn withheld_credentials_hint(&self, audience: &Audience) -> Option<String> {
        let is_configured = |credential: &Credential| *credential != Credential::Anonymous;
        if !self.credential.as_ref().is_ok_and(is_configured) {
            return None;
        }
        let (what, url, list) = match self.learned.get(audience) {
            _ if !audience.trusted => ("the registry at", audience.url.clone(), "redirects"),
            Some(Challenge::Bearer(bearer)) if !self.policy.opens(audience, &bearer.realm) => {
                ("the token server at", bearer.realm, "realms")
            }
            _ => return None,
        };
        let at = url.origin().ascii_serialization();
        let host = url.host_str().unwrap_or_default();
        let key = self.policy.key;
        Some(format!(
            "the credentials were not shown to {what} {at}: add {host} to {key}.{list} if it may see them (and see \
             that it speaks https)"
        ))
    }

    /// Masks secrets in a text of a server, in each form in which the server received them, and in other notations.
    pub(super) fn scrub(&self, words: &str, shown: Option<&HeaderValue>) -> String {
        let own = match &self.credential {
            Ok(Credential::Basic { password, .. }) => password.expose(),
            Ok(Credential::IdentityToken { token, .. }) => token.expose(),
            _ => "",
        };
        // The part after `Basic` or `Bearer`.
        let sent = shown
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .map_or("", |(_, sent)| sent);
        mask_secrets(words, [own, sent])
    }

    /// Returns the denial of the server at `audience`, with the key that lets it receive the credential.
    pub(super) fn denied(&self, audience: &Audience, status: u16, message: String) -> Error {
        let hint = self.withheld_credentials_hint(audience);
        let withheld = hint.is_some();
        let message = [Some(message), hint].into_iter().flatten().collect::<Vec<_>>();
        Error::Denied {
            status,
            message: message.join("; "),
            withheld,
            lasting: true,
        }
    }
}

/// Returns the bytes that the challenge of a repository takes with its key.
fn special_weight((audience, repository): &(Audience, String), challenge: &Challenge) -> u32 {
    let challenge = match challenge {
        Challenge::Bearer(bearer) => bearer.size(),
        Challenge::Basic => 0,
    };
    let texts = audience.url.as_str().len() + repository.len() + challenge;
    u32::try_from(ENTRY + texts).unwrap_or(u32::MAX)
}

/// Returns the scope that a pull needs (distribution, "Token Scope Documentation").
fn usual_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

pub(super) fn basic_header(username: &str, password: &str) -> Result<HeaderValue, Error> {
    let pair = BASE64_STANDARD.encode(format!("{username}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {pair}"))
        .map_err(|_| Error::denied(401, "the user name or password cannot be sent"))?;
    header.set_sensitive(true);
    Ok(header)
}
