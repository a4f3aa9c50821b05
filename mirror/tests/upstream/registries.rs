//! An upstream that redirects its API to another registry: what that one is shown, and what its answers mean.

use std::io::Write as _;

use http::StatusCode;
use mirror::clock::Clock;
use mirror::config;
use mirror::credential::Credential;
use mirror::credentials::CredentialVerdict;
use mirror::secret::Secret;
use mirror::upstream::{Accept, Error, Upstream};
use test_case::test_case;
use url::Url;

use crate::hub::{Auth, Fault, Hub, Seen, Tokens};
use crate::{basic, blob, name, pull, tag};

/// The upstream, and the registry that it redirects to, on another port of 127.0.0.1.
struct Two {
    first: Hub,
    second: Hub,
    config: config::Upstream,
}

impl Two {
    /// Starts both in clear text. Jane's password is configured.
    async fn start() -> Self {
        Self::new(Hub::start().await, Hub::start().await, 307)
    }

    fn new(first: Hub, second: Hub, status: u16) -> Self {
        second.push_image("library/app", "v1", &[b"layer"]);
        first.always("* library/", Fault::Forward(status, second.url()));
        let mut config = first.config();
        config.credential = basic("jane", "hunter2");
        config.tls.ca_file = second.ca_file().map(Into::into);
        Self {
            first,
            second,
            config,
        }
    }

    /// Returns the second registry by a name of its own, which `trust` can hold.
    fn by_name(&self) -> Url {
        let mut url = self.second.url();
        url.set_host(Some("localhost")).unwrap();
        url
    }

    /// Redirects to the second registry, token server included, by its own name.
    fn redirect_by_name(&self) {
        self.first.heal();
        self.first
            .always("* library/", Fault::Forward(307, self.by_name()));
    }

    fn with_tokens(&self, change: impl FnOnce(Tokens) -> Tokens) {
        *self.second.auth() = Auth::Tokens(change(Tokens::at(&self.second)));
    }

    fn upstream(&self) -> Upstream {
        Upstream::new(&self.config, Clock::system()).unwrap()
    }

    async fn pull(&self) -> Result<(), Error> {
        pull(&self.upstream()).await
    }

    /// Returns the kinds of Authorization that the second registry received, token server included.
    fn shown(&self) -> Vec<String> {
        let shown = |seen: &Seen| seen.authorization().to_owned();
        self.second.seen("*").iter().map(shown).collect()
    }
}

/// The registry that a redirect names receives an anonymous token.
#[test_case(301)]
#[test_case(302)]
#[test_case(303)]
#[test_case(307)]
#[test_case(308)]
#[tokio::test]
async fn redirect_target_gets_anonymous_token(status: u16) {
    let two = Two::new(Hub::start().await, Hub::start().await, status);
    two.with_tokens(|tokens| tokens);
    let digest = two.second.push_blob("library/app", b"blob");
    let (upstream, app) = (two.upstream(), name("library/app"));
    let manifest = upstream.manifest(&app, &tag("v1")).await.unwrap();
    let head = upstream
        .manifest_head(&app, &tag("v1"), &Accept::default())
        .await
        .unwrap();
    assert_eq!(head.digest.as_ref(), Some(manifest.content.digest()));
    assert_eq!(
        upstream.blob(&app, &digest, 0, None).await.unwrap().total,
        Some(4)
    );
    assert_eq!(upstream.blob_head(&app, &digest).await, Ok(Some(4)));
    assert_eq!(upstream.tags(&app, "n=1").await.unwrap().next, None);
    upstream.referrers(&app, manifest.content.digest()).await.unwrap();
    assert!(
        two.shown().iter().all(|shown| shown != "Basic"),
        "{:?}",
        two.shown()
    );
    assert_eq!((two.second.count("GET /token"), two.second.count("POST")), (1, 0));
    assert_eq!(two.second.seen("GET tags")[0].query, "n=1");
    assert_eq!(two.first.count("GET /token"), 0);
}

/// The second registry names the first one's token server, with the same service and scope.
#[tokio::test]
async fn tokens_of_registries_are_not_mixed() {
    let two = Two::start().await;
    let mut tokens = Tokens::at(&two.first).only("jane", "hunter2");
    tokens.anonymous = true;
    *two.first.auth() = Auth::Tokens(tokens);
    two.first.push_image("library/app", "v1", &[b"layer"]);
    let realm = format!("{}token", two.first.url());
    two.with_tokens(|mut tokens| {
        tokens.realm = realm;
        tokens
    });
    let upstream = two.upstream();
    two.first.heal();
    pull(&upstream).await.unwrap();
    two.first
        .always("* library/", Fault::Forward(307, two.second.url()));
    let refused = pull(&upstream).await;
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
    let asked = two.first.seen("GET /token");
    assert_eq!(
        (asked[0].authorization(), asked[1].authorization()),
        ("Basic", "")
    );
    let first = two.first.seen("GET library/").pop().unwrap();
    let second = two.second.seen("GET library/").pop().unwrap();
    assert_eq!(second.authorization(), "Bearer");
    assert_ne!(first.header("authorization"), second.header("authorization"));
}

/// The token for a registry behind a redirect is for the repository there.
#[tokio::test]
async fn redirected_token_is_for_its_own_repository() {
    let two = Two::start().await;
    two.second.push_image("copies/app", "v1", &[b"layer"]);
    two.with_tokens(|mut tokens| {
        tokens.challenge_scope = false;
        tokens
    });
    two.first.heal();
    let to = format!("{}v2/copies/app/manifests/v1", two.second.url());
    two.first.always("GET library/", Fault::redirect(&to));
    two.pull().await.unwrap();
    let query = &two.second.seen("GET /token")[0].query;
    assert!(query.contains("repository%3Acopies%2Fapp%3Apull"), "{query}");
}

/// A password that a different registry requires is denied.
#[tokio::test]
async fn password_challenge_of_other_registry_is_denied() {
    let two = Two::start().await;
    *two.second.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let error = two.pull().await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let hint = "add 127.0.0.1 to proxy.upstreams[].trust.redirects";
    assert!(error.to_string().contains(hint), "{error}");
    assert_eq!(two.shown(), [""]);
}

/// A token that only users receive is denied.
#[tokio::test]
async fn users_only_token_is_denied() {
    let two = Two::start().await;
    two.with_tokens(|tokens| tokens.only("jane", "hunter2"));
    let error = two.pull().await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert!(error.to_string().contains("trust.redirects"), "{error}");
    assert!(two.shown().iter().all(String::is_empty), "{:?}", two.shown());
}

/// A registry that the trust settings name receives the credentials.
#[test_case(&["localhost"], &[]; "for redirects")]
#[test_case(&[], &["localhost"]; "for tokens")]
#[tokio::test]
async fn trusted_registry_gets_the_credentials(redirects: &[&str], realms: &[&str]) {
    let mut two = Two::start().await;
    two.redirect_by_name();
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    (two.config.trust.redirects, two.config.trust.realms) = (list(redirects), list(realms));
    *two.second.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let upstream = two.upstream();
    pull(&upstream).await.unwrap();
    pull(&upstream).await.unwrap();
    assert_eq!(two.shown(), ["", "Basic", "Basic"]);
    two.second.forget();
    let realm = format!("{}token", two.by_name());
    two.with_tokens(|mut tokens| {
        tokens.realm = realm;
        tokens.only("jane", "hunter2")
    });
    two.pull().await.unwrap();
    assert_eq!(two.second.seen("GET /token")[0].authorization(), "Basic");
}

/// As with a `remoteurl` of `http://` for a registry that speaks https: the port changes with the scheme.
#[test_case(301)]
#[test_case(302)]
#[test_case(307)]
#[test_case(308)]
#[tokio::test]
async fn http_to_https_same_host_keeps_credentials(status: u16) {
    let two = Two::new(Hub::start().await, Hub::start_tls().await, status);
    *two.second.auth() = Auth::Basic("jane".into(), "hunter2".into());
    two.pull().await.unwrap();
    assert_eq!(two.shown(), ["", "Basic"]);
    two.second.forget();
    two.with_tokens(|tokens| tokens.only("jane", "hunter2"));
    let upstream = two.upstream();
    pull(&upstream).await.unwrap();
    pull(&upstream).await.unwrap();
    assert_eq!(two.shown(), ["", "Basic", "Bearer", "Bearer"]);
    assert!(
        two.first
            .seen("*")
            .iter()
            .all(|seen| seen.authorization().is_empty())
    );
}

/// A redirect from HTTP to HTTPS on a different host keeps no credentials.
#[tokio::test]
async fn http_to_https_other_host_drops_credentials() {
    let two = Two::new(Hub::start().await, Hub::start_tls().await, 307);
    two.redirect_by_name();
    *two.second.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let error = two.pull().await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert_eq!(two.shown(), [""]);
}

/// A different port of the same host is a different registry.
#[tokio::test]
async fn other_port_is_another_registry() {
    let mut two = Two::new(Hub::start_tls().await, Hub::start_tls().await, 307);
    let mut both = tempfile::NamedTempFile::new().unwrap();
    for hub in [&two.first, &two.second] {
        let pem = std::fs::read(hub.ca_file().unwrap()).unwrap();
        both.write_all(&pem).unwrap();
    }
    two.config.tls.ca_file = Some(both.path().to_owned());
    *two.second.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let error = two.pull().await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert_eq!(two.shown(), [""]);
}

/// The third registry is one that may see the credentials; a stranger must not choose what is asked there.
#[tokio::test]
async fn chain_through_stranger_is_anonymous() {
    let (mut two, third) = (Two::start().await, Hub::start().await);
    third.push_image("library/app", "v1", &[b"layer"]);
    *third.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let mut named = third.url();
    named.set_host(Some("localhost")).unwrap();
    two.config.trust.redirects = vec!["localhost".into()];
    two.second
        .always("* library/", Fault::Forward(307, named.clone()));
    let error = two.pull().await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert!(third.seen("*").iter().all(|seen| seen.authorization().is_empty()));
    two.first.heal();
    two.first.always("* library/", Fault::Forward(307, named));
    two.pull().await.unwrap();
}

/// A chain of redirects through untrusted registries gets the tokens of the last.
#[tokio::test]
async fn chain_of_strangers_gets_tokens_of_the_last() {
    let (two, third) = (Two::start().await, Hub::start().await);
    third.push_image("library/app", "v1", &[b"layer"]);
    *third.auth() = Auth::Tokens(Tokens::at(&third));
    two.second.always("* library/", Fault::Forward(302, third.url()));
    two.pull().await.unwrap();
    assert_eq!(
        (two.second.count("GET /token"), third.count("GET /token")),
        (0, 1)
    );
}

/// An untrusted registry cannot redirect to private content.
#[tokio::test]
async fn stranger_cannot_redirect_to_private_content() {
    let two = Two::start().await;
    two.first.push_image("library/private", "v1", &[b"layer"]);
    let tokens = Tokens::at(&two.first).only("jane", "hunter2");
    *two.first.auth() = Auth::Tokens(tokens);
    two.first.heal();
    let upstream = two.upstream();
    let private = upstream.manifest(&name("library/private"), &tag("v1")).await;
    private.unwrap();
    two.first.forget();
    two.first
        .always("GET library/app", Fault::Forward(307, two.second.url()));
    let back = format!("{}v2/library/private/manifests/v1", two.first.url());
    two.second.always("GET library/app", Fault::redirect(&back));
    let error = pull(&upstream).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let seen = two.first.seen("GET private");
    assert!(
        seen.iter().all(|seen| seen.authorization().is_empty()),
        "{seen:?}"
    );
    let asked = two.first.seen("GET /token").pop().unwrap();
    assert_eq!(asked.authorization(), "");
}

/// A revoked token of a registry behind a redirect is replaced.
#[tokio::test]
async fn revoked_token_of_other_registry_is_replaced() {
    let two = Two::start().await;
    two.with_tokens(|tokens| tokens);
    let upstream = two.upstream();
    pull(&upstream).await.unwrap();
    two.second.auth().tokens().revoke();
    pull(&upstream).await.unwrap();
    assert_eq!(two.second.count("GET /token"), 2);
}

/// The denial of one registry does not appear in the next denial.
#[tokio::test]
async fn denial_does_not_name_earlier_registries() {
    let two = Two::start().await;
    two.with_tokens(|tokens| tokens);
    let upstream = two.upstream();
    pull(&upstream).await.unwrap();
    two.with_tokens(|tokens| tokens.only("joe", "secret"));
    two.second.auth().tokens().revoke();
    let error = pull(&upstream).await.unwrap_err();
    assert!(error.to_string().contains("trust.redirects"), "{error}");
    two.first.always("* team/", Fault::error(403, "DENIED"));
    let denied = upstream.manifest(&name("team/app"), &tag("v1")).await;
    let error = denied.map(drop).unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert!(!error.to_string().contains("trust."), "{error}");
}

/// A host that the upstream may redirect to is no token server.
#[tokio::test]
async fn token_server_redirect_sends_no_password() {
    let mut two = Two::start().await;
    two.first.heal();
    two.first.push_image("library/app", "v1", &[b"layer"]);
    let tokens = Tokens::at(&two.first).only("jane", "hunter2");
    *two.first.auth() = Auth::Tokens(tokens);
    two.config.trust.redirects = vec!["localhost".into()];
    two.first.always("GET /token", Fault::Forward(307, two.by_name()));
    two.pull().await.unwrap_err();
    assert_eq!(two.shown(), [""]);
}

/// A storage in a private network, which `trust` names, refuses a signed URL that ended.
#[test_case(401, None; "without a challenge")]
#[test_case(403, None; "forbidden")]
#[test_case(401, Some("Basic realm=\"storage\""); "with a challenge for a password")]
#[test_case(401, Some("Bearer realm=\"REALM\""); "with a challenge for a token")]
#[tokio::test]
async fn trusted_storage_gets_no_credential(status: u16, challenge: Option<&str>) {
    let (hub, digest) = Hub::with_blob(b"blob").await;
    let mut storage = hub.storage_url();
    storage.set_host(Some("localhost")).unwrap();
    hub.redirect_blobs_to(storage.as_str());
    hub.always("GET /token", Fault::error(401, "UNAUTHORIZED"));
    let realm = storage.join("/token").unwrap();
    let challenge = challenge.map(|text| ("www-authenticate", text.replace("REALM", realm.as_str())));
    let status = StatusCode::from_u16(status).unwrap();
    let refusal = Fault::Answer(status, challenge.into_iter().collect(), bytes::Bytes::new());
    hub.always("GET /signed", refusal);
    let mut config = hub.config();
    config.credential = basic("jane", "hunter2");
    config.trust.redirects = vec!["localhost".into()];
    config.trust.realms = vec!["localhost".into()];
    let upstream = Upstream::new(&config, Clock::system()).unwrap();
    let error = blob(&upstream, &digest).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(hub.seen("*").iter().all(|seen| seen.authorization().is_empty()));
}

/// The 404 of the registry behind a redirect is final.
#[tokio::test]
async fn redirected_404_is_final() {
    let two = Two::start().await;
    let (upstream, other) = (two.upstream(), name("library/other"));
    let missing = upstream.manifest(&other, &tag("v1")).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    let digest = two.second.push_blob("library/app", b"blob");
    let missing = upstream.blob_head(&other, &digest).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
}

/// The upstream redirects blobs to its storage.
#[test_case(None; "without a challenge")]
#[test_case(Some("Basic realm=\"storage\""); "with a challenge for a password")]
#[test_case(Some("Bearer realm=\"REALM\""); "with a challenge for a token that is refused")]
#[test_case(Some("Bearer authorization_uri=\"https://login.example\""); "with a challenge that names no realm")]
#[tokio::test]
async fn storage_401_does_not_reject_credential(challenge: Option<&str>) {
    let (hub, digest) = Hub::with_blob(b"blob").await;
    hub.redirect_blobs(true);
    hub.always("GET /token", Fault::error(401, "UNAUTHORIZED"));
    let realm = format!("{}token", hub.url());
    let challenge = challenge.map(|text| ("www-authenticate", text.replace("REALM", &realm)));
    let refusal = Fault::Answer(
        StatusCode::UNAUTHORIZED,
        challenge.into_iter().collect(),
        bytes::Bytes::new(),
    );
    hub.always("GET /signed", refusal);
    let mut config = hub.config();
    config.credential = basic("jane", "hunter2");
    let upstream = Upstream::new(&config, Clock::system()).unwrap();
    let error = blob(&upstream, &digest).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(hub.seen("*").iter().all(|seen| seen.authorization().is_empty()));
}

/// A token server that redirects to HTTPS keeps the password.
#[tokio::test]
async fn token_server_upgrade_to_https_keeps_password() {
    let (hub, sealed) = (Hub::start().await, Hub::start_tls().await);
    hub.push_image("library/app", "v1", &[b"layer"]);
    let tokens = Tokens::at(&hub).only("jane", "hunter2");
    *hub.auth() = Auth::Tokens(tokens);
    hub.always("GET /token", Fault::Forward(301, sealed.url()));
    let granted = bytes::Bytes::from_static(br#"{"token":"t"}"#);
    sealed.always("GET /token", Fault::Answer(StatusCode::OK, Vec::new(), granted));
    let mut config = hub.config();
    config.credential = basic("jane", "hunter2");
    config.tls.ca_file = sealed.ca_file().map(Into::into);
    let _ = pull(&Upstream::new(&config, Clock::system()).unwrap()).await;
    assert_eq!(sealed.seen("GET /token")[0].authorization(), "Basic");
    assert_eq!(
        hub.seen("GET library/").pop().unwrap().header("authorization"),
        Some("Bearer t")
    );
}

/// An identity token is posted again only to the same host.
#[test_case(301, false; "moved permanently")]
#[test_case(302, false; "found")]
#[test_case(303, false; "see other")]
#[test_case(307, true; "temporary")]
#[test_case(308, true; "permanent")]
#[tokio::test]
async fn identity_token_is_reposted_on_same_host_only(status: u16, again: bool) {
    let (hub, sealed, other) = (Hub::start().await, Hub::start_tls().await, Hub::start().await);
    let tokens = Tokens::at(&hub).only_identity("refresh-me");
    *hub.auth() = Auth::Tokens(tokens);
    let mut config = hub.config();
    config.credential = Credential::IdentityToken {
        username: String::new(),
        token: Secret::new("refresh-me"),
    };
    config.tls.ca_file = sealed.ca_file().map(Into::into);
    hub.always("POST /token", Fault::Forward(status, sealed.url()));
    let _ = pull(&Upstream::new(&config, Clock::system()).unwrap()).await;
    let posted = sealed.seen("POST /token");
    assert_eq!(posted.iter().any(|seen| seen.form.contains("refresh-me")), again);
    hub.heal();
    hub.always("POST /token", Fault::Forward(status, other.url()));
    let _ = pull(&Upstream::new(&config, Clock::system()).unwrap()).await;
    assert_eq!(other.count("*"), 0);
}

/// A credential that was not sent gets no verdict.
#[tokio::test]
async fn unsent_credential_gets_no_verdict() {
    let two = Two::start().await;
    two.with_tokens(|tokens| tokens);
    two.first
        .always("GET /v2/", Fault::Forward(307, two.second.url()));
    let verdict = two.upstream().verify(&basic("jane", "hunter2")).await;
    let named = |reason: &str| reason.contains("trust.redirects");
    assert!(
        matches!(&verdict, CredentialVerdict::NoVerdict(reason) if named(reason)),
        "{verdict:?}"
    );
    *two.second.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let verdict = two.upstream().verify(&basic("jane", "hunter2")).await;
    assert!(
        matches!(&verdict, CredentialVerdict::NoVerdict(reason) if named(reason)),
        "{verdict:?}"
    );
}

/// A redirected request has a `Referer`.
#[tokio::test]
async fn redirected_request_has_referer() {
    let (two, third) = (Two::start().await, Hub::start().await);
    third.push_image("library/app", "v1", &[b"layer"]);
    two.second.always("* library/", Fault::Forward(302, third.url()));
    two.upstream().tags(&name("library/app"), "n=5").await.unwrap();
    let referer = |hub: &Hub| hub.seen("GET tags")[0].header("referer").map(str::to_owned);
    let path = "v2/library/app/tags/list";
    assert_eq!(referer(&two.first), None);
    assert_eq!(referer(&two.second), Some(format!("{}{path}", two.first.url())));
    assert_eq!(referer(&third), Some(format!("{}{path}", two.second.url())));
}

#[tokio::test]
async fn a_storage_receives_the_referer() {
    let (hub, digest) = Hub::with_blob(b"blob").await;
    hub.redirect_blobs(true);
    let upstream = Upstream::new(&hub.config(), Clock::system()).unwrap();
    let app = name("library/app");
    upstream.blob(&app, &digest, 0, None).await.unwrap();
    let referer = format!("{}v2/library/app/blobs/{digest}", hub.url());
    assert_eq!(
        hub.seen("GET /signed")[0].header("referer"),
        Some(referer.as_str())
    );
}
