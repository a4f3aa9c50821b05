//! Access that an upstream revokes: a refusal is an answer, and copies are not served against it.

use std::time::Duration;

use mirror::config::Cache;
use mirror::digest::Digest;
use test_case::test_case;

use crate::hub::{Auth, Fault, Gate, Hub, Tokens};
use crate::served::{Mirror, cache, header};

/// A mirror that has all of an image, whose tag is no longer fresh.
struct Cached {
    hub: Hub,
    mirror: Mirror,
    paths: [String; 5],
}

impl Cached {
    async fn with(cache: Cache) -> Self {
        let hub = Hub::start().await;
        let (manifest, layers): (Digest, _) = hub.push_image("library/app", "1", &[b"layer"]);
        let paths = [
            "/v2/app/manifests/1".to_owned(),
            "/v2/app/tags/list".to_owned(),
            format!("/v2/app/referrers/{manifest}"),
            format!("/v2/app/manifests/{manifest}"),
            format!("/v2/app/blobs/{}", layers[0]),
        ];
        let mirror = Mirror::with(&[(&hub, "docker.io")], cache, None).await;
        for path in &paths {
            assert_eq!(mirror.get(path).await.status(), 200, "{path}");
        }
        mirror.settled().await;
        mirror.clock.advance(Duration::from_mins(6));
        Self { hub, mirror, paths }
    }

    /// Returns statuses and the values of `X-Cache`, of GET and HEAD of each path.
    async fn answers(&self) -> Vec<(u16, String)> {
        let mut answers = Vec::new();
        for path in &self.paths {
            for method in ["GET", "HEAD"] {
                let answer = self.mirror.request(method, path).send().await.unwrap();
                answers.push((answer.status().as_u16(), header(&answer, "x-cache").to_owned()));
            }
        }
        answers
    }

    async fn assert_all(&self, status: u16) {
        for (number, (found, _)) in self.answers().await.into_iter().enumerate() {
            assert_eq!(found, status, "GET or HEAD of {}", self.paths[number / 2]);
        }
    }
}

/// Neither tags nor lists are served stale, and digests are not hits, until upstream permits them again: not while it is
/// down after the refusal, either. Then nothing is downloaded again.
#[test_case(Some(&Fault::status(401)); "401")]
#[test_case(Some(&Fault::error(403, "DENIED")); "403")]
#[test_case(None; "no token")]
#[tokio::test]
async fn revoked_access_ends_stale_until_permitted(fault: Option<&Fault>) {
    let cached = Cached::with(cache()).await;
    match fault {
        Some(fault) => cached.hub.always("* /v2/", fault.clone()),
        None => *cached.hub.auth() = Auth::Tokens(Tokens::at(&cached.hub).only("alice", "secret")),
    }
    cached.assert_all(403).await;
    *cached.hub.auth() = Auth::Anyone;
    cached.hub.heal();
    cached.hub.always("* /v2/", Fault::status(500));
    cached.mirror.clock.advance(Duration::from_secs(6));
    cached.assert_all(503).await;
    cached.hub.heal();
    cached.hub.forget();
    cached.assert_all(200).await;
    assert_eq!(cached.hub.count("GET /blobs/"), 0, "nothing is downloaded again");
    cached.hub.always("* /v2/", Fault::status(500));
    cached.mirror.clock.advance(Duration::from_mins(6));
    let answers = cached.answers().await;
    assert_eq!(answers[0], (200, "STALE".into()), "as before the refusal");
}

/// A refusal of a list, or of content that was never cached, is no revocation: copies stay in use while upstream is down.
#[test_case("/v2/app/manifests/closed"; "a tag")]
#[test_case(&format!("/v2/app/blobs/sha256:{}", "d".repeat(64)); "a blob")]
#[test_case("/v2/app/tags/list"; "tags")]
#[test_case(&format!("/v2/app/referrers/sha256:{}", "d".repeat(64)); "referrers")]
#[tokio::test]
async fn refusal_of_other_content_leaves_copies_in_use(path: &str) {
    for fault in [Fault::status(500), Fault::Hang] {
        let cached = Cached::with(cache()).await;
        let upstream_path = path.replace("/v2/", "/v2/library/");
        cached
            .hub
            .always(&format!("* {upstream_path}"), Fault::error(403, "DENIED"));
        for method in ["GET", "HEAD"] {
            let refused = cached.mirror.request(method, path).send().await.unwrap();
            assert_eq!(refused.status(), 403, "{method}");
        }
        cached.hub.heal();
        cached.hub.always("* /v2/", fault);
        cached.mirror.clock.advance(Duration::from_secs(6));
        cached.assert_all(200).await;
    }
}

/// `staleifdenied` serves copies against a refusal as while upstream fails.
#[tokio::test]
async fn stale_if_denied_serves_copies() {
    let setting = Cache {
        stale_if_denied: true,
        ..cache()
    };
    let cached = Cached::with(setting).await;
    cached.hub.always("* /v2/", Fault::error(403, "DENIED"));
    cached.assert_all(200).await;
    let answers = cached.answers().await;
    assert_eq!(answers[0], (200, "STALE".into()));
    assert_eq!(answers[8], (200, "HIT".into()));
}

fn retry_later() -> Fault {
    let headers = vec![("retry-after", "60".to_owned())];
    Fault::Answer(http::StatusCode::FORBIDDEN, headers, bytes::Bytes::new())
}

/// A page, as of a firewall, and a 403 that names a time after which to ask again are no refusals.
#[test_case(&Fault::html(403); "a page")]
#[test_case(&retry_later(); "a time to ask again")]
#[tokio::test]
async fn denial_by_no_registry_leaves_copies_in_use(fault: &Fault) {
    let cached = Cached::with(cache()).await;
    cached.hub.always("* /v2/", fault.clone());
    cached.assert_all(200).await;
    assert_eq!(cached.answers().await[0], (200, "STALE".into()));
}

/// Without a usable credential no request is sent, so upstream refused nothing.
#[tokio::test]
async fn missing_credential_leaves_copies_in_use() {
    let cached = Cached::with(cache()).await;
    let live = cached.mirror.pull.live();
    live.upstreams[0].client.refuse("the Secret is not there".into());
    cached.assert_all(200).await;
    assert_eq!(cached.answers().await[0], (200, "STALE".into()));
}

/// A refusal is of one repository at one upstream: others are hits as before.
#[tokio::test]
async fn refusal_is_of_one_repository() {
    let cached = Cached::with(cache()).await;
    let digest = cached.hub.push_blob("org/other", b"other");
    let other = format!("/v2/org/other/blobs/{digest}");
    cached.mirror.get(&other).await;
    cached.mirror.settled().await;
    cached.hub.always("* /v2/", Fault::status(403));
    cached.assert_all(403).await;
    let hit = cached.mirror.get(&other).await;
    assert_eq!((hit.status().as_u16(), header(&hit, "x-cache")), (200, "HIT"));
}

/// Clients that repeat a refused blob make no requests for some seconds: a registry may lock an account whose password it
/// rejects often.
#[tokio::test]
async fn refused_blob_is_asked_for_once() {
    let cached = Cached::with(cache()).await;
    cached.hub.always("* /v2/", Fault::status(401));
    cached.assert_all(403).await;
    let requests = cached.hub.count("HEAD /blobs/");
    for _ in 0..20 {
        let answer = cached.mirror.get(&cached.paths[4]).await;
        assert_eq!(answer.status(), 403);
    }
    assert_eq!(cached.hub.count("HEAD /blobs/"), requests);
    cached.mirror.clock.advance(Duration::from_secs(6));
    cached.mirror.get(&cached.paths[4]).await;
    assert!(cached.hub.count("HEAD /blobs/") > requests);
}

/// A download that began before access was revoked ends, and permits nothing else: neither a second client of it, nor the
/// copies of the repository.
#[test_case(&|gate| Fault::Wait(10, gate); "the body came later")]
#[test_case(&|gate| Fault::Hold(gate); "the answer came later")]
#[tokio::test]
async fn download_before_a_refusal_lifts_nothing(held: &dyn Fn(Gate) -> Fault) {
    let cached = Cached::with(cache()).await;
    let gate = Gate::shut();
    let digest = cached.hub.push_blob("library/app", vec![7; 100_000]);
    let path = format!("/v2/library/app/blobs/{digest}");
    let pattern = format!("GET {path}");
    cached.hub.always(&pattern, held(gate.clone()));
    let first = tokio::spawn(cached.mirror.request("GET", &path).send());
    while cached.hub.count(&pattern) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cached.hub.heal();
    cached.hub.always("* /v2/", Fault::error(403, "DENIED"));
    cached.assert_all(403).await;
    let second = tokio::spawn(cached.mirror.request("GET", &path).send());
    cached.mirror.clock.advance(Duration::from_secs(6));
    cached.assert_all(403).await;
    gate.open();
    let first = first.await.unwrap().unwrap();
    assert_eq!(first.status(), 200);
    assert_eq!(first.bytes().await.unwrap().len(), 100_000);
    assert_eq!(second.await.unwrap().unwrap().status(), 403);
    cached.assert_all(403).await;
}
