//! One credential, and everything that belongs to it alone: tokens, rests, what was learned by it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use moka::sync::Cache;
use url::form_urlencoded::byte_serialize;

use super::challenge::Challenge;
use super::error::Error;
use super::rest::{Class, Rests};
use super::token::{Token, TokenKey, Tokens};
use super::trust::{Audience, Policy};
use super::wire::Wire;
use crate::clock::Clock;
use crate::credential::Credential;

/// The most bytes of scopes that registries asked for, keys among them.
pub(crate) const MAX_SCOPES: u64 = 1 << 20;
/// The most registries whose last challenge is kept: the upstream, and the hosts that the configuration names or that
/// redirects lead to.
pub(crate) const MAX_CHALLENGES: u64 = 100;
/// The time for which a challenge or a scope is kept without use.
const KEPT_UNUSED: Duration = Duration::from_hours(24);
/// The bytes that an entry takes besides its texts.
const ENTRY: usize = 256;

/// A credential and its state; the credential is `Anonymous` for audiences that may not see any.
pub(super) struct Access {
    /// The credential, or the reason for having none.
    pub(super) credential: Result<Credential, String>,
    pub(super) policy: Policy,
    pub(super) rests: Rests,
    tokens: Tokens,
    /// The last challenge of each audience, without its scope: spares the next request its own 401.
    learned: Cache<Audience, Challenge>,
    /// Scopes that registries asked for, where they are not the usual ones.
    scopes: Cache<(Audience, String), String>,
}

/// The part of the credential that a request shows.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    Nothing,
    Basic(HeaderValue),
    Token(Arc<Token>),
}

impl Shown {
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        let value = match self {
            Self::Nothing => return,
            Self::Basic(value) => value.clone(),
            Self::Token(token) => token.header.clone(),
        };
        headers.insert(AUTHORIZATION, value);
    }
}

impl Access {
    pub(super) fn new(credential: Result<Credential, String>, policy: Policy, clock: Clock) -> Self {
        Self {
            credential,
            policy,
            rests: Rests::new(clock.clone()),
            tokens: Tokens::new(clock),
            learned: Cache::builder()
                .max_capacity(MAX_CHALLENGES)
                .time_to_idle(KEPT_UNUSED)
                .build(),
            scopes: Cache::builder()
                .max_capacity(MAX_SCOPES)
                .weigher(|key, scope: &String| scope_weight(key, scope))
                .time_to_idle(KEPT_UNUSED)
                .build(),
        }
    }

    /// Fails while there is no usable credential, or the class rests.
    pub(super) fn admit(&self, class: Class) -> Result<(), Error> {
        if let Err(reason) = &self.credential {
            return Err(Error::no_credential(reason));
        }
        match self.rests.left(class) {
            Some(retry_after) => Err(Error::RateLimited { retry_after }),
            None => Ok(()),
        }
    }

    /// Returns what to show to a server at first, by what it asked for before. A challenge that cannot be met is
    /// forgotten, whatever the failure: the registry may have another token server by now, or none.
    pub(super) async fn show(
        &self,
        wire: &Arc<Wire>,
        audience: &Audience,
        repository: Option<&str>,
    ) -> Shown {
        let Some(challenge) = self.learned.get(audience) else {
            return Shown::Nothing;
        };
        let met = self.respond_to(wire, audience, challenge, repository, &Shown::Nothing);
        // A token server that hangs must leave time for the registry: clients give up after 30 s.
        match tokio::time::timeout(wire.timeouts.connect, met).await {
            Ok(Ok(shown)) => shown,
            // It was another repository that asked for it: whether this one does is upstream's to say.
            Ok(Err(Error::Denied { .. })) => Shown::Nothing,
            Ok(Err(_)) | Err(_) => {
                self.learned.invalidate(audience);
                Shown::Nothing
            }
        }
    }

    /// Returns what to show after a 401; an error where nothing better is at hand.
    pub(super) async fn answer(
        &self,
        wire: &Arc<Wire>,
        audience: &Audience,
        headers: &HeaderMap,
        repository: Option<&str>,
        shown: &Shown,
    ) -> Result<Shown, Error> {
        let challenge = match (Challenge::read(headers), shown) {
            (Some(challenge), _) => {
                self.learn(audience, &challenge, repository);
                Some(challenge)
            }
            // Some registries say only that a token ended.
            (None, Shown::Token(_)) => self.learned.get(audience),
            (None, Shown::Nothing | Shown::Basic(_)) => None,
        };
        let unknown = || Error::denied(401, "it asks for no kind of authorization known here");
        let challenge = challenge.ok_or_else(unknown)?;
        self.respond_to(wire, audience, challenge, repository, shown)
            .await
    }

    fn learn(&self, audience: &Audience, challenge: &Challenge, repository: Option<&str>) {
        let mut general = challenge.clone();
        if let Challenge::Bearer(bearer) = &mut general
            && let (Some(scope), Some(repository)) = (bearer.scope.take(), repository)
            && scope != usual_scope(repository)
        {
            self.scopes
                .insert((audience.clone(), repository.to_owned()), scope);
        }
        self.learned.insert(audience.clone(), general);
    }

    async fn respond_to(
        &self,
        wire: &Arc<Wire>,
        audience: &Audience,
        challenge: Challenge,
        repository: Option<&str>,
        before: &Shown,
    ) -> Result<Shown, Error> {
        let mut bearer = match challenge {
            Challenge::Basic => return self.basic(audience, before),
            Challenge::Bearer(bearer) => bearer,
        };
        if let (None, Some(repository)) = (&bearer.scope, repository) {
            let special = self.scopes.get(&(audience.clone(), repository.to_owned()));
            bearer.scope = Some(special.unwrap_or_else(|| usual_scope(repository)));
        }
        let spent = match before {
            Shown::Token(token) => Some(token),
            Shown::Nothing | Shown::Basic(_) => None,
        };
        let asked = bearer.clone();
        // Seldom needed, and large.
        let fetch = async move { Box::pin(self.fetch(wire, audience, asked)).await };
        let key = TokenKey {
            audience: audience.clone(),
            scope: bearer.scope.take(),
        };
        let token = self.tokens.get(key, bearer, spent, fetch).await;
        token.map(Shown::Token)
    }

    fn basic(&self, audience: &Audience, before: &Shown) -> Result<Shown, Error> {
        let denied = |message: &str| Err(Error::denied(401, message));
        match (&self.credential, before) {
            _ if !audience.trusted => denied("it asks for user and password"),
            (_, Shown::Basic(_)) => denied("user or password are refused"),
            (Ok(Credential::Basic { username, password }), _) => {
                if self.policy.may_send_to(&audience.url) {
                    basic_header(username, password.expose()).map(Shown::Basic)
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

    /// Returns a stranger's denial with its origin, and what to do where it may see the credential.
    pub(super) fn of_stranger(&self, audience: &Audience, error: Error) -> Error {
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

    /// Returns the reason why the server at `audience` or its token server does not see the credential, and the key that
    /// allows it; `None` if it does, or there is no credential.
    pub(super) fn kept_back(&self, audience: &Audience) -> Option<String> {
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

    /// Returns a server's words without the secrets that it was shown, in each form in which it was shown them.
    pub(super) fn scrub(&self, words: &str, shown: Option<&HeaderValue>) -> String {
        let own = match &self.credential {
            Ok(Credential::Basic { password, .. }) => password.expose(),
            Ok(Credential::IdentityToken { token, .. }) => token.expose(),
            _ => "",
        };
        let encoded: String = byte_serialize(own.as_bytes()).collect();
        // What follows `Basic` or `Bearer`.
        let sent = shown
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .map_or("", |(_, sent)| sent);
        let secrets = [own, &encoded, sent]
            .into_iter()
            .filter(|secret| !secret.is_empty());
        secrets.fold(words.to_owned(), |text, secret| text.replace(secret, "[secret]"))
    }

    /// Returns the denial of the server at `audience`, with the key that may help where that one did not see the credential.
    pub(super) fn denied(&self, audience: &Audience, status: u16, message: String) -> Error {
        let hint = self.kept_back(audience);
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

/// Returns the bytes that a scope takes with its key.
fn scope_weight((audience, repository): &(Audience, String), scope: &str) -> u32 {
    let texts = audience.url.as_str().len() + repository.len() + scope.len();
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
