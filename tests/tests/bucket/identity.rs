//! Mirrors whose credentials for the bucket a cloud issues, and mirrors without any.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use http::StatusCode;
use parking_lot::Mutex;
use testbed::bucket::{ACCESS_KEY, BUCKET, GoogleStore, SECRET_KEY};
use testbed::wait;

use crate::clouds::{LAST_LINK, until_uploaded};
use crate::place::{LIMIT, Mirror, Place};
use crate::process::MirrorProcess;

const LAYERS: [usize; 2] = [300_000, 10];
const ROLE: &str = "arn:aws:iam::111122223333:role/images";
/// The mebibytes of a huge answer.
const HUGE: usize = 1_000;

/// The answer of a security token service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// Credentials with this secret key, which expire so soon that each request asks for new ones.
    Issue(&'static str),
    /// The role may not be assumed.
    Deny,
    /// No XML.
    Garbage,
    /// A gigabyte.
    Huge,
    /// Nothing.
    Hang,
}

/// A security token service, with the queries that it got.
struct TokenService {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    reply: Mutex<Reply>,
    queries: Mutex<Vec<String>>,
}

impl TokenService {
    async fn start(reply: Reply) -> Self {
        let shared = Arc::new(Shared {
            reply: Mutex::new(reply),
            queries: Mutex::default(),
        });
        let app = axum::Router::new()
            .fallback(assume_role)
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, shared }
    }

    fn reply(&self, reply: Reply) {
        *self.shared.reply.lock() = reply;
    }

    fn has_seen(&self, text: &str) -> bool {
        self.shared
            .queries
            .lock()
            .iter()
            .any(|query| query.contains(text))
    }
}

async fn assume_role(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    shared.queries.lock().push(query.unwrap_or_default());
    let reply = *shared.reply.lock();
    match reply {
        Reply::Issue(secret) => {
            let expiration = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(4);
            format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                 <SessionToken></SessionToken><SecretAccessKey>{secret}</SecretAccessKey>\
                 <AccessKeyId>{ACCESS_KEY}</AccessKeyId><Expiration>{expiration:.0}</Expiration></Credentials>\
                 </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            )
            .into_response()
        }
        Reply::Deny => {
            let error = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized to perform \
                         sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>";
            (StatusCode::FORBIDDEN, error).into_response()
        }
        Reply::Garbage => "\u{1}garbage".into_response(),
        Reply::Huge => {
            let chunk = bytes::Bytes::from(vec![b' '; 1 << 20]);
            let chunks = futures::stream::repeat(chunk).take(HUGE);
            Body::from_stream(chunks.map(Ok::<_, std::io::Error>)).into_response()
        }
        Reply::Hang => std::future::pending().await,
    }
}

fn identity(place: &Place) -> String {
    format!(
        "credentials: {{type: WorkloadIdentity}}, {}",
        place.store.keys_without_credentials()
    )
}

fn environment(service: &TokenService, token: &std::path::Path) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ROLE_ARN", ROLE.to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string()),
        ("AWS_ENDPOINT_URL_STS", format!("http://{}", service.address)),
    ]
}

/// A mirror with a role and a token, and without a secret, writes the bucket and reads it. The service gets the role and the
/// token; a token that is replaced, and credentials that change, are used without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workload_identity_opens_the_bucket() {
    let mut place = Place::new(&LAYERS).await;
    let service = TokenService::start(Reply::Issue(SECRET_KEY)).await;
    let token = place.scratch.write("token", "first-token").expect("a file");
    let environment = environment(&service, &token);
    let first = MirrorProcess::start(&place, "first", ("s3", &identity(&place)), &environment).await;
    first.pull(&place, "pulled-1").await;
    first.until_uploaded(&place).await;
    assert!(service.has_seen("WebIdentityToken=first-token"));
    assert!(service.has_seen("role%2Fimages"));

    place.scratch.write("token", "second-token").expect("a file");
    place
        .store
        .restart_with("anothersecret")
        .await
        .expect("a restart");
    service.reply(Reply::Issue("anothersecret"));
    place.upstream.go_down();
    let second = MirrorProcess::start(&place, "second", ("s3", &identity(&place)), &environment).await;
    second.pull(&place, "pulled-2").await;
    assert!(service.has_seen("WebIdentityToken=second-token"));
    for mirror in [&first, &second] {
        let log = mirror.log();
        for secret in [SECRET_KEY, "anothersecret", "first-token", "second-token"] {
            assert!(!log.contains(secret), "{secret} in {log}");
        }
    }
}

/// A service that denies the role, answers garbage or without an end, or hangs fails no pull. `/status` has the reason, and
/// the bucket gets the content once the service issues credentials.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_identity_fails_no_pull() {
    let case = async |reply: Reply, state: &str| {
        let place = Place::new(&LAYERS).await;
        let service = TokenService::start(reply).await;
        let token = place.scratch.write("token", "secret-token").expect("a file");
        let environment = environment(&service, &token);
        let mirror = MirrorProcess::start(&place, "tier", ("s3", &identity(&place)), &environment).await;
        mirror.pull(&place, "pulled").await;
        let status = mirror.until_state(state).await;
        assert!(!status.to_string().contains("secret-token"), "{status}");
        service.reply(Reply::Issue(SECRET_KEY));
        mirror.until_uploaded(&place).await;
        assert!(!mirror.log().contains("secret-token"));
    };
    futures::join!(
        case(Reply::Deny, "Denied"),
        case(Reply::Garbage, "Unreachable"),
        case(Reply::Huge, "Unreachable"),
        case(Reply::Hang, "Unreachable"),
    );
}

/// A server without the variables of an identity does not start, and names the key and the variables; it asks no metadata
/// service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_identity_is_refused_by_name() {
    let place = Place::new(&[10]).await;
    let azure = "accountname: a, container: c, credentials: {type: WorkloadIdentity}";
    for (driver, keys, variable) in [
        ("s3", identity(&place), "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("azure", azure.to_owned(), "AZURE_CLIENT_ID"),
    ] {
        let path = place.configuration("tier", &keys, "cache: {maxsize: 1Gi}");
        let text = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(&path, text.replace("s3: {", &format!("{driver}: {{"))).expect("a file");
        let mut serve = tokio::process::Command::new(env!("CARGO_BIN_EXE_mirror-under-test"));
        let ended = serve.arg("serve").arg(&path).output().await.expect("a mirror");
        let text = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success());
        let key = format!("storage.{driver}.credentials.type");
        assert!(text.contains(&key) && text.contains(variable), "{text}");
    }
}

/// With `type: Anonymous` requests have no signature: a store that requires none is written and read, and one that requires
/// them denies access.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_requests_have_no_signature() {
    let mut place = Place::new(&LAYERS).await;
    let keys = format!(
        "credentials: {{type: Anonymous}}, {}",
        place.store.keys_without_credentials()
    );
    let denied = place.mirror_with("denied", &keys, "cache: {maxsize: 1Gi}").await;
    place.pull(&denied, "pulled-0").await;
    let is_denied = || async { (denied.status().await["state"] == "Denied").then_some(()) };
    wait::until("denial", LIMIT, is_denied).await.expect("a denial");

    let store = GoogleStore::start().await.expect("a store");
    let keys = format!(
        "bucket: {BUCKET}, regionendpoint: '{}', credentials: {{type: Anonymous}}",
        store.url()
    );
    let start = async |place: &Place, tier: &str| {
        Mirror::start(&place.configuration(tier, &keys, "cache: {maxsize: 1Gi}")).await
    };
    let first = start(&place, "first").await;
    place.pull(&first, "pulled-1").await;
    until_uploaded(&first, || store.has_stored(LAST_LINK)).await;
    place.upstream.go_down();
    let second = start(&place, "second").await;
    place.pull(&second, "pulled-2").await;
}
