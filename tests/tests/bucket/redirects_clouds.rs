//! Clients that the mirror redirects to buckets of Google Cloud Storage and Azure.

use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use testbed::bucket::{AzureStore, BUCKET, GoogleStore, Seen};
use testbed::image::Layout;
use tokio::process::Command;
use url::Url;

use crate::clouds::{LAST_LINK, azure_keys, google_keys, start, until_uploaded};
use crate::place::{Mirror, Place};

const LAYERS: [usize; 2] = [3_000_000, 1_000];
/// The keys of redirects, next to those of the driver.
const LARGE: &str = ", redirect: {mode: Large, minsize: 1Mi}";

/// Returns the digest of the large layer.
fn large(layout: &Layout) -> String {
    let entries = std::fs::read_dir(layout.path().join("blobs/sha256")).expect("a directory");
    let blobs = entries.map(|entry| entry.expect("an entry"));
    let largest = blobs.max_by_key(|blob| blob.metadata().expect("metadata").len());
    let largest = largest.expect("a blob").file_name();
    format!("sha256:{}", largest.to_string_lossy())
}

/// Returns the URL that a client is redirected to for the large layer.
async fn location(place: &Place, mirror: &Mirror) -> Url {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let url = format!(
        "http://{}/v2/library/app/blobs/{}",
        mirror.address,
        large(&place.image)
    );
    let answer = client.build().expect("a client").get(url).send().await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    let location = answer.headers()["location"].to_str().expect("text");
    location.parse().expect("a URL")
}

/// Fails unless the answer for a URL has the bytes of the large layer.
async fn check_bytes(place: &Place, url: Url) {
    let answer = reqwest::get(url).await.expect("an answer");
    let bytes = answer.bytes().await.expect("a body");
    let found = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    assert_eq!(found, large(&place.image));
}

fn value(url: &Url, name: &str) -> String {
    let pair = url.query_pairs().find(|(key, _)| key == name);
    pair.unwrap_or_else(|| panic!("{name}: {url}")).1.into_owned()
}

/// Runs openssl with a file of the place as its input.
async fn openssl(place: &Place, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(place.scratch.path());
    command.output().await.expect("openssl")
}

/// Returns the string that a signature of Google covers: version 4, of a GET without other headers than the host.
fn signed_by_google(url: &Url) -> String {
    let (query, _) = url
        .query()
        .expect("a query")
        .split_once("&X-Goog-Signature=")
        .expect("a signature");
    let mut pairs: Vec<_> = query.split('&').collect();
    pairs.sort_unstable();
    let request = format!(
        "GET\n{}\n{}\nhost:storage.googleapis.com\n\nhost\nUNSIGNED-PAYLOAD",
        url.path(),
        pairs.join("&")
    );
    let date = value(url, "X-Goog-Date");
    let scope = format!("{}/auto/storage/goog4_request", &date[..8]);
    let hash = hex::encode(Sha256::digest(request));
    format!("GOOG4-RSA-SHA256\n{date}\n{scope}\n{hash}")
}

/// A client is redirected to a URL of Google Cloud Storage that the key of the service account signed, for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_blob_redirects_to_google() {
    let place = Place::new(&LAYERS).await;
    let store = GoogleStore::start().await.expect("a store");
    openssl(&place, &["genpkey", "-algorithm", "RSA", "-out", "private.pem"]).await;
    openssl(
        &place,
        &["pkey", "-in", "private.pem", "-pubout", "-out", "public.pem"],
    )
    .await;
    let private = std::fs::read_to_string(place.scratch.path().join("private.pem")).expect("a key");
    let keys = google_keys(&place, &store, &private);
    let mirror = start(&place, "tier", ("gcs", &keys), LARGE).await;
    place.pull(&mirror, "filled").await;
    until_uploaded(&mirror, || store.has_stored(LAST_LINK)).await;

    let url = location(&place, &mirror).await;
    assert!(
        url.as_str()
            .starts_with(&format!("{}/{BUCKET}/a/b/docker/", store.url())),
        "{url}"
    );
    assert_eq!(value(&url, "X-Goog-Expires"), "60");
    assert_eq!(value(&url, "X-Goog-SignedHeaders"), "host");
    assert!(
        value(&url, "X-Goog-Credential").starts_with("mirror@project.iam.example/"),
        "{url}"
    );
    let signature = hex::decode(value(&url, "X-Goog-Signature")).expect("hex");
    place.scratch.write("signature", signature).expect("a file");
    place
        .scratch
        .write("signed", signed_by_google(&url))
        .expect("a file");
    let verify = [
        "dgst",
        "-sha256",
        "-verify",
        "public.pem",
        "-signature",
        "signature",
        "signed",
    ];
    let verified = openssl(&place, &verify).await;
    assert!(verified.status.success(), "{verified:?}");
    check_bytes(&place, url).await;

    mirror.stop().await;
    let mirror = start(&place, "tier", ("gcs", &keys), LARGE).await;
    store.forget();
    place.pull(&mirror, "redirected").await;
    let is_signed = |seen: &Seen| seen.query.contains("X-Goog-Signature=") && seen.status == 200;
    assert!(store.seen().iter().any(is_signed), "{:#?}", store.seen());
}

/// A key of Google without a private key signs no URL: the server refuses it and names the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_key_that_signs_nothing_is_refused() {
    let place = Place::new(&[10]).await;
    let store = GoogleStore::start().await.expect("a store");
    let keys = google_keys(&place, &store, "");
    let path = place.configuration("tier", "", "cache: {maxsize: 1Gi}");
    let text = std::fs::read_to_string(&path).expect("a file");
    let text = text.replace("s3: {}", &format!("gcs: {{{keys}}}{LARGE}"));
    std::fs::write(&path, text).expect("a file");
    let (config, _) = mirror::config::load(Some(&path), std::iter::empty()).expect("a configuration");
    let error = mirror::server::Server::start(config)
        .await
        .err()
        .expect("a refusal")
        .to_string();
    assert!(
        error.contains("private_key") && error.contains("storage.gcs"),
        "{error}"
    );
}

/// A client is redirected to a URL of Azure that the key of the account signed, for a minute; the store checks it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs azurite 3.37: AZURITE=node_modules/azurite/dist/src/blob/main.js cargo test --test bucket -- --ignored azure"]
async fn large_blob_redirects_to_azure() {
    let place = Place::new(&LAYERS).await;
    let store = AzureStore::start().await.expect("a store");
    let keys = azure_keys(&store);
    let mirror = start(&place, "tier", ("azure", &keys), LARGE).await;
    place.pull(&mirror, "filled").await;
    until_uploaded(&mirror, || store.has_stored(LAST_LINK)).await;

    let url = location(&place, &mirror).await;
    assert!(
        url.as_str()
            .starts_with(&format!("{}/{BUCKET}/a/b/docker/", store.url())),
        "{url}"
    );
    assert_eq!(
        (value(&url, "sp"), value(&url, "sr")),
        ("r".to_owned(), "b".to_owned())
    );
    let time = |name| value(&url, name).parse::<Timestamp>().expect("a time");
    let valid = Duration::try_from(time("se").duration_since(time("st"))).expect("a duration");
    assert!(valid <= Duration::from_secs(61), "{url}");
    check_bytes(&place, url.clone()).await;
    let (mut forged, mut plain) = (url.clone(), url.clone());
    let text = url.query().expect("a query").replace("sp=r", "sp=rw");
    forged.set_query(Some(&text));
    plain.set_query(None);
    for refused in [forged, plain] {
        let answer = reqwest::get(refused).await.expect("an answer");
        assert!(answer.status().is_client_error(), "{}", answer.status());
    }
    mirror.stop().await;
    let mirror = start(&place, "tier", ("azure", &keys), LARGE).await;
    place.pull(&mirror, "redirected").await;
    let signed = |seen: &&Seen| seen.query.contains("sig=") && seen.status == 200;
    assert!(
        store.seen().iter().filter(signed).count() >= 2,
        "{:#?}",
        store.seen()
    );
}

/// The URL that an account key signs has the address for clients, and the signature covers the account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs azurite 3.37: AZURITE=node_modules/azurite/dist/src/blob/main.js cargo test --test bucket -- --ignored azure"]
async fn azure_redirect_has_the_public_address() {
    let place = Place::new(&LAYERS).await;
    let store = AzureStore::start().await.expect("a store");
    let keys = azure_keys(&store);
    let address: Url = store.url().parse().expect("a URL");
    let port = address.port().expect("a port");
    let named = format!(", redirect: {{mode: Large, minsize: 1Mi, endpoint: 'http://localhost:{port}'}}");
    let mirror = start(&place, "tier", ("azure", &keys), &named).await;
    place.pull(&mirror, "filled").await;
    until_uploaded(&mirror, || store.has_stored(LAST_LINK)).await;
    let url = location(&place, &mirror).await;
    let expected = format!("http://localhost:{port}/{}/{BUCKET}/a/b/docker/", store.account());
    assert!(url.as_str().starts_with(&expected), "{url}");
    check_bytes(&place, url).await;
}
