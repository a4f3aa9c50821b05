//! Identities of Azure and Google Cloud, issued by fakes of their services.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use testbed::wait;
use tokio::io::AsyncReadExt as _;

use crate::place::{LIMIT, Place};
use crate::process::MirrorProcess;

/// A fake of a cloud: it issues tokens, and its store accepts all objects and has none.
struct Cloud {
    address: SocketAddr,
    seen: Seen,
}

/// The requests: method and path, the headers of interest, and the body.
type Seen = Arc<Mutex<Vec<String>>>;

impl Cloud {
    async fn start() -> Self {
        let seen = Seen::default();
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&seen));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, seen }
    }

    async fn until_seen(&self, parts: &[&str]) {
        let is_seen = || async {
            let seen = self.seen.lock();
            let has_parts = |request: &String| parts.iter().all(|part| request.contains(part));
            seen.iter().any(has_parts).then_some(())
        };
        wait::until("request to the cloud", LIMIT, is_seen)
            .await
            .unwrap_or_else(|error| panic!("{parts:?}: {error}: {:#?}", self.seen.lock()));
    }
}

async fn answer(State(seen): State<Seen>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("-")
    };
    let line = format!(
        "{} {} {} {} {}",
        parts.method,
        parts.uri,
        header("authorization"),
        header("metadata-flavor"),
        String::from_utf8_lossy(&body)
    );
    seen.lock().push(line);
    let path = parts.uri.path();
    if path.ends_with("/token") {
        let token = r#"{"access_token": "issued-token", "expires_in": 3600, "token_type": "Bearer"}"#;
        return token.into_response();
    }
    if parts.method == Method::PUT {
        return (StatusCode::CREATED, [("etag", "\"1\"")]).into_response();
    }
    (StatusCode::NOT_FOUND, "<Error><Code>BlobNotFound</Code></Error>").into_response()
}

/// A federated token of AKS becomes a token of Microsoft Entra, which authorizes requests to the container.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn federated_token_opens_the_container() {
    let place = Place::new(&[1_000]).await;
    let cloud = Cloud::start().await;
    let token = place.scratch.write("token", "federated-token").expect("a file");
    let environment = [
        ("AZURE_CLIENT_ID", "the-client".to_owned()),
        ("AZURE_TENANT_ID", "the-tenant".to_owned()),
        ("AZURE_FEDERATED_TOKEN_FILE", token.display().to_string()),
        ("AZURE_AUTHORITY_HOST", format!("http://{}/", cloud.address)),
    ];
    let keys = format!(
        "accountname: images, container: c, credentials: {{type: WorkloadIdentity}}, serviceurl: 'http://{}'",
        cloud.address
    );
    let mirror = MirrorProcess::start(&place, "tier", ("azure", &keys), &environment).await;
    mirror.pull(&place, "pulled").await;
    let request = [
        "POST /the-tenant/oauth2/v2.0/token",
        "client_id=the-client",
        "client_assertion=federated-token",
    ];
    cloud.until_seen(&request).await;
    cloud
        .until_seen(&["PUT /c/", "/data", "Bearer issued-token"])
        .await;
    let log = mirror.log();
    assert!(
        !log.contains("issued-token") && !log.contains("federated-token"),
        "{log}"
    );
}

/// The metadata server of GKE issues the token, and the store is asked by its own name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_server_issues_the_token_of_google() {
    let place = Place::new(&[1_000]).await;
    let cloud = Cloud::start().await;
    let proxy = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let proxy = proxy.expect("a port");
    let address = proxy.local_addr().expect("an address");
    let proxied = tokio::spawn(async move {
        let (mut connection, _) = proxy.accept().await.expect("a connection");
        let mut head = vec![0; 1_024];
        let read = connection.read(&mut head).await.expect("a request");
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    let environment = [
        ("GCE_METADATA_HOST", cloud.address.to_string()),
        ("GCE_METADATA_IP", cloud.address.to_string()),
        ("HOME", place.scratch.path().display().to_string()),
        ("HTTPS_PROXY", format!("http://{address}")),
        ("HTTP_PROXY", format!("http://{address}")),
        ("NO_PROXY", place.upstream.address().ip().to_string()),
    ];
    let keys = "bucket: images, credentials: {type: WorkloadIdentity}";
    let mirror = MirrorProcess::start(&place, "tier", ("gcs", keys), &environment).await;
    mirror.pull(&place, "pulled").await;
    cloud
        .until_seen(&[
            "GET /computeMetadata/v1/instance/service-accounts/default/token",
            " Google ",
        ])
        .await;
    let request = proxied.await.expect("a request");
    assert!(
        request.starts_with("CONNECT storage.googleapis.com:443"),
        "{request}"
    );
    assert!(!mirror.log().contains("issued-token"));
}
