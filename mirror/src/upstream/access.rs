//! One credential, and everything that belongs to it alone: tokens, rests, what was learned by it.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};
use moka::future::Cache;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::answer::Answer;
use super::challenge::{Bearer, Challenge};
use super::error::Error;
use super::error_body::ErrorBody;
use super::rest::{Class, Rests};
use super::token::{Token, Tokens};
use super::trust::{HostPattern, is_loopback, may_see_credentials};
use super::wire::{Hop, Wire};
use crate::clock::Clock;
use crate::credentials::Credential;
use crate::metrics::TokenResult;

const MOST_TOKEN_ANSWER: usize = 1024 * 1024;
const MOST_SCOPES: u64 = 10_000;

/// To whom credentials may be shown.
#[derive(Clone)]
pub(super) struct Policy {
    pub(super) remote: Url,
    pub(super) realms: Vec<HostPattern>,
    pub(super) clear_text: bool,
}

impl Policy {
    fn may_send_to(&self, url: &Url) -> bool {
        url.scheme() == "https" || self.clear_text || is_loopback(url)
    }
}

pub(super) struct Access {
    /// Or why there is none that may be used.
    credential: Result<Credential, String>,
    policy: Policy,
    pub(super) rests: Rests,
    tokens: Tokens,
    /// The last challenge, without its scope: spares the next request its own 401.
    learned: Mutex<Option<Challenge>>,
    /// Scopes that registries asked for, where they are not the usual ones.
    scopes: Cache<String, String>,
}

/// What a request shows of the credential.
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
            learned: Mutex::default(),
            scopes: Cache::new(MOST_SCOPES),
        }
    }

    /// Fails while there is no usable credential, or the class rests.
    pub(super) fn admit(&self, class: Class) -> Result<(), Error> {
        if let Err(reason) = &self.credential {
            return Err(Error::denied(403, reason));
        }
        match self.rests.left(class) {
            Some(retry_after) => Err(Error::RateLimited { retry_after }),
            None => Ok(()),
        }
    }

    /// What to show at first, by what was learned before.
    pub(super) async fn show(&self, wire: &Arc<Wire>, repository: Option<&str>) -> Result<Shown, Error> {
        let learned = self
            .learned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match learned {
            None => Ok(Shown::Nothing),
            Some(challenge) => match self.meet(wire, challenge, repository, &Shown::Nothing).await {
                // It was another repository that asked for it: whether this one does is upstream's to say.
                Err(Error::Denied { .. }) => Ok(Shown::Nothing),
                met => met,
            },
        }
    }

    /// What to show after a 401; an error where nothing better is at hand.
    pub(super) async fn answer(
        &self,
        wire: &Arc<Wire>,
        headers: &HeaderMap,
        repository: Option<&str>,
        shown: &Shown,
    ) -> Result<Shown, Error> {
        let learned = || {
            self.learned
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        let challenge = match Challenge::read(headers) {
            Some(challenge) => {
                self.learn(&challenge, repository).await;
                challenge
            }
            // Some registries say only that a token ended.
            None => match (learned(), shown) {
                (Some(challenge), Shown::Token(_)) => challenge,
                _ => {
                    return Err(Error::denied(
                        401,
                        "it asks for no kind of authorization known here",
                    ));
                }
            },
        };
        self.meet(wire, challenge, repository, shown).await
    }

    async fn learn(&self, challenge: &Challenge, repository: Option<&str>) {
        let mut general = challenge.clone();
        if let Challenge::Bearer(bearer) = &mut general
            && let (Some(scope), Some(repository)) = (bearer.scope.take(), repository)
            && scope != usual_scope(repository)
        {
            self.scopes.insert(repository.to_owned(), scope).await;
        }
        *self.learned.lock().unwrap_or_else(PoisonError::into_inner) = Some(general);
    }

    async fn meet(
        &self,
        wire: &Arc<Wire>,
        challenge: Challenge,
        repository: Option<&str>,
        before: &Shown,
    ) -> Result<Shown, Error> {
        let mut bearer = match challenge {
            Challenge::Basic => return self.basic(before),
            Challenge::Bearer(bearer) => bearer,
        };
        if let (None, Some(repository)) = (&bearer.scope, repository) {
            let special = self.scopes.get(repository).await;
            bearer.scope = Some(special.unwrap_or_else(|| usual_scope(repository)));
        }
        let spent = match before {
            Shown::Token(token) => Some(token),
            Shown::Nothing | Shown::Basic(_) => None,
        };
        let fetch = self.fetch(wire, bearer.clone());
        self.tokens.get(bearer, spent, fetch).await.map(Shown::Token)
    }

    fn basic(&self, before: &Shown) -> Result<Shown, Error> {
        let denied = |message: &str| Err(Error::denied(401, message));
        match (&self.credential, before) {
            (_, Shown::Basic(_)) => denied("user or password are refused"),
            (Ok(Credential::Basic { username, password }), _) => {
                if self.policy.may_send_to(&self.policy.remote) {
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

    /// Asks the token server; with the credential where it may see it, else anonymously.
    async fn fetch(&self, wire: &Arc<Wire>, bearer: Bearer) -> Result<Token, Error> {
        self.admit(Class::Token)?;
        let hop = self.token_request(&bearer)?;
        let fetched = async {
            let answer = wire.follow(hop, true).await?;
            self.token(wire, answer).await
        };
        let fetched = fetched.await;
        let result = match &fetched {
            Ok(_) => TokenResult::Fetched,
            Err(Error::Denied { .. }) => TokenResult::Refused,
            Err(_) => TokenResult::Failed,
        };
        wire.metrics.token(&wire.host, result);
        fetched
    }

    async fn token(&self, wire: &Wire, answer: Answer) -> Result<Token, Error> {
        let status = answer.status();
        if status.is_success() {
            self.rests.succeeded(Class::Token);
            return Token::read(&answer.read(MOST_TOKEN_ANSWER, wire.timeouts.body).await?);
        }
        match status.as_u16() {
            // OAuth2 refuses a grant with 400 (RFC 6749, 5.2).
            code @ (400 | 401 | 403) => {
                let words = answer.error_body(wire, self).await.message();
                let text = format!("the token server gave no token: {words}");
                Err(Error::denied(code, self.hinted(text)))
            }
            429 => Err(Error::RateLimited {
                retry_after: self.rests.limited(Class::Token, answer.headers()),
            }),
            code => Err(Error::unavailable(format!("the token server answered {code}"))),
        }
    }

    fn shown_to(&self, realm: &Url) -> &Credential {
        let trusted = may_see_credentials(&self.policy.remote, realm, &self.policy.realms);
        match &self.credential {
            Ok(credential) if trusted && self.policy.may_send_to(realm) => credential,
            _ => &Credential::Anonymous,
        }
    }

    /// Says why the credential was kept back from a token server, if it was.
    pub(super) fn kept_back(&self) -> Option<String> {
        let learned = self
            .learned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(Challenge::Bearer(Bearer { realm, .. })) = learned else {
            return None;
        };
        let configured = self
            .credential
            .as_ref()
            .is_ok_and(|c| *c != Credential::Anonymous);
        (configured && *self.shown_to(&realm) == Credential::Anonymous).then(|| {
            let host = realm.host_str().unwrap_or_default();
            let scheme = realm.scheme();
            format!(
                "the credentials were not shown to the token server at {scheme}://{host}: \
                 list it in trust.realms if it may see them (and see that it speaks https)"
            )
        })
    }

    fn token_request(&self, bearer: &Bearer) -> Result<Hop, Error> {
        let mut hop = Hop::get(Class::Token, bearer.realm.clone());
        let credential = self.shown_to(&bearer.realm);
        let scopes = bearer.scope.as_deref().unwrap_or_default();
        if let Credential::IdentityToken { token, .. } = credential {
            let mut form = Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "registry-mirror")
                .append_pair("service", bearer.service.as_deref().unwrap_or_default())
                .append_pair("refresh_token", token.expose());
            if !scopes.is_empty() {
                form.append_pair("scope", scopes);
            }
            hop.method = Method::POST;
            hop.form = Some(form.finish());
            return Ok(hop);
        }
        if bearer.service.is_some() || !scopes.is_empty() {
            let mut query = hop.url.query_pairs_mut();
            if let Some(service) = &bearer.service {
                query.append_pair("service", service);
            }
            for scope in scopes.split_ascii_whitespace() {
                query.append_pair("scope", scope);
            }
        }
        if let Credential::Basic { username, password } = credential {
            Shown::Basic(basic_header(username, password.expose())?).add_to(&mut hop.headers);
        }
        Ok(hop)
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

    fn hinted(&self, message: String) -> String {
        match self.kept_back() {
            Some(hint) => format!("{message}; {hint}"),
            None => message,
        }
    }

    /// Returns the denial that an answer's body explains, with a hint at what can be done.
    pub(super) fn denial(&self, status: u16, body: &ErrorBody) -> Error {
        let message = self.hinted(body.message());
        Error::Denied { status, message }
    }
}

/// What a pull needs (distribution, "Token Scope Documentation").
fn usual_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

fn basic_header(username: &str, password: &str) -> Result<HeaderValue, Error> {
    let pair = BASE64_STANDARD.encode(format!("{username}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {pair}"))
        .map_err(|_| Error::denied(401, "the user name or password cannot be sent"))?;
    header.set_sensitive(true);
    Ok(header)
}
