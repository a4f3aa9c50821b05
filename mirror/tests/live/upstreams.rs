//! The server in front of registries that protect themselves, by tokens, challenges and signed URLs.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use test_case::test_case;

use crate::hub::{Auth, Fault, Hub, Tokens};
use crate::served::{Home, Served, client, eventually, publish};

const MIB: usize = 1024 * 1024;

fn proxy(hub: &Hub) -> String {
    format!("proxy: {{remoteurl: '{}', cache: {{maxsize: 1Gi}}}}", hub.url())
}

async fn before(hub: &Hub) -> Served {
    let mut served = Home::new().serve("", &proxy(hub), &[]).await;
    served.forget_log();
    served
}

/// One hundred cold clients cost one token for each repository.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_cold_clients_cost_one_token_each() {
    let hub = Hub::start().await;
    for repository in ["one", "two"] {
        for number in 0..50 {
            hub.push_image(repository, &format!("t{number}"), &[b"layer"]);
        }
    }
    let tokens = Tokens::at(&hub);
    *hub.auth() = Auth::Tokens(tokens);
    let served = before(&hub).await;
    let get = async |number: usize| {
        let repository = if number.is_multiple_of(2) { "one" } else { "two" };
        served
            .get(&format!("/v2/{repository}/manifests/t{}", number / 2))
            .await
            .0
    };
    let statuses = join_all((0..100).map(get)).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(hub.count("GET /token"), 2);
}

#[tokio::test]
async fn identity_token_from_directory_is_used() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let tokens = Tokens::at(&hub).only_identity("refresh-me");
    *hub.auth() = Auth::Tokens(tokens);
    let yaml = format!(
        "proxy: {{credentialsdirectory: HOME/credentials, cache: {{maxsize: 1Gi}}, \
         upstreams: [{{host: registry.test, remoteurl: '{}'}}]}}",
        hub.url()
    );
    let home = Home::new();
    let entry = format!(
        r#"{{"auths":{{"registry.test":{{"auth":"{}","identitytoken":"refresh-me"}}}}}}"#,
        BASE64_STANDARD.encode("00000000-0000-0000-0000-000000000000:")
    );
    let files = [("config.json", entry), ("version", "1".to_owned())];
    publish(&home.path("credentials"), 1, &files);
    let mut served = home.serve("", &yaml, &[]).await;
    served.forget_log();
    eventually("a pull", async || {
        served.get("/v2/library/app/manifests/v1").await.0 == 200
    })
    .await;
    let posts = hub.seen("POST /token");
    assert!(
        posts
            .iter()
            .any(|post| post.form.contains("refresh_token=refresh-me"))
    );
    let (_, status) = served.admin("/status").await;
    assert!(!status.contains("refresh-me"), "{status}");
}

fn unauthorized(challenge: Option<String>) -> Fault {
    let headers = challenge.map(|challenge| ("www-authenticate", challenge));
    Fault::Answer(
        StatusCode::UNAUTHORIZED,
        headers.into_iter().collect(),
        Bytes::new(),
    )
}

/// The mirror answers a Bearer challenge that follows others in one header.
#[tokio::test]
async fn bearer_among_other_challenges_is_answered() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let tokens = Tokens::at(&hub);
    let realm = tokens.realm.clone();
    *hub.auth() = Auth::Tokens(tokens);
    let several = format!(
        "Negotiate, Basic realm=\"a, b\", Bearer realm=\"{realm}\",service=\"hub\",scope=\"repository:app:pull\""
    );
    hub.once("GET app/manifests", unauthorized(Some(several)));
    let served = before(&hub).await;
    assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
    assert_eq!((hub.count("GET /token"), hub.count("GET app/manifests")), (1, 2));
}

/// A 401 without a challenge becomes a 403, which does not ask the client for a login.
#[tokio::test]
async fn unchallenged_401_becomes_403() {
    let hub = Hub::start().await;
    hub.always("* /v2/", unauthorized(None));
    let served = before(&hub).await;
    for path in [
        "manifests/v1",
        "tags/list",
        &format!("blobs/sha256:{}", "0".repeat(64)),
    ] {
        let url = format!("http://{}/v2/app/{path}", served.address);
        let answer = client().get(url).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{path}");
        assert!(!answer.headers().contains_key("www-authenticate"), "{path}");
        assert!(answer.text().await.unwrap().contains("\"DENIED\""), "{path}");
    }
}

/// If HEAD requests fail with 401 and GET requests succeed, everything is served.
#[tokio::test]
async fn failing_head_falls_back_to_get() {
    let hub = Hub::start().await;
    let (_, layers) = hub.push_image("app", "v1", &[b"layer"]);
    hub.push_blob("other", b"layer");
    hub.always("HEAD /v2/", unauthorized(None));
    let served = before(&hub).await;
    for _ in 0..2 {
        assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
        for repository in ["app", "other"] {
            let path = format!("/v2/{repository}/blobs/{}", layers[0]);
            assert_eq!(served.get(&path).await, (200, b"layer".to_vec()), "{repository}");
        }
    }
    let whole = hub
        .seen("GET blobs")
        .iter()
        .filter(|seen| seen.range().is_none())
        .count();
    assert_eq!(whole, 1, "the other repository's yes cost a download");
}

#[tokio::test]
async fn expired_signed_urls_are_renewed_without_token() {
    let hub = Hub::start().await;
    let data: Vec<u8> = (0..4 * MIB).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let digest = hub.push_blob("app", &data);
    let tokens = Tokens::at(&hub);
    *hub.auth() = Auth::Tokens(tokens);
    hub.redirect_blobs(true);
    hub.once("GET /signed", Fault::Cut(MIB));
    let served = before(&hub).await;
    let ends = async {
        eventually("a signed URL", async || hub.count("GET /signed") > 0).await;
        hub.expire_signatures();
    };
    let path = format!("/v2/app/blobs/{digest}");
    let (got, ()) = tokio::join!(served.get(&path), ends);
    assert!(got == (200, data), "{} and {} bytes", got.0, got.1.len());
    assert!(
        hub.count("GET app/blobs") >= 2,
        "the registry was not asked again"
    );
    let signed = hub.seen("GET /signed");
    assert!(signed.iter().all(|seen| seen.authorization().is_empty()));
}

/// The token server is the hub by another name. Distribution's keys are all that the file has, but for `trust`.
#[test_case("", &[], 403; "without trust")]
#[test_case("trust: {realms: [localhost]},", &[], 200; "by the file")]
#[test_case("", &[("REGISTRY_PROXY_TRUST_REALMS_0", "localhost")], 200; "by the environment")]
#[tokio::test]
async fn trust_admits_realm_of_distributions_upstream(
    trust: &str,
    environment: &[(&str, &str)],
    status: u16,
) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let mut tokens = Tokens::at(&hub).only("jane", "hunter2");
    tokens.realm = format!("http://localhost:{}/token", hub.url().port().unwrap());
    *hub.auth() = Auth::Tokens(tokens);
    let yaml = format!(
        "proxy: {{remoteurl: '{}', username: jane, password: hunter2, {trust} cache: {{maxsize: 1Gi}}}}",
        hub.url()
    );
    let mut served = Home::new().serve("", &yaml, environment).await;
    served.forget_log();
    let (answered, body) = served.get("/v2/library/app/manifests/v1").await;
    assert_eq!(answered, status);
    let hint = "add localhost to proxy.trust.realms";
    let body = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(body.contains(hint), status == 403, "{body}");
}

/// `/status` has the address of a client that pulled with the time of its last pull from each upstream, and no client
/// that only asked for something else.
#[tokio::test]
async fn status_lists_clients_with_their_last_pulls() {
    let hub = Hub::start().await;
    let (_, layers) = hub.push_image("app", "v1", &[b"layer"]);
    let served = before(&hub).await;
    let get = async |ip: &str, path: String| {
        let client = reqwest::Client::builder()
            .local_address(Some(ip.parse().unwrap()))
            .build()
            .unwrap();
        let url = format!("http://{}{path}", served.address);
        client.get(url).send().await.unwrap().status().as_u16()
    };
    assert_eq!(get("127.0.0.4", "/v2/".to_owned()).await, 200);
    assert_eq!(get("127.0.0.4", "/v2/app/manifests/none".to_owned()).await, 404);
    assert!(served.status().await.get("clients").is_none());
    for ip in ["127.0.0.2", "127.0.0.3"] {
        assert_eq!(get(ip, format!("/v2/app/blobs/{}", layers[0])).await, 200);
    }
    let status = served.status().await;
    let clients = status["clients"].as_array().unwrap();
    let addresses: Vec<_> = clients.iter().map(|client| client["address"].clone()).collect();
    assert_eq!(addresses, ["127.0.0.2", "127.0.0.3"]);
    for client in clients {
        let pulls = client["lastPulls"].as_object().unwrap();
        let last: jiff::Timestamp = pulls.values().next().unwrap().as_str().unwrap().parse().unwrap();
        assert!(
            pulls.len() == 1 && jiff::Timestamp::now().duration_since(last).as_secs() < 60,
            "{client}"
        );
    }
}
