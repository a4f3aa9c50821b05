//! The allowed targets of redirects.

use mirror::clock::Clock;
use mirror::upstream::{Error, Upstream};

use test_case::test_case;

use crate::hub::{Auth, Fault, Hub, Tokens};
use crate::{basic, name, pull, upstream, upstream_as};

async fn start() -> Hub {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    hub
}

/// A redirect within the registry keeps its authorization.
#[tokio::test]
async fn redirect_within_registry_keeps_authorization() {
    let hub = start().await;
    *hub.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let upstream = upstream_as(&hub, basic("jane", "hunter2"));
    pull(&upstream).await.unwrap();
    hub.once(
        "GET manifests",
        Fault::redirect("/v2/library/app/manifests/v1?again"),
    );
    pull(&upstream).await.unwrap();
    assert_eq!(hub.seen("GET manifests").last().unwrap().authorization(), "Basic");
}

/// A different origin sees no authorization, nor does a redirect back from it.
#[tokio::test]
async fn other_origin_sees_no_authorization() {
    let hub = start().await;
    let tokens = Tokens::at(&hub);
    *hub.auth() = Auth::Tokens(tokens);
    let upstream = upstream(&hub);
    pull(&upstream).await.unwrap();
    hub.forget();
    let back = format!("{}v2/library/app/manifests/v1", hub.url());
    hub.once(
        "GET manifests",
        Fault::redirect(&format!("{}away", hub.storage_url())),
    );
    hub.once("GET /away", Fault::redirect(&back));
    let _ = pull(&upstream).await;
    let seen: Vec<_> = hub
        .seen("GET")
        .iter()
        .map(|s| (s.storage, s.authorization().to_owned()))
        .collect();
    assert_eq!(seen[0], (false, "Bearer".to_owned()));
    assert_eq!(seen[1], (true, String::new()));
    assert_eq!(seen[2], (false, String::new()));
}

/// A loop of redirects ends with an error.
#[tokio::test]
async fn redirect_loop_ends() {
    let hub = start().await;
    hub.always("GET manifests", Fault::redirect("/v2/library/app/manifests/v1"));
    let error = pull(&upstream(&hub)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(hub.count("GET manifests") < 20);
}

/// No redirect reaches the metadata service or a private network.
#[tokio::test]
async fn no_redirect_reaches_metadata_service() {
    let hub = start().await;
    for target in [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://0xa9fea9fe/",
        "http://10.0.0.1/",
        "http://100.100.100.200/",
    ] {
        hub.once("GET manifests", Fault::redirect(target));
        let error = pull(&upstream(&hub)).await.unwrap_err();
        assert!(error.to_string().contains("private network"), "{target}: {error}");
    }
}

/// An upstream on this machine may redirect to this machine by a different name.
#[tokio::test]
async fn local_upstream_may_redirect_locally() {
    let hub = start().await;
    let digest = hub.push_blob("library/app", b"layer");
    hub.redirect_blobs_to(&format!(
        "http://localhost:{}/",
        hub.storage_url().port().unwrap()
    ));
    upstream(&hub)
        .blob(&name("library/app"), &digest, 0, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn http_proxy_is_used_and_literal_addresses_checked() {
    let hub = start().await;
    let mut config = hub.config();
    config.remote = "http://registry.example".parse().unwrap();
    config.proxy_url = Some(hub.url());
    let upstream = Upstream::new(&config, Clock::system()).unwrap();
    pull(&upstream).await.unwrap();
    assert_eq!(
        hub.seen("GET manifests")[0].header("host"),
        Some("registry.example")
    );
    hub.once("GET manifests", Fault::redirect("http://127.0.0.1:1/"));
    let error = pull(&upstream).await.unwrap_err();
    assert!(error.to_string().contains("private network"), "{error}");
    config.trust.redirects = vec!["127.0.0.0/8".into()];
    let upstream = Upstream::new(&config, Clock::system()).unwrap();
    hub.once(
        "GET manifests",
        Fault::redirect("http://127.0.0.1:1/v2/library/app/manifests/v1"),
    );
    pull(&upstream).await.unwrap();
}

/// A proxy resolves names where the server cannot check their addresses.
#[test_case("http://minio:9000/"; "one label")]
#[test_case("http://metadata.google.internal/"; "a name of a cloud")]
#[test_case("http://minio.storage.svc/"; "a Service")]
#[test_case("http://minio.storage.svc.cluster.local/"; "a Service with its domain")]
#[test_case("http://localhost:1/"; "localhost")]
#[test_case("http://192.168.0.1/"; "a private address")]
#[tokio::test]
async fn proxy_is_asked_for_no_internal_redirect(target: &str) {
    let hub = start().await;
    let mut config = hub.config();
    config.remote = "http://registry.example".parse().unwrap();
    config.proxy_url = Some(hub.url());
    let strict = Upstream::new(&config, Clock::system()).unwrap();
    let redirect = || {
        let to = format!("{target}v2/library/app/manifests/v1");
        hub.once("GET manifests", Fault::redirect(&to));
    };
    redirect();
    let error = pull(&strict).await.unwrap_err();
    assert!(error.to_string().contains("trust.redirects"), "{error}");
    assert_eq!(hub.count("GET manifests"), 1);
    let host = url::Url::parse(target).unwrap().host_str().unwrap().to_owned();
    config.trust.redirects = vec![host];
    redirect();
    pull(&Upstream::new(&config, Clock::system()).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn proxy_is_asked_for_no_internal_token_server() {
    let hub = start().await;
    let tokens = Tokens::at(&hub);
    *hub.auth() = Auth::Tokens(tokens);
    hub.auth().tokens().realm = "http://metadata.google.internal/token".into();
    let mut config = hub.config();
    config.remote = "http://registry.example".parse().unwrap();
    config.proxy_url = Some(hub.url());
    let upstream = Upstream::new(&config, Clock::system()).unwrap();
    let error = pull(&upstream).await.unwrap_err();
    assert!(error.to_string().contains("private network"), "{error}");
    assert_eq!(hub.count("GET /token"), 0);
}

/// Credentials are not sent over plain HTTP unless the configuration allows it.
#[tokio::test]
async fn plain_http_sends_no_credentials_unless_allowed() {
    let hub = start().await;
    *hub.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let mut config = hub.config();
    config.remote = "http://registry.example".parse().unwrap();
    config.proxy_url = Some(hub.url());
    config.credential = basic("jane", "hunter2");
    let error = pull(&Upstream::new(&config, Clock::system()).unwrap())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Denied { message, .. } if message.contains("clear text")),
        "{error:?}"
    );
    assert!(hub.seen("*").iter().all(|seen| seen.authorization().is_empty()));
    config.insecure_allow_http_credentials = true;
    pull(&Upstream::new(&config, Clock::system()).unwrap())
        .await
        .unwrap();
}
