//! The request for a token, and its answer (distribution, "Token Authentication Specification").

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use url::Url;
use url::form_urlencoded::Serializer;

use crate::credential::Credential;
use crate::metrics::TokenResult;
use crate::upstream::auth::challenge::Bearer;
use crate::upstream::auth::token::Token;
use crate::upstream::auth::trust::Audience;
use crate::upstream::auth::{Authorization, Authorizer, RequestTransport, basic_header};
use crate::upstream::error::Error;
use crate::upstream::rate_limit::RequestClass;
use crate::upstream::response::{ServerKind, UpstreamResponse};
use crate::upstream::transport::budget::RequestBudget;
use crate::upstream::transport::redirect::{self, MAX_HOPS};
use crate::upstream::transport::{HttpRequest, Transport};

/// The most bytes of a token server's answer: it may hold its token twice, and a refresh token.
pub(crate) const MAX_TOKEN_ANSWER: usize = 64 * 1024;

impl Authorizer {
    /// Asks the token server that a registry names; with the credential where it may see it, else
    /// anonymously.
    pub(in crate::upstream) async fn fetch(
        &self,
        (transport, budget): RequestTransport<'_>,
        audience: &Audience,
        bearer: Bearer,
    ) -> Result<Token, Error> {
        // The token server of another registry rests alone.
        if transport.is_registry(&audience.url, audience.trusted) {
            self.admit(RequestClass::Token)?;
        } else {
            transport.cooldowns.admit(&bearer.realm)?;
        }
        let hop = self.token_request(audience, &bearer, budget)?;
        let fetched = async {
            let answer = self.ask_token_server(transport, hop).await?;
            self.token(transport, audience, &bearer.realm, answer).await
        };
        let fetched = fetched.await;
        let result = match &fetched {
            Ok(_) => TokenResult::Fetched,
            Err(Error::Denied { .. }) => TokenResult::Refused,
            Err(_) => TokenResult::Failed,
        };
        transport.metrics.token(result);
        fetched
    }

    /// Sends a request and follows redirects. The credential goes along only to where [`Policy::keeps`] lets it; a form,
    /// which holds a secret, is sent again only there, and only where the status asks for that.
    ///
    /// [`Policy::keeps`]: crate::upstream::auth::trust::Policy::keeps
    async fn ask_token_server(
        &self,
        transport: &Arc<Transport>,
        mut hop: HttpRequest,
    ) -> Result<UpstreamResponse, Error> {
        let start = hop.url.clone();
        for _ in 0..MAX_HOPS {
            let response = transport.send(&hop).await?;
            if !redirect::is_redirect(&response) {
                return Ok(UpstreamResponse {
                    response,
                    authorization: hop.headers.remove(AUTHORIZATION),
                    server: ServerKind::Upstream,
                    kind: hop.kind(),
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
            "the token server made more than {MAX_HOPS} redirects"
        )))
    }

    async fn token(
        &self,
        transport: &Transport,
        audience: &Audience,
        realm: &Url,
        answer: UpstreamResponse,
    ) -> Result<Token, Error> {
        let status = answer.status();
        if status.is_success() {
            self.rate_limits.end_cooldown(RequestClass::Token);
            let body = answer.read(transport, MAX_TOKEN_ANSWER).await?;
            return body.parse(|bytes| Token::read(&bytes)).await;
        }
        match status.as_u16() {
            // OAuth2 refuses a grant with 400 (RFC 6749, 5.2).
            code @ (400 | 401 | 403) => {
                let words = answer.error_body(transport, self).await.message();
                let text = format!("the token server gave no token: {words}");
                Err(self.denied(audience, code, text))
            }
            429 if !transport.is_registry(&audience.url, audience.trusted) => {
                Err(transport.cooldowns.start(realm, answer.headers()))
            }
            429 => Err(Error::RateLimited {
                retry_after: self
                    .rate_limits
                    .start_cooldown(RequestClass::Token, answer.headers()),
                host: None,
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

    fn token_request(
        &self,
        audience: &Audience,
        bearer: &Bearer,
        budget: &RequestBudget,
    ) -> Result<HttpRequest, Error> {
        let mut hop = HttpRequest::get(RequestClass::Token, bearer.realm.clone(), budget.clone());
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
            Authorization::Basic(basic_header(username, password.expose())?).add_to(&mut hop.headers);
        }
        Ok(hop)
    }
}

/// Returns true if a redirect asks for the same method and body (RFC 9110, 15.4).
fn is_same_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 307 | 308)
}
