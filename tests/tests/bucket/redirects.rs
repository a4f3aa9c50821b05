//! Clients that the mirror redirects to the bucket.

use std::net::IpAddr;

use http::{HeaderMap, Method, StatusCode};
use sha2::{Digest as _, Sha256};
use testbed::binaries;
use testbed::bucket::Fault;
use testbed::wait;

use crate::place::{LIMIT, Mirror, NAME, Place, until_stored};
use crate::process::MirrorProcess;

/// Two large layers and a small one.
const LAYERS: [usize; 3] = [3_000_000, 2_000_000, 1_000];
const PROXY: &str = "cache: {maxsize: 1Gi}";

/// Returns the keys of the bucket, and those of redirects next to them.
fn redirecting(place: &Place) -> String {
    format!("{}}}, redirect: {{mode: Large, minsize: 1Mi", place.store.keys())
}

/// Starts a mirror that redirects clients, and waits until the bucket has an image.
async fn filled(place: &Place) -> Mirror {
    let mirror = place.mirror_with("tier", &redirecting(place), PROXY).await;
    place.pull(&mirror, "filled").await;
    let blobs = std::fs::read_dir(place.image.path().join("blobs/sha256")).expect("a directory");
    until_stored(place, blobs.count(), &mirror).await;
    place.store.forget();
    mirror
}

/// Returns the digests of the layers, the largest first.
fn layers(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.image.path().join("blobs/sha256")).expect("a directory");
    let mut blobs: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let size = entry.metadata().expect("metadata").len();
            (size, format!("sha256:{}", entry.file_name().to_string_lossy()))
        })
        .collect();
    blobs.sort_unstable_by(|one, other| other.cmp(one));
    blobs.into_iter().map(|(_, digest)| digest).collect()
}

fn client(from: [u8; 4]) -> reqwest::Client {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .local_address(IpAddr::from(from))
        .build()
        .expect("a client")
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: bytes::Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }
}

/// Sends a request for a blob from an address of this host, with a range if it is not empty.
async fn ask(mirror: &Mirror, method: Method, digest: &str, (from, range): ([u8; 4], &str)) -> Answer {
    let url = format!("http://{}/v2/library/app/blobs/{digest}", mirror.address);
    let mut request = client(from).request(method, url);
    if !range.is_empty() {
        request = request.header("range", range);
    }
    let answer = request.send().await.expect("an answer");
    Answer {
        status: answer.status(),
        headers: answer.headers().clone(),
        body: answer.bytes().await.expect("a body"),
    }
}

const ONE: ([u8; 4], &str) = ([127, 0, 0, 1], "");
const OTHER: ([u8; 4], &str) = ([127, 0, 0, 2], "");

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// GET of a large blob leads to a signed URL that is valid for a minute. HEAD, a small blob, a manifest, and a client that
/// comes back are answered by the mirror. All clients together cost the bucket one GET of one byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_blob_redirects_once_to_the_bucket() {
    let place = Place::new(&LAYERS).await;
    let mirror = filled(&place).await;
    let layers = layers(&place);
    let large = &layers[0];
    assert_eq!(ask(&mirror, Method::HEAD, large, ONE).await.status, 200);
    let redirect = ask(&mirror, Method::GET, large, ONE).await;
    assert_eq!((redirect.status.as_u16(), redirect.body.len()), (307, 0));
    assert_eq!(redirect.header("docker-content-digest"), large);
    assert_eq!(redirect.header("cache-control"), "no-store");
    let location = redirect.header("location");
    assert!(location.starts_with(&place.store.url()), "{location}");
    assert!(location.contains("X-Amz-Expires=60&"), "{location}");
    let body = reqwest::get(location).await.expect("an answer").bytes();
    assert_eq!(sha256(&body.await.expect("a body")), *large);

    let again = ask(&mirror, Method::GET, large, ONE).await;
    assert_eq!((again.status.as_u16(), sha256(&again.body)), (200, large.clone()));
    assert_eq!(ask(&mirror, Method::GET, large, OTHER).await.status, 307);
    let small = layers.last().expect("a small layer");
    assert_eq!(ask(&mirror, Method::GET, small, ONE).await.status, 200);
    assert_eq!(mirror.get("/v2/library/app/manifests/1").await.0, 200);
    let reads: Vec<_> = place.requests(|seen| seen.query.is_empty());
    assert_eq!(reads.len(), 1, "{reads:#?}");
    let (_, heads, lists) = place.reads();
    assert_eq!((heads, lists), (0, 0));
    let labels = ["code=\"307\"", "outcome=\"redirect\""];
    let counted = || async {
        let redirects = mirror.metric("registry_mirror_requests_total", &labels).await;
        (redirects >= 2.0).then_some(())
    };
    wait::until("redirects in the metrics", LIMIT, counted)
        .await
        .expect("they are counted");
}

/// A client that wants a part gets it from the mirror, also for the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn range_of_a_large_blob_is_served_here() {
    let place = Place::new(&LAYERS).await;
    let mirror = filled(&place).await;
    let large = &layers(&place)[0];
    let part = ask(&mirror, Method::GET, large, (ONE.0, "bytes=1000-1999")).await;
    assert_eq!((part.status.as_u16(), part.body.len()), (206, 1_000));
    assert_eq!(ask(&mirror, Method::GET, large, ONE).await.status, 307);
    let rest = ask(&mirror, Method::GET, large, (ONE.0, "bytes=1000-")).await;
    assert_eq!(rest.status, 206);
}

/// Without `mode: Large` no client is redirected, and a hit asks the bucket for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_off_by_default() {
    let place = Place::new(&LAYERS).await;
    filled(&place).await.stop().await;
    for redirect in [
        "",
        "}, redirect: {disable: false",
        "}, redirect: {mode: Never, minsize: 1Mi",
    ] {
        let keys = format!("{}{redirect}", place.store.keys());
        let mirror = place.mirror_with("tier", &keys, PROXY).await;
        for digest in &layers(&place)[..2] {
            assert_eq!(ask(&mirror, Method::GET, digest, ONE).await.status, 200);
        }
        mirror.stop().await;
    }
    let reads = place.requests(|seen| seen.method == Method::GET && seen.path.ends_with("/data"));
    assert_eq!(reads, []);
}

/// Content is served by the mirror while the bucket fails, lacks it, or has not got it yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_bucket_redirects_no_client() {
    let place = Place::new(&LAYERS).await;
    place.store.fail(Some(Fault::ReadOnly));
    let mirror = place.mirror_with("tier", &redirecting(&place), PROXY).await;
    place.pull(&mirror, "first").await;
    let layers = layers(&place);
    let before = ask(&mirror, Method::GET, &layers[0], ONE).await;
    assert_eq!(before.status, 200, "the bucket has not got it yet");
    mirror.stop().await;
    place.store.fail(None);
    let mirror = filled(&place).await;
    let hex = layers[0].trim_start_matches("sha256:");
    let object = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    std::fs::remove_file(place.store.objects().join(object)).expect("an object");
    let lacking = ask(&mirror, Method::GET, &layers[0], ONE).await;
    assert_eq!(
        (lacking.status.as_u16(), sha256(&lacking.body)),
        (200, layers[0].clone())
    );
    place.store.fail(Some(Fault::Hang));
    for _ in 0..2 {
        let hanging = ask(&mirror, Method::GET, &layers[1], ONE).await;
        assert_eq!(
            (hanging.status.as_u16(), sha256(&hanging.body)),
            (200, layers[1].clone())
        );
    }
    place.store.fail(None);
    let paused = ask(&mirror, Method::GET, &layers[1], ONE).await;
    assert_eq!(paused.status, 200, "the circuit is open");
}

/// A repository that the settings exclude, or that has no link to the content, gets no redirect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirect_needs_access_to_the_repository() {
    let place = Place::new(&LAYERS).await;
    let mirror = filled(&place).await;
    let large = &layers(&place)[0];
    let url = format!("http://{}/v2/library/other/blobs/{large}", mirror.address);
    let other = client(ONE.0).get(url).send().await.expect("an answer");
    assert_eq!(other.status(), 404);
    mirror.stop().await;
    let excluding = "cache: {maxsize: 1Gi}, exclude: ['library/*']";
    let path = place.configuration("tier", &redirecting(&place), excluding);
    let text = std::fs::read_to_string(&path).expect("a file");
    let plain = format!("proxy: {{remoteurl: '{}', {excluding}}}", place.upstream.url());
    let upstream = format!(
        "proxy: {{cache: {{maxsize: 1Gi}}, upstreams: [{{host: docker.io, remoteurl: '{}', exclude: ['library/*']}}]}}",
        place.upstream.url()
    );
    assert!(text.contains(&plain), "{text}");
    std::fs::write(&path, text.replace(&plain, &upstream)).expect("a file");
    let mirror = Mirror::start(&path).await;
    let excluded = ask(&mirror, Method::GET, large, ONE).await;
    assert!(excluded.status.is_client_error(), "{}", excluded.status);
    assert!(!excluded.headers.contains_key("location"));
}

/// skopeo and crane follow the redirects, and verify what they get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_redirects_to_the_bucket() {
    let place = Place::new(&LAYERS).await;
    filled(&place).await.stop().await;
    let crane = binaries::get("crane").await.expect("crane");
    for name in ["skopeo", "crane"] {
        let mirror = place.mirror_with("tier", &redirecting(&place), PROXY).await;
        place.store.forget();
        if name == "skopeo" {
            place.pull(&mirror, "redirected").await;
        } else {
            let mut program = tokio::process::Command::new(&crane);
            let image = format!("{}/{NAME}", mirror.address);
            program.args(["pull", "--insecure", &image]);
            let pulled = program.arg(place.scratch.path().join("redirected.tar")).output();
            let pulled = pulled.await.expect("crane");
            assert!(pulled.status.success(), "{pulled:?}");
        }
        let signed = place.requests(|seen| seen.query.contains("X-Amz-Signature=") && seen.status == 200);
        assert!(signed.len() >= 2, "{name}: {:#?}", place.store.seen());
        mirror.stop().await;
    }
}

/// A signed URL is a secret: no log, at level debug, has a part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_url_is_in_no_log() {
    let place = Place::new(&LAYERS).await;
    filled(&place).await.stop().await;
    let keys = redirecting(&place);
    let mirror = MirrorProcess::start(&place, "tier", ("s3", &keys), &[]).await;
    let url = format!(
        "http://{}/v2/library/app/blobs/{}",
        mirror.address,
        layers(&place)[0]
    );
    let answer = client(ONE.0).get(url).send().await.expect("an answer");
    let location = answer.headers()["location"].to_str().expect("text").to_owned();
    let (_, signature) = location.split_once("X-Amz-Signature=").expect("a signature");
    let logged = || async {
        let text = mirror.log();
        text.contains("redirect").then_some(text)
    };
    let text = wait::until("access log with the redirect", LIMIT, logged)
        .await
        .expect("a line");
    assert!(!text.contains(signature) && !text.contains("X-Amz-"), "{text}");
}
