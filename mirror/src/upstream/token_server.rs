//! The request for a token, and its answer (distribution, "Token Authentication Specification").

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use url::Url;
use url::form_urlencoded::Serializer;

use super::access::{Access, Shown, basic_header};
use super::answer::{Answer, ServerKind};
use super::challenge::Bearer;
use super::error::Error;
use super::redirect::{self, MOST_HOPS};
use super::rest::Class;
use super::token::Token;
use super::trust::Audience;
use super::wire::{Hop, Wire};
use crate::credential::Credential;
use crate::metrics::TokenResult;

/// The most bytes of a token server's answer: it may hold its token twice, and a refresh token.
pub(crate) const MAX_TOKEN_ANSWER: usize = 64 * 1024;

impl Access {
    /// Asks the token server that a registry names; with the credential where it may see it, else
    /// anonymously.
    pub(super) async fn fetch(
        &self,
        wire: &Arc<Wire>,
        audience: &Audience,
        bearer: Bearer,
    ) -> Result<Token, Error> {
        // The token server of another registry rests alone.
        if wire.is_registry(&audience.url, audience.trusted) {
            self.admit(Class::Token)?;
        } else {
            wire.cooldowns.admit(&bearer.realm)?;
        }
        let hop = self.token_request(audience, &bearer)?;
        let fetched = async {
            let answer = self.ask_token_server(wire, hop).await?;
            self.token(wire, audience, &bearer.realm, answer).await
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

    /// Sends a request and follows redirects. The credential goes along only to where [`Policy::keeps`] lets it; a form,
    /// which holds a secret, is sent again only there, and only where the status asks for that.
    ///
    /// [`Policy::keeps`]: super::trust::Policy::keeps
    async fn ask_token_server(&self, wire: &Arc<Wire>, mut hop: Hop) -> Result<Answer, Error> {
        let start = hop.url.clone();
        for _ in 0..MOST_HOPS {
            let response = wire.send(&hop).await?;
            if !redirect::leads_on(&response) {
                return Ok(Answer {
                    response,
                    shown: hop.headers.remove(AUTHORIZATION),
                    server: ServerKind::Upstream,
                });
            }
            let next = redirect::target(&hop.url, response.headers())?;
            let shown = hop.headers.get(AUTHORIZATION).cloned();
            let keeps = self.policy.keeps(&start, &next);
            if hop.form.is_some() && !(keeps && is_same_request(response.status())) {
                return Err(Error::unavailable(
                    "the token server redirects a request that holds a secret",
                ));
            }
            redirect::advance(&mut hop, next);
            if let Some(shown) = shown.filter(|_| keeps) {
                hop.headers.insert(AUTHORIZATION, shown);
            }
        }
        Err(Error::unavailable(format!(
            "the token server made more than {MOST_HOPS} redirects"
        )))
    }

    async fn token(
        &self,
        wire: &Wire,
        audience: &Audience,
        realm: &Url,
        answer: Answer,
    ) -> Result<Token, Error> {
        let status = answer.status();
        if status.is_success() {
            self.rests.succeeded(Class::Token);
            let body = answer.read(wire, MAX_TOKEN_ANSWER).await?;
            return body.parse(|bytes| Token::read(&bytes)).await;
        }
        match status.as_u16() {
            // OAuth2 refuses a grant with 400 (RFC 6749, 5.2).
            code @ (400 | 401 | 403) => {
                let words = answer.error_body(wire, self).await.message();
                let text = format!("the token server gave no token: {words}");
                Err(self.denied(audience, code, text))
            }
            429 if !wire.is_registry(&audience.url, audience.trusted) => {
                Err(wire.cooldowns.start(realm, answer.headers()))
            }
            429 => Err(Error::RateLimited {
                retry_after: self.rests.limited(Class::Token, answer.headers()),
            }),
            code => Err(Error::unavailable(format!("the token server answered {code}"))),
        }
    }

    fn shown_to(&self, audience: &Audience, realm: &Url) -> &Credential {
        match &self.credential {
            Ok(credential) if self.policy.opens(audience, realm) => credential,
            _ => &Credential::Anonymous,
        }
    }

    fn token_request(&self, audience: &Audience, bearer: &Bearer) -> Result<Hop, Error> {
        let mut hop = Hop::get(Class::Token, bearer.realm.clone());
        let credential = self.shown_to(audience, &bearer.realm);
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
}

/// Returns true if a redirect asks for the same method and body (RFC 9110, 15.4).
fn is_same_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 307 | 308)
}
