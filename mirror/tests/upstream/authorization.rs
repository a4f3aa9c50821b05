//! The credentials that each host receives.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mirror::clock::Clock;
use mirror::credential::Credential;
use mirror::secret::Secret;
use mirror::upstream::{Accept, Error, Options, Upstream};
use test_case::test_case;

use crate::hub::{Auth, Fault, Hub, Tokens};
use crate::{basic, impatient, name, pull, tag, upstream, upstream_as};

async fn with_tokens(change: impl FnOnce(Tokens) -> Tokens) -> Hub {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    hub.push_image("library/other", "v1", &[b"layer"]);
    let tokens = change(Tokens::at(&hub));
    *hub.auth() = Auth::Tokens(tokens);
    hub
}

/// A registry that does not challenge a request receives no credentials.
#[tokio::test]
async fn unchallenged_request_sends_no_credentials() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    pull(&upstream_as(&hub, basic("jane", "hunter2"))).await.unwrap();
    assert_eq!(hub.seen("GET manifests")[0].authorization(), "");
}

/// User and password are sent after a challenge, and then with each request.
#[tokio::test]
async fn password_is_sent_once_challenged() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    *hub.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let upstream = upstream_as(&hub, basic("jane", "hunter2"));
    pull(&upstream).await.unwrap();
    pull(&upstream).await.unwrap();
    let shown: Vec<_> = hub
        .seen("GET manifests")
        .iter()
        .map(|s| s.authorization().to_owned())
        .collect();
    assert_eq!(shown, ["", "Basic", "Basic"]);
}

#[test_case("Basic realm=\"hub\""; "asks for a password")]
#[test_case("Bearer realm=\"REALM\",service=\"hub\""; "asks for a token that no client gets")]
#[tokio::test]
async fn challenge_of_one_repository_spares_open_one(challenge: &str) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let realm = format!("{}token", hub.url());
    let challenge = vec![("www-authenticate", challenge.replace("REALM", &realm))];
    let refusal = Fault::Answer(StatusCode::UNAUTHORIZED, challenge, Bytes::new());
    hub.always("GET private", refusal);
    hub.always("GET /token", Fault::error(401, "UNAUTHORIZED"));
    let upstream = upstream(&hub);
    let private = upstream.manifest(&name("library/private"), &tag("v1")).await;
    assert!(matches!(private, Err(Error::Denied { .. })), "{private:?}");
    pull(&upstream).await.unwrap();
}

#[tokio::test]
async fn wrong_password_is_sent_once_and_never_shown() {
    let hub = Hub::start().await;
    *hub.auth() = Auth::Basic("jane".into(), "right".into());
    let upstream = upstream_as(&hub, basic("jane", "hunter2"));
    let error = pull(&upstream).await.unwrap_err();
    assert!(matches!(error, Error::Denied { status: 401, .. }), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("hunter2"));
    assert_eq!(hub.count("GET manifests"), 2);
}

/// A refused password is explained each time, also once it is known that the registry asks for one.
#[tokio::test]
async fn refused_password_error_has_upstreams_message() {
    let hub = Hub::start().await;
    let challenge = vec![("www-authenticate", "Basic realm=\"hub\"".to_owned())];
    let words = "Your authorization token has expired.";
    hub.always(
        "* manifests",
        Fault::Answer(StatusCode::UNAUTHORIZED, challenge, words.into()),
    );
    let upstream = upstream_as(&hub, basic("jane", "hunter2"));
    for _ in 0..2 {
        let error = pull(&upstream).await.unwrap_err();
        assert!(
            matches!(&error, Error::Denied { status: 401, message, .. } if message.contains(words)),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn hundred_requests_share_one_token() {
    let hub = with_tokens(|tokens| tokens.only("jane", "hunter2")).await;
    let upstream = upstream_as(&hub, basic("jane", "hunter2"));
    let all = (0..100).map(|_| pull(&upstream));
    assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
    assert_eq!(hub.count("GET /token"), 1);
    let token = &hub.seen("GET /token")[0];
    assert_eq!(token.authorization(), "Basic");
    assert_eq!(token.query, "service=hub&scope=repository%3Alibrary%2Fapp%3Apull");
    hub.forget();
    pull(&upstream).await.unwrap();
    assert_eq!(hub.count("*"), 1);
}

/// A second repository needs a token of its own, but no refusal.
#[tokio::test]
async fn each_repository_needs_its_own_token() {
    let hub = with_tokens(|tokens| tokens).await;
    let upstream = upstream(&hub);
    pull(&upstream).await.unwrap();
    hub.forget();
    upstream
        .manifest(&name("library/other"), &tag("v1"))
        .await
        .unwrap();
    assert_eq!((hub.count("GET /token"), hub.count("GET manifests")), (1, 1));
}

/// The scope is that of the challenge, and is remembered.
#[tokio::test]
async fn challenge_scope_is_remembered() {
    let scope = Some("registry:{name}:read".to_owned());
    let hub = with_tokens(|mut tokens| {
        tokens.scope = scope;
        tokens
    })
    .await;
    let upstream = upstream(&hub);
    pull(&upstream).await.unwrap();
    hub.forget();
    pull(&upstream).await.unwrap();
    assert_eq!(hub.count("*"), 1);
}

/// The scope has the name under which the upstream knows the repository.
#[tokio::test]
async fn scope_has_upstreams_repository_name() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.push_image("proxy/library/app", "v1", &[b"layer"]);
    let mut config = hub.config();
    config.repository_prefix = Some(name("proxy"));
    pull(&Upstream::new(&config, Clock::system()).unwrap())
        .await
        .unwrap();
    assert!(hub.seen("GET /token")[0].query.contains("proxy%2Flibrary%2Fapp"));
}

#[tokio::test]
async fn access_token_is_accepted_and_renewed_in_time() {
    let hub = with_tokens(|mut tokens| {
        (tokens.field, tokens.expires_in) = ("access_token", None);
        tokens
    })
    .await;
    let clock = Clock::system();
    let upstream = Upstream::new(&hub.config(), clock.clone()).unwrap();
    pull(&upstream).await.unwrap();
    clock.advance(Duration::from_secs(40));
    pull(&upstream).await.unwrap();
    assert_eq!(hub.count("GET /token"), 1);
    clock.advance(Duration::from_secs(10));
    pull(&upstream).await.unwrap();
    assert_eq!(hub.count("GET /token"), 2);
    // Renewed ahead of time: upstream never saw an old one.
    assert_eq!(
        hub.seen("GET manifests")
            .iter()
            .filter(|seen| seen.status == 401)
            .count(),
        1
    );
}

/// A revoked token costs one retry with a new one.
#[tokio::test]
async fn revoked_token_costs_one_retry() {
    let hub = with_tokens(|tokens| tokens).await;
    let upstream = upstream(&hub);
    pull(&upstream).await.unwrap();
    hub.auth().tokens().revoke();
    pull(&upstream).await.unwrap();
    assert_eq!(hub.count("GET /token"), 2);
}

#[tokio::test]
async fn revoked_token_is_replaced_without_challenge() {
    let hub = with_tokens(|tokens| tokens).await;
    let upstream = upstream(&hub);
    pull(&upstream).await.unwrap();
    hub.once("GET manifests", Fault::status(401));
    pull(&upstream).await.unwrap();
    assert_eq!(hub.count("GET /token"), 2);
}

/// A 401 after a fresh token is final.
#[tokio::test]
async fn refusal_of_fresh_token_is_final() {
    let closed = vec!["library/app".to_owned()];
    let hub = with_tokens(|mut tokens| {
        tokens.closed = closed;
        tokens
    })
    .await;
    let error = pull(&upstream(&hub)).await.unwrap_err();
    assert!(matches!(error, Error::Denied { status: 401, .. }), "{error:?}");
    assert_eq!((hub.count("GET /token"), hub.count("GET manifests")), (1, 2));
}

#[tokio::test]
async fn refused_password_reaches_token_server_once() {
    let hub = with_tokens(|tokens| tokens.only("jane", "right")).await;
    let upstream = upstream_as(&hub, basic("jane", "hunter2"));
    let all = (0..50).map(|_| pull(&upstream));
    for error in futures::future::join_all(all).await {
        assert!(
            matches!(error, Err(Error::Denied { status: 401, .. })),
            "{error:?}"
        );
    }
    assert_eq!(hub.count("GET /token"), 1);
}

/// A password that the token server repeats is not passed on.
#[tokio::test]
async fn password_repeated_by_token_server_is_hidden() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.always("GET /token", Fault::error(401, "hunter2 is wrong"));
    let error = pull(&upstream_as(&hub, basic("jane", "hunter2")))
        .await
        .unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test_case(403; "where it denies")]
#[test_case(404; "where it has nothing")]
#[tokio::test]
async fn secret_in_error_body_is_not_passed_on(status: u16) {
    for (hub, secret) in [
        (
            with_tokens(|tokens| tokens.only("jane", "hunter2")).await,
            "token-1",
        ),
        (Hub::start().await, "amFuZTpodW50ZXIy"),
    ] {
        if secret != "token-1" {
            *hub.auth() = Auth::Basic("jane".into(), "hunter2".into());
        }
        let upstream = upstream_as(&hub, basic("jane", "hunter2"));
        let _ = pull(&upstream).await;
        let words = format!("{} {secret} {secret} and hunter2", "x".repeat(160));
        let code = format!("{{\"errors\":[{{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"{words}\"}}]}}");
        let answer = Fault::Answer(StatusCode::from_u16(status).unwrap(), Vec::new(), code.into());
        hub.always("GET manifests", answer);
        let error = pull(&upstream).await.unwrap_err().to_string();
        assert!(error.contains("x [secret]"), "{error}");
        assert!(
            !error.contains(&secret[..6]) && !error.contains("hunter"),
            "{error}"
        );
    }
}

/// A registry that repeats a secret in another notation brings it into no error.
#[test_case("HUNTER2-SECRET"; "upper case")]
#[test_case("%68unter2%2Dsecret"; "percent-encoded")]
#[test_case("hunter2\\u002dsecret"; "an escape of JSON in text")]
#[test_case("hun ter2\\n-secret"; "split")]
#[test_case("aHVudGVyMi1zZWNyZXQ"; "base64 without padding")]
#[test_case("amFuZTpodW50ZXIyLXNlY3JldA"; "the login in base64 without padding")]
#[tokio::test]
async fn secret_in_other_notation_is_not_passed_on(echoed: &str) {
    let hub = Hub::start().await;
    *hub.auth() = Auth::Basic("jane".into(), "hunter2-secret".into());
    let upstream = upstream_as(&hub, basic("jane", "hunter2-secret"));
    let _ = pull(&upstream).await;
    let body = format!("{{\"errors\":[{{\"code\":\"DENIED\",\"message\":\"a {echoed} b\"}}]}}");
    let answer = Fault::Answer(StatusCode::FORBIDDEN, Vec::new(), body.into());
    hub.always("GET manifests", answer);
    let error = pull(&upstream).await.unwrap_err().to_string();
    assert!(error.contains("a [secret] b"), "{error}");
}

/// An identity token is sent with POST and is never in a URL.
#[tokio::test]
async fn identity_token_is_posted_not_in_url() {
    let hub = with_tokens(|tokens| tokens.only_identity("refresh-me")).await;
    let credential = Credential::IdentityToken {
        username: "jane".into(),
        token: Secret::new("refresh-me"),
    };
    pull(&upstream_as(&hub, credential)).await.unwrap();
    let post = &hub.seen("POST /token")[0];
    assert!(
        post.form
            .contains("grant_type=refresh_token&client_id=registry-mirror&service=hub")
    );
    assert!(post.form.contains("refresh_token=refresh-me"));
    assert!(post.form.contains("scope=repository%3Alibrary%2Fapp%3Apull"));
    assert_eq!(post.query, "");
}

/// The POST of an identity token follows no redirect to a different origin.
#[tokio::test]
async fn posted_identity_token_follows_no_redirect() {
    let hub = with_tokens(|tokens| tokens.only_identity("refresh-me")).await;
    hub.always("POST /token", Fault::redirect(hub.storage_url().as_str()));
    let credential = Credential::IdentityToken {
        username: String::new(),
        token: Secret::new("refresh-me"),
    };
    let error = pull(&upstream_as(&hub, credential)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(hub.seen("*").iter().all(|seen| !seen.storage));
}

/// A token request that is redirected to a different origin has no password there.
#[tokio::test]
async fn redirected_token_request_has_no_password() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.once(
        "GET /token",
        Fault::redirect(&format!("{}token", hub.storage_url())),
    );
    let _ = pull(&upstream_as(&hub, basic("jane", "hunter2"))).await;
    let seen = hub.seen("GET /token");
    assert_eq!((seen[0].authorization(), seen[1].authorization()), ("Basic", ""));
    assert!(seen[1].storage);
}

/// The same machine by a name that is another host as far as credentials go.
fn elsewhere(hub: &Hub) -> String {
    format!("http://localhost:{}/token", hub.url().port().unwrap())
}

#[tokio::test]
async fn foreign_token_server_gets_no_credential_hint_names_key() {
    let hub = with_tokens(|tokens| tokens.only("jane", "hunter2")).await;
    let realm = elsewhere(&hub);
    hub.auth().tokens().realm = realm;
    let mut config = hub.config();
    config.credential = basic("jane", "hunter2");
    let error = pull(&Upstream::new(&config, Clock::system()).unwrap())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("trust.realms"), "{error}");
    assert_eq!(hub.seen("GET /token")[0].authorization(), "");
    hub.forget();
    config.trust.realms = vec!["localhost".into()];
    pull(&Upstream::new(&config, Clock::system()).unwrap())
        .await
        .unwrap();
    assert_eq!(hub.seen("GET /token")[0].authorization(), "Basic");
}

/// A new credential drops the tokens of the previous one.
#[tokio::test]
async fn new_credential_drops_old_tokens() {
    let hub = with_tokens(|tokens| tokens.only("jane", "hunter2")).await;
    let upstream = upstream_as(&hub, basic("jane", "wrong"));
    assert!(pull(&upstream).await.is_err());
    upstream.use_credential(basic("jane", "hunter2"), 2);
    pull(&upstream).await.unwrap();
    upstream.use_credential(basic("jane", "wrong"), 3);
    assert!(pull(&upstream).await.is_err());
}

#[tokio::test]
async fn token_server_429_does_not_suspend_registry() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.always("GET /token", Fault::limited(Some("7")));
    let clock = Clock::system();
    let options = Options {
        clock: clock.clone(),
        ..Options::default()
    };
    let upstream = Upstream::with_options(&hub.config(), options).unwrap();
    for _ in 0..3 {
        let error = pull(&upstream).await.unwrap_err();
        assert!(
            matches!(error, Error::RateLimited { retry_after, .. } if retry_after > Duration::from_secs(5))
        );
    }
    assert_eq!(hub.count("GET /token"), 1);
    hub.heal();
    clock.advance(Duration::from_secs(8));
    pull(&upstream).await.unwrap();
}

/// The token server is gone, hangs, or answers what no token server does.
#[test_case(Fault::Reset; "without an answer")]
#[test_case(Fault::Hang; "hanging")]
#[test_case(Fault::status(404); "with 404")]
#[test_case(Fault::html(200); "with a page")]
#[test_case(Fault::error(401, "UNAUTHORIZED"); "with a denial")]
#[test_case(Fault::limited(None); "with a rate limit")]
#[test_case(Fault::status(500); "with 500")]
#[test_case(Fault::Cut(3); "cut")]
#[test_case(Fault::Stall(3); "stalled")]
#[test_case(Fault::Body("{\"token\":".into()); "with broken JSON")]
#[test_case(Fault::Body(vec![b' '; 1 << 20].into()); "with too many bytes")]
#[test_case(Fault::redirect("http://169.254.169.254/"); "with a redirect into a private network")]
#[tokio::test]
async fn unresponsive_token_server_is_dropped(fault: Fault) {
    let hub = with_tokens(|mut tokens| {
        tokens.expires_in = Some(60);
        tokens
    })
    .await;
    let clock = Clock::system();
    let upstream = Upstream::with_options(&hub.config(), impatient(clock.clone())).unwrap();
    pull(&upstream).await.unwrap();
    hub.always("GET /token", fault);
    let tokens = std::mem::take(&mut *hub.auth());
    clock.advance(Duration::from_mins(1));
    // The registry is open by now.
    pull(&upstream).await.unwrap();
    *hub.auth() = tokens;
    hub.auth().tokens().realm = format!("{}v2/grant", hub.url());
    let granted = Bytes::from_static(br#"{"token":"elsewhere"}"#);
    hub.always(
        "GET /v2/grant",
        Fault::Answer(StatusCode::OK, Vec::new(), granted),
    );
    clock.advance(Duration::from_mins(10));
    // It has another token server.
    let _ = pull(&upstream).await;
    assert_eq!(
        hub.seen("GET manifests").pop().unwrap().header("authorization"),
        Some("Bearer elsewhere")
    );
}

/// The token server never worked: its certificate is not trusted.
#[tokio::test]
async fn token_server_with_bad_tls_is_forgotten() {
    let (hub, token_server) = (with_tokens(|tokens| tokens).await, Hub::start_tls().await);
    hub.auth().tokens().realm = format!("{}token", token_server.url());
    let upstream = upstream(&hub);
    for _ in 0..2 {
        let error = pull(&upstream).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
    *hub.auth() = Auth::Anyone;
    pull(&upstream).await.unwrap();
}

/// The rest of a token server is none of a registry that asks for no token any more.
#[tokio::test]
async fn resting_token_server_leaves_open_registry() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.always("GET /token", Fault::limited(Some("3600")));
    let upstream = upstream(&hub);
    for _ in 0..2 {
        let error = pull(&upstream).await.unwrap_err();
        assert!(matches!(error, Error::RateLimited { .. }), "{error:?}");
    }
    *hub.auth() = Auth::Anyone;
    pull(&upstream).await.unwrap();
    assert_eq!(hub.count("GET /token"), 1);
}

/// A registry that names another token server in each challenge still gets the right token for each request.
#[tokio::test]
async fn services_that_alternate_are_each_asked() {
    let hub = with_tokens(|tokens| tokens).await;
    let upstream = upstream(&hub);
    for service in ["a", "b", "a", "b"] {
        hub.auth().tokens().service = service.into();
        hub.auth().tokens().revoke();
        pull(&upstream).await.unwrap();
        assert!(
            hub.seen("GET /token")
                .pop()
                .unwrap()
                .query
                .starts_with(&format!("service={service}&"))
        );
    }
}

#[tokio::test]
async fn token_above_16_kib_is_not_used() {
    let hub = with_tokens(|tokens| tokens).await;
    let token = format!("{{\"token\":\"{}\"}}", "t".repeat(17 * 1024));
    hub.always(
        "GET /token",
        Fault::Answer(StatusCode::OK, Vec::new(), token.into()),
    );
    let error = pull(&upstream(&hub)).await.unwrap_err();
    assert!(error.to_string().contains("larger than 16384 bytes"), "{error}");
    assert_eq!(hub.count("GET manifests"), 1);
}

/// Go's client, which Distribution and containerd use, decompresses such an answer unseen.
#[test_case("gzip"; "labelled gzip")]
#[test_case("x-gzip"; "labelled by the old name")]
#[test_case(""; "not labelled")]
#[tokio::test]
async fn a_compressed_token_answer_is_read(label: &str) {
    let hub = with_tokens(|tokens| tokens).await;
    hub.always("GET /token", Fault::Compress(label.to_owned()));
    pull(&upstream(&hub)).await.unwrap();
}

/// A plain token response that is labelled as gzip is read.
#[tokio::test]
async fn plain_token_response_labelled_gzip_is_read() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.always("GET /token", Fault::Gzip);
    pull(&upstream(&hub)).await.unwrap();
}

/// A token response that decompresses to many megabytes is given up.
#[tokio::test]
async fn compressed_token_bomb_is_given_up() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.always("GET /token", Fault::Compress("gzip".into()));
    hub.auth().tokens().padding = 20 << 20;
    let error = pull(&upstream(&hub)).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

/// The compressed message of a denial is read.
#[tokio::test]
async fn compressed_denial_message_is_read() {
    let hub = with_tokens(|tokens| tokens.only("jane", "right")).await;
    hub.always("GET /token", Fault::Compress("gzip".into()));
    let error = pull(&upstream_as(&hub, basic("jane", "wrong")))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("UNAUTHORIZED"), "{error}");
}

/// A manifest, a blob by way of a storage, a list, and a token of the token server.
#[tokio::test]
async fn every_request_asks_for_identity() {
    let hub = with_tokens(|tokens| tokens).await;
    let digest = hub.push_blob("library/app", b"layer");
    hub.redirect_blobs(true);
    let (upstream, app) = (upstream(&hub), name("library/app"));
    pull(&upstream).await.unwrap();
    upstream
        .manifest_head(&app, &tag("v1"), &Accept::default())
        .await
        .unwrap();
    upstream.blob(&app, &digest, 0, None).await.unwrap();
    upstream.blob_head(&app, &digest).await.unwrap();
    upstream.tags(&app, "").await.unwrap();
    let seen = hub.seen("*");
    assert!(seen.iter().any(|seen| seen.storage) && seen.iter().any(|seen| seen.path == "/token"));
    for seen in seen {
        let encodings: Vec<_> = seen.headers.get_all("accept-encoding").iter().collect();
        assert_eq!(encodings, ["identity"], "{}", seen.path);
    }
}

/// A token server that sends a page counts as a failure of the upstream.
#[tokio::test]
async fn invalid_token_response_is_unavailable() {
    let hub = with_tokens(|tokens| tokens).await;
    hub.always("GET /token", Fault::html(200));
    let error = pull(&upstream(&hub)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}
