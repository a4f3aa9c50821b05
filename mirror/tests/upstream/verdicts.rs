//! The verdict of an upstream on a credential before its use.

use mirror::clock::Clock;
use mirror::credential::Credential;
use mirror::credentials::CredentialVerdict;
use mirror::secret::Secret;
use mirror::upstream::Upstream;

use crate::hub::{Auth, Fault, Hub, Tokens};
use crate::{basic, impatient, upstream};

fn identity(token: &str) -> Credential {
    Credential::IdentityToken {
        username: String::new(),
        token: Secret::new(token),
    }
}

/// The registry accepts or rejects a password.
#[tokio::test]
async fn registry_accepts_or_rejects_password() {
    let hub = Hub::start().await;
    *hub.auth() = Auth::Basic("jane".into(), "right".into());
    let upstream = upstream(&hub);
    assert_eq!(
        upstream.verify(&basic("jane", "right")).await,
        CredentialVerdict::Accepted
    );
    let refused = upstream.verify(&basic("jane", "hunter2")).await;
    assert!(
        matches!(&refused, CredentialVerdict::Rejected(reason) if !reason.contains("hunter2")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn trial_of_password_asks_token_server_once() {
    let hub = Hub::start().await;
    let tokens = Tokens::at(&hub).only("jane", "right");
    *hub.auth() = Auth::Tokens(tokens);
    let upstream = upstream(&hub);
    assert_eq!(
        upstream.verify(&basic("jane", "right")).await,
        CredentialVerdict::Accepted
    );
    hub.forget();
    assert!(matches!(
        upstream.verify(&basic("jane", "wrong")).await,
        CredentialVerdict::Rejected(_)
    ));
    assert_eq!(hub.count("GET /token"), 1);
}

/// An identity token is accepted or rejected.
#[tokio::test]
async fn identity_token_is_accepted_or_rejected() {
    let hub = Hub::start().await;
    let tokens = Tokens::at(&hub).only_identity("right");
    *hub.auth() = Auth::Tokens(tokens);
    let upstream = upstream(&hub);
    assert_eq!(
        upstream.verify(&identity("right")).await,
        CredentialVerdict::Accepted
    );
    assert!(matches!(
        upstream.verify(&identity("wrong")).await,
        CredentialVerdict::Rejected(_)
    ));
    *hub.auth() = Auth::Basic("jane".into(), "right".into());
    assert!(matches!(
        upstream.verify(&identity("right")).await,
        CredentialVerdict::Rejected(_)
    ));
}

/// A failing upstream gives no verdict.
#[tokio::test]
async fn failing_upstream_gives_no_verdict() {
    let mut hub = Hub::start().await;
    let tokens = Tokens::at(&hub).only("jane", "right");
    *hub.auth() = Auth::Tokens(tokens);
    let upstream = Upstream::with_options(&hub.config(), impatient(Clock::system())).unwrap();
    for fault in [Fault::status(503), Fault::limited(None), Fault::Reset] {
        hub.always("GET /token", fault);
        let verdict = upstream.verify(&basic("jane", "right")).await;
        assert!(matches!(verdict, CredentialVerdict::NoVerdict(_)), "{verdict:?}");
        hub.heal();
    }
    hub.stop();
    let verdict = upstream.verify(&basic("jane", "right")).await;
    assert!(matches!(verdict, CredentialVerdict::NoVerdict(_)), "{verdict:?}");
}

/// A token server that must not see the password gives no verdict about it.
#[tokio::test]
async fn untrusted_token_server_gives_no_verdict() {
    let hub = Hub::start().await;
    let mut tokens = Tokens::at(&hub);
    tokens.realm = format!("http://localhost:{}/token", hub.url().port().unwrap());
    *hub.auth() = Auth::Tokens(tokens);
    let verdict = upstream(&hub).verify(&basic("jane", "right")).await;
    assert!(
        matches!(&verdict, CredentialVerdict::NoVerdict(reason) if reason.contains("trust.realms")),
        "{verdict:?}"
    );
}

/// A firewall or a captive portal blocks every request, whatever the credential is.
#[tokio::test]
async fn page_with_403_gives_no_verdict() {
    let hub = Hub::start().await;
    hub.once("GET /v2/", Fault::html(403));
    hub.once("GET /v2/", Fault::error(403, "DENIED"));
    let upstream = upstream(&hub);
    let verdict = upstream.verify(&basic("jane", "right")).await;
    assert!(matches!(verdict, CredentialVerdict::NoVerdict(_)), "{verdict:?}");
    let verdict = upstream.verify(&basic("jane", "right")).await;
    assert!(matches!(verdict, CredentialVerdict::Rejected(_)), "{verdict:?}");
}

/// Anonymous access needs no verdict.
#[tokio::test]
async fn anonymous_access_needs_no_verdict() {
    let hub = Hub::start().await;
    assert_eq!(
        upstream(&hub).verify(&Credential::Anonymous).await,
        CredentialVerdict::Accepted
    );
    assert_eq!(hub.count("*"), 0);
}
