//! The registry that tests pull from, with a client that is not ours.
#![expect(clippy::expect_used, reason = "a failure here is the test's")]

use std::time::Duration;

use testbed::image::{Layout, Random};
use testbed::pki::Authority;
use testbed::scratch::Scratch;
use testbed::upstream::{Access, Options, Upstream};

const NAME: &str = "library/app:1";
const USER: (&str, &str) = ("user", "one");

/// An upstream with an image of two platforms.
async fn filled(options: Options, scratch: &Scratch) -> (Upstream, Layout) {
    let upstream = Upstream::start(options).await.expect("an upstream");
    let image = Random::new(1, &[100_000, 10])
        .write(&scratch.path().join("made"), "1")
        .expect("an image");
    upstream.push(&image, "1", NAME).await.expect("a push");
    (upstream, image)
}

async fn assert_pulls(upstream: &Upstream, image: &Layout, scratch: &Scratch) {
    let pulled = scratch.path().join("pulled");
    upstream
        .pull(NAME, &pulled)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        Layout::open(&pulled).expect("a layout").digest("1"),
        image.digest("1")
    );
}

/// An image is returned as it was pushed, and its requests are counted once.
#[tokio::test]
async fn image_is_returned_unchanged_and_counted_once() {
    let scratch = Scratch::new("upstream-test").unwrap();
    let (upstream, image) = filled(Options::default(), &scratch).await;
    assert_eq!(upstream.counts().requests(), 0);
    assert_pulls(&upstream, &image, &scratch).await;
    let counts = upstream.counts();
    // The index and two manifests; for each platform two layers and a configuration.
    assert_eq!((counts.manifest_gets, counts.blob_gets), (3, 6));
    assert!(counts.blob_bytes > 200_000, "{counts:?}");
    upstream.reset_counts();
    assert_eq!(upstream.counts().requests(), 0);
}

#[tokio::test]
async fn basic_access_follows_its_users() {
    let scratch = Scratch::new("upstream-test").unwrap();
    let (mut upstream, image) = filled(Options::protected(Access::Basic, USER), &scratch).await;
    assert_pulls(&upstream, &image, &scratch).await;
    let blank = reqwest::get(format!("{}/v2/", upstream.url())).await.unwrap();
    assert_eq!(blank.status(), 401);
    assert!(
        blank.headers()["www-authenticate"]
            .to_str()
            .unwrap()
            .starts_with("Basic")
    );

    let manifest = format!("{}/v2/library/app/manifests/1", upstream.url());
    let status = async |password: &str| {
        let request = reqwest::Client::new()
            .get(&manifest)
            .basic_auth("user", Some(password));
        request.send().await.unwrap().status().as_u16()
    };
    upstream.set_users(&[("user", "two")]).unwrap();
    // A registry that accepts OCI types only says 404 to who names none: not a refusal.
    assert_eq!(status("one").await, 401);
    assert_ne!(status("two").await, 401);
}

/// Bearer access issues tokens to its users only.
#[tokio::test]
async fn bearer_access_issues_tokens_to_users_only() {
    let scratch = Scratch::new("upstream-test").unwrap();
    let access = Access::Bearer(Duration::from_mins(5));
    let (mut upstream, image) = filled(Options::protected(access, USER), &scratch).await;
    assert_pulls(&upstream, &image, &scratch).await;
    assert!(upstream.counts().tokens > 0);
    let token = format!("{}/token?scope=repository:library/app:pull", upstream.url());
    let status = async |password: &str| {
        let request = reqwest::Client::new()
            .get(&token)
            .basic_auth("user", Some(password));
        request.send().await.unwrap().status().as_u16()
    };
    upstream.set_users(&[("user", "two")]).unwrap();
    assert_eq!((status("one").await, status("two").await), (401, 200));
}

/// TLS serves the given certificate.
#[tokio::test]
async fn tls_serves_the_given_certificate() {
    let scratch = Scratch::new("upstream-test").unwrap();
    let authority = Authority::new("test").unwrap();
    let options = Options::default().tls(authority.serving(&["127.0.0.1"]).unwrap());
    let (upstream, image) = filled(options, &scratch).await;
    assert_pulls(&upstream, &image, &scratch).await;
    let trusted = reqwest::Certificate::from_pem(authority.certificate().as_bytes()).unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([trusted])
        .build()
        .unwrap();
    let answer = client
        .get(format!("{}/v2/", upstream.url()))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
}

/// An upstream that is down refuses connections until it is back.
#[tokio::test]
async fn stopped_upstream_refuses_connections() {
    let scratch = Scratch::new("upstream-test").unwrap();
    let (mut upstream, image) = filled(Options::default(), &scratch).await;
    let url = format!("{}/v2/", upstream.url());
    assert!(reqwest::get(&url).await.is_ok());
    upstream.go_down();
    assert!(reqwest::get(&url).await.unwrap_err().is_connect());
    upstream.come_back().unwrap();
    assert_pulls(&upstream, &image, &scratch).await;
}
