//! Tokens: one request for all that wait, renewed before they expire.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use jiff::Timestamp;
use moka::Expiry;
use moka::future::Cache;

use crate::clock::Clock;
use crate::json::{self, Object, Scalar};
use crate::upstream::auth::challenge::Bearer;
use crate::upstream::auth::trust::Audience;
use crate::upstream::error::Error;

/// The lifetime of a token without `expires_in` (distribution, "Token Response Fields").
const DEFAULT_LIFE: Duration = Duration::from_mins(1);
pub(in crate::upstream) const MAX_LIFE: Duration = Duration::from_hours(24);
/// A token is renewed this long before its end, or in the last quarter of a shorter life.
const MAX_MARGIN: Duration = Duration::from_secs(30);
/// A password that was refused is not tried again at once: accounts get locked.
const DENIED_FOR: Duration = Duration::from_secs(10);
const FAILED_FOR: Duration = Duration::from_secs(1);
/// The most bytes of a token; those of known registries have up to 6 KiB.
pub(crate) const MAX_TOKEN: usize = 16 * 1024;
/// The most bytes of the tokens of one credential, keys and failures among them. An upstream has two such caches: one
/// for its credential, and one for the registries that its redirects lead to.
pub(crate) const MAX_TOKENS: u64 = 4 << 20;
/// The bytes that an entry takes besides its texts: what its parts and the cache's own records have.
const ENTRY: usize = 512;

/// A token, as the header that shows it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Token {
    pub(in crate::upstream) header: HeaderValue,
    pub(in crate::upstream) life: Duration,
}

json::members! {
    /// The answer of a token server (RFC 6749, 5.1; distribution, "Token Response Fields"); servers disagree on the first
    /// two members' names, and some write the number as text.
    Reply {
        "token" => token: Scalar,
        "access_token" => access_token: Scalar,
        "expires_in" => expires_in: Scalar,
    }
}

impl Token {
    /// Reads a token server's answer. A life that is not above zero says nothing.
    pub(in crate::upstream) fn read(body: &[u8]) -> Result<Self, Error> {
        let unusable = || Error::unavailable("the token server's answer holds no usable token");
        let reply = json::read_first::<Object<Reply>>(body).and_then(|reply| reply.0);
        let reply = reply.ok_or_else(unusable)?;
        let text = reply.token.text().or_else(|| reply.access_token.text());
        let text = text.ok_or_else(unusable)?;
        if text.len() > MAX_TOKEN {
            let what = format!("the token server's token is larger than {MAX_TOKEN} bytes");
            return Err(Error::unavailable(what));
        }
        let mut header = HeaderValue::try_from(format!("Bearer {text}")).map_err(|_| unusable())?;
        header.set_sensitive(true);
        let life = match reply.expires_in.number().filter(|seconds| *seconds > 0.0) {
            Some(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or(MAX_LIFE),
            None => DEFAULT_LIFE,
        };
        let life = life.min(MAX_LIFE);
        Ok(Self { header, life })
    }

    fn usable_for(&self) -> Duration {
        self.life.saturating_sub((self.life / 4).min(MAX_MARGIN))
    }
}

/// The registry that a token is for, and its scope: two registries never share one. The token server is no part of
/// it, so a registry that names another one in each challenge makes no entries, but replaces them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct TokenKey {
    pub(in crate::upstream) audience: Audience,
    pub(in crate::upstream) scope: Option<String>,
}

/// The tokens of one credential.
pub(in crate::upstream) struct Tokens {
    clock: Clock,
    known: Cache<TokenKey, Outcome>,
}

/// The answer of a token server, kept for as long as it is good. Failures are kept too, for a moment: those that
/// waited for the same request share them.
#[derive(Clone)]
struct Outcome {
    /// The token server: realm and service, without a scope.
    server: Bearer,
    result: Result<Arc<Token>, Error>,
    from: Timestamp,
    lasts: Duration,
}

/// Returns the bytes that an entry takes.
fn weight(key: &TokenKey, outcome: &Outcome) -> u32 {
    let result = match &outcome.result {
        Ok(token) => token.header.len(),
        Err(error) => error.to_string().len(),
    };
    let scope = key.scope.as_ref().map_or(0, String::len);
    let texts = key.audience.url.as_str().len() + scope + outcome.server.size() + result;
    u32::try_from(ENTRY + texts).unwrap_or(u32::MAX)
}

/// The rule that an entry goes when its token ends, also where no request asks for it again.
struct WithToken;

impl Expiry<TokenKey, Outcome> for WithToken {
    fn expire_after_create(&self, _: &TokenKey, outcome: &Outcome, _: Instant) -> Option<Duration> {
        Some(outcome.lasts)
    }

    fn expire_after_update(
        &self,
        _: &TokenKey,
        outcome: &Outcome,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(outcome.lasts)
    }
}

impl Tokens {
    pub(in crate::upstream) fn new(clock: Clock) -> Self {
        let known = Cache::builder().max_capacity(MAX_TOKENS).weigher(weight);
        let known = known.expire_after(WithToken).build();
        Self { clock, known }
    }

    /// Returns the token of a token server; fetches it if there is none that lasts, only the `spent` one, or one of
    /// another token server.
    pub(in crate::upstream) async fn get(
        &self,
        key: TokenKey,
        server: Bearer,
        spent: Option<&Arc<Token>>,
        fetch: impl Future<Output = Result<Token, Error>>,
    ) -> Result<Arc<Token>, Error> {
        let wanted = server.clone();
        let outdated = |outcome: &Outcome| {
            let is_spent = |token: &Arc<Token>| spent.is_some_and(|spent| Arc::ptr_eq(token, spent));
            self.clock.is_over(outcome.from, outcome.lasts)
                || outcome.server != wanted
                || outcome.result.as_ref().is_ok_and(is_spent)
        };
        let entry = self.known.entry(key);
        entry
            .or_insert_with_if(self.outcome(server, fetch), outdated)
            .await
            .into_value()
            .result
    }

    async fn outcome(&self, server: Bearer, fetch: impl Future<Output = Result<Token, Error>>) -> Outcome {
        let asked = self.clock.now();
        let result = fetch.await.map(Arc::new);
        let lasts = match &result {
            Ok(token) => token.usable_for(),
            Err(Error::Denied { .. }) => DENIED_FOR,
            Err(_) => FAILED_FOR,
        };
        // A token's life starts at the server's clock, at the latest when it answered: count from the
        // question. A failure counts from its end.
        let from = if result.is_ok() { asked } else { self.clock.now() };
        Outcome {
            server,
            result,
            from,
            lasts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use test_case::test_case;

    fn key() -> TokenKey {
        key_of("repository:a:pull")
    }

    fn key_of(scope: &str) -> TokenKey {
        let audience = Audience {
            url: "https://r.example/".parse().unwrap(),
            trusted: true,
        };
        TokenKey {
            audience,
            scope: Some(scope.into()),
        }
    }

    fn token_server(service: &str) -> Bearer {
        Bearer {
            realm: "https://auth.example/token".parse().unwrap(),
            service: Some(service.into()),
            scope: None,
        }
    }

    struct Server {
        tokens: Tokens,
        clock: Clock,
        asked: AtomicUsize,
    }

    impl Server {
        fn new() -> Self {
            let clock = Clock::system();
            let tokens = Tokens::new(clock.clone());
            let asked = AtomicUsize::new(0);
            Self { tokens, clock, asked }
        }

        async fn get(&self, spent: Option<&Arc<Token>>, answer: &str) -> Result<Arc<Token>, Error> {
            let fetch = async {
                self.asked.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Token::read(answer.as_bytes())
            };
            self.tokens.get(key(), token_server("a"), spent, fetch).await
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    /// The token is read under both its names, and its lifetime defaults to 60 seconds.
    #[test]
    fn token_names_and_default_lifetime_are_read() {
        for body in [
            r#"{"token":"t"}"#,
            r#"{"access_token":"t"}"#,
            r#"{"token":"","access_token":"t","x":1}"#,
        ] {
            let token = Token::read(body.as_bytes()).unwrap();
            assert_eq!(token.header, "Bearer t");
            assert_eq!(token.life, Duration::from_mins(1));
        }
        assert_eq!(
            Token::read(br#"{"token":"t","expires_in":300}"#)
                .unwrap()
                .life
                .as_secs(),
            300
        );
    }

    #[test]
    fn answers_without_a_token_are_unusable() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"token":""}"#,
            r#"{"token":"a\nb"}"#,
            r#"{"token":1}"#,
        ] {
            assert!(
                matches!(Token::read(body.as_bytes()), Err(Error::Unavailable { .. })),
                "{body}"
            );
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::read(br#"{"token":"hunter2"}"#).unwrap();
        assert!(!format!("{token:?}").contains("hunter2"));
    }

    /// One hundred waiting requests cost one token request.
    #[tokio::test]
    async fn hundred_waiters_cost_one_token_request() {
        let server = Server::new();
        let all = (0..100).map(|_| server.get(None, r#"{"token":"t"}"#));
        assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
        assert_eq!(server.asked(), 1);
    }

    #[tokio::test]
    async fn token_failure_is_shared_denial_lasts_ten_seconds() {
        let server = Server::new();
        let refuse = || async {
            server.asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Err(Error::denied(401, "no"))
        };
        let get = || server.tokens.get(key(), token_server("a"), None, refuse());
        let all = (0..100).map(|_| get());
        assert!(futures::future::join_all(all).await.iter().all(Result::is_err));
        server.clock.advance(Duration::from_secs(9));
        assert!(get().await.is_err());
        assert_eq!(server.asked(), 1);
        server.clock.advance(Duration::from_secs(2));
        assert!(get().await.is_err());
        assert_eq!(server.asked(), 2);
    }

    /// A token is renewed ahead of its expiry.
    #[tokio::test]
    async fn token_is_renewed_ahead_of_expiry() {
        let server = Server::new();
        let answer = r#"{"token":"t","expires_in":300}"#;
        server.get(None, answer).await.unwrap();
        server.clock.advance(Duration::from_secs(265));
        server.get(None, answer).await.unwrap();
        assert_eq!(server.asked(), 1);
        server.clock.advance(Duration::from_secs(10));
        server.get(None, answer).await.unwrap();
        assert_eq!(server.asked(), 2);
    }

    /// A spent token is replaced once for all requests that used it.
    #[tokio::test]
    async fn spent_token_is_replaced_once_for_all() {
        let server = Server::new();
        let old = server.get(None, r#"{"token":"old"}"#).await.unwrap();
        let one = server.get(Some(&old), r#"{"token":"new"}"#).await.unwrap();
        let other = server.get(Some(&old), r#"{"token":"newer"}"#).await.unwrap();
        assert_eq!(
            (&one.header, server.asked()),
            (&HeaderValue::from_static("Bearer new"), 2)
        );
        assert!(Arc::ptr_eq(&one, &other));
    }

    #[test]
    fn token_above_16_kib_is_refused() {
        let read = |field: &str, length: usize| {
            Token::read(format!("{{\"{field}\":\"{}\"}}", "x".repeat(length)).as_bytes())
        };
        for field in ["token", "access_token"] {
            assert!(read(field, MAX_TOKEN).is_ok());
            let error = read(field, MAX_TOKEN + 1).unwrap_err();
            assert!(error.to_string().contains("larger than 16384 bytes"), "{error}");
        }
    }

    /// A registry that names another service in each challenge gets a new token for each, and keeps none of the others.
    #[tokio::test]
    async fn second_token_server_replaces_the_first() {
        let tokens = Tokens::new(Clock::system());
        for index in 0..200 {
            let fetch = async { Token::read(br#"{"token":"t","expires_in":300}"#) };
            let server = token_server(&format!("service-{index}"));
            tokens.get(key(), server, None, fetch).await.unwrap();
        }
        tokens.known.run_pending_tasks().await;
        assert_eq!(tokens.known.entry_count(), 1);
    }

    /// Keys count: each entry here is a short token, or a failure, under a long scope.
    #[tokio::test]
    async fn tokens_and_their_keys_are_bounded_in_bytes() {
        let (tokens, long) = (Tokens::new(Clock::system()), "x".repeat(2000));
        let weight = async |tokens: &Tokens| {
            tokens.known.run_pending_tasks().await;
            tokens.known.weighted_size()
        };
        for index in 0..4000 {
            let answer = if index % 2 == 0 { r#"{"token":"t"}"# } else { "" };
            let key = key_of(&format!("{index}{long}"));
            let fetch = async { Token::read(answer.as_bytes()) };
            let _ = tokens.get(key, token_server("a"), None, fetch).await;
        }
        let kept = weight(&tokens).await;
        assert!(kept > MAX_TOKENS / 2 && kept <= MAX_TOKENS, "{kept}");
        assert!(tokens.known.entry_count() < 2000);
    }

    #[tokio::test]
    async fn entry_expires_with_its_token() {
        let tokens = Tokens::new(Clock::system());
        let fetch = async { Token::read(br#"{"token":"t","expires_in":0.004}"#) };
        tokens.get(key(), token_server("a"), None, fetch).await.unwrap();
        while tokens.known.entry_count() > 0 || tokens.known.contains_key(&key()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            tokens.known.run_pending_tasks().await;
        }
    }

    /// The token response is read as Go reads it.
    #[test_case(r#"{"token":"old","token":"t","expires_in":300}"#; "a name twice")]
    #[test_case(r#"{"Token":"t","issued_at":"yesterday"}"#; "another letter case")]
    #[test_case(r#"{"token":null,"access_token":"t"}"#; "null")]
    #[test_case(r#"{"token":["x"],"access_token":"t"}"#; "another type")]
    #[test_case("{\"token\":\"t\"}\n{\"token\":\"x\"} x"; "more after it")]
    fn token_response_is_read_as_in_go(body: &str) {
        assert_eq!(Token::read(body.as_bytes()).unwrap().header, "Bearer t");
    }

    /// The lifetime of a token is read, or has its default.
    #[test_case("\"300\"", 270; "a number as text")]
    #[test_case("299.9", 269; "a fraction")]
    #[test_case("0", 45; "zero")]
    #[test_case("-1", 45; "negative")]
    #[test_case("1e300", 86_370; "huge")]
    #[test_case("99999999999999999999999", 86_370; "huge and whole")]
    #[test_case("\"soon\"", 45; "text that says nothing")]
    #[test_case("null", 45)]
    #[test_case("[]", 45; "a list")]
    fn lifetime_is_read_or_default(life: &str, usable: u64) {
        let body = format!("{{\"token\":\"t\",\"expires_in\":{life}}}");
        let token = Token::read(body.as_bytes()).unwrap();
        assert_eq!(token.usable_for().as_secs(), usable);
    }

    proptest! {
        /// No lifetime makes the reader panic.
        #[test]
        fn any_lifetime_does_not_panic(seconds: f64) {
            let body = serde_json::json!({ "token": "t", "expires_in": seconds }).to_string();
            if let Ok(token) = Token::read(body.as_bytes()) {
                prop_assert!(token.usable_for() <= MAX_LIFE);
            }
        }
    }
}
