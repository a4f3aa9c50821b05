//! Bearer tokens, as registries hand them out (distribution's "Token Authentication Specification").

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::{Value, json};

/// The path of the token endpoint.
pub(super) const PATH: &str = "/token";

/// The users, and the tokens that they were given.
pub(super) struct Tokens {
    lifetime: Duration,
    users: Mutex<Vec<(String, String)>>,
    issued: Mutex<HashMap<String, Issued>>,
}

struct Issued {
    scope: String,
    until: Instant,
}

impl Tokens {
    pub(super) fn new(lifetime: Duration, users: &[(String, String)]) -> Self {
        Self {
            lifetime,
            users: Mutex::new(users.to_vec()),
            issued: Mutex::default(),
        }
    }

    pub(super) fn set_users(&self, users: &[(String, String)]) {
        *self.users.lock() = users.to_vec();
    }

    /// Returns the body of the answer to a request for a token, if its Basic credentials are known.
    pub(super) fn issue(&self, headers: &HeaderMap, scope: &str) -> Option<Value> {
        let user = basic(headers)?;
        if !self.users.lock().contains(&user) {
            return None;
        }
        Some(self.give(scope))
    }

    /// Returns the answer to a request with an identity token (`grant_type=refresh_token`), which is a user's password
    /// here.
    pub(super) fn refresh(&self, form: &str) -> Option<Value> {
        let fields: HashMap<_, _> = url::form_urlencoded::parse(form.as_bytes()).collect();
        let shown = fields.get("refresh_token")?;
        if !self.users.lock().iter().any(|(_, password)| password == shown) {
            return None;
        }
        Some(self.give(fields.get("scope").map_or("", |scope| scope)))
    }

    fn give(&self, scope: &str) -> Value {
        let token = format!("{:032x}", rand::rng().random::<u128>());
        let issued = Issued {
            scope: scope.to_owned(),
            until: Instant::now() + self.lifetime,
        };
        self.issued.lock().insert(token.clone(), issued);
        json!({"token": token, "access_token": token, "expires_in": self.lifetime.as_secs()})
    }

    /// Returns true if a request carries a token that is valid for `scope`; the empty scope accepts any token.
    pub(super) fn admit(&self, headers: &HeaderMap, scope: &str) -> bool {
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let issued = self.issued.lock();
        let known = token.and_then(|token| issued.get(token));
        known.is_some_and(|known| known.until > Instant::now() && (scope.is_empty() || known.scope == scope))
    }
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Basic ")?;
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Returns the scope of a pull from the repository in `path`; empty if the path names no repository.
pub(super) fn scope(path: &str) -> String {
    let inner = path.strip_prefix("/v2/").unwrap_or_default();
    let end = ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
        .iter()
        .filter_map(|part| inner.rfind(part))
        .max();
    end.map_or_else(String::new, |end| format!("repository:{}:pull", &inner[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorization(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    /// A token is valid for its repository until it expires.
    #[test]
    fn token_is_valid_for_its_repository_until_expiry() {
        let user = ("u".to_owned(), "p".to_owned());
        let tokens = Tokens::new(Duration::from_mins(1), &[user]);
        let scope = scope("/v2/a/b/manifests/1");
        assert_eq!(scope, "repository:a/b:pull");
        let basic = format!("Basic {}", BASE64_STANDARD.encode("u:p"));
        let answer = tokens.issue(&authorization(&basic), &scope).unwrap();
        let bearer = authorization(&format!("Bearer {}", answer["token"].as_str().unwrap()));
        assert!(tokens.admit(&bearer, &scope));
        assert!(tokens.admit(&bearer, ""));
        assert!(!tokens.admit(&bearer, "repository:c:pull"));
        tokens
            .issued
            .lock()
            .values_mut()
            .for_each(|issued| issued.until = Instant::now());
        assert!(!tokens.admit(&bearer, &scope));
    }

    /// An unknown user gets no token.
    #[test]
    fn unknown_user_gets_no_token() {
        let tokens = Tokens::new(Duration::from_mins(1), &[("u".to_owned(), "p".to_owned())]);
        let wrong = authorization(&format!("Basic {}", BASE64_STANDARD.encode("u:q")));
        assert!(tokens.issue(&wrong, "").is_none());
        assert!(tokens.issue(&HeaderMap::new(), "").is_none());
        tokens.set_users(&[("u".to_owned(), "q".to_owned())]);
        assert!(tokens.issue(&wrong, "").is_some());
    }
}
