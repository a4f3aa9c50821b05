//! `Cache-Control`: content by digest may be kept, anything else has to be asked for again.

use std::time::Duration;

use reqwest::Response;

use crate::hub::{Fault, Hub};
use crate::pattern;
use crate::served::{Mirror, header};

const YEAR: &str = "max-age=31536000";

/// Returns the status, `X-Cache` and all of `Cache-Control`.
fn cached_as(answer: &Response) -> (u16, &str, Vec<&str>) {
    let values = answer.headers().get_all("cache-control").iter();
    let values = values.map(|value| value.to_str().unwrap()).collect();
    (answer.status().as_u16(), header(answer, "x-cache"), values)
}

/// Whole, in parts, by HEAD and as 304, cold and cached: content by digest may be kept for a year.
#[tokio::test]
async fn digest_responses_are_cacheable_for_a_year() {
    let hub = Hub::start().await;
    let (manifest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    let blob = hub.push_blob("library/app", pattern(1000));
    let mirror = Mirror::of(&hub).await;
    for path in [
        format!("/v2/app/blobs/{blob}"),
        format!("/v2/app/manifests/{manifest}"),
    ] {
        let etag = format!("\"{}\"", path.rsplit('/').next().unwrap());
        let ask = |method, name, value| mirror.request(method, &path).header(name, value).send();
        let cold = mirror.get(&path).await;
        assert_eq!(cached_as(&cold), (200, "MISS", vec![YEAR]), "{path}");
        cold.bytes().await.unwrap();
        mirror.settled().await;
        assert_eq!(
            cached_as(&mirror.get(&path).await),
            (200, "HIT", vec![YEAR]),
            "{path}"
        );
        let head = ask("HEAD", "x-none", "1").await.unwrap();
        assert_eq!(cached_as(&head), (200, "HIT", vec![YEAR]), "{path}");
        let known = ask("GET", "if-none-match", &etag).await.unwrap();
        assert_eq!(cached_as(&known), (304, "HIT", vec![YEAR]), "{path}");
    }
    for (range, status, expected) in [
        ("bytes=1-2", 206, YEAR),
        ("bytes=1-2,5-6", 206, YEAR),
        ("bytes=1000-", 416, "no-store"),
    ] {
        let request = mirror.request("GET", &format!("/v2/app/blobs/{blob}"));
        let answer = request.header("range", range).send().await.unwrap();
        assert_eq!(cached_as(&answer), (status, "HIT", vec![expected]), "{range}");
    }
}

/// Tags, lists and the base are to be asked for again, fresh, stale and as 304.
#[tokio::test]
async fn mutable_responses_are_no_cache() {
    let hub = Hub::start().await;
    let (manifest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    let mirror = Mirror::of(&hub).await;
    let tag = "/v2/app/manifests/1";
    for (path, cache) in [
        ("/v2/", ""),
        (tag, "MISS"),
        (tag, "HIT"),
        ("/v2/app/tags/list", "MISS"),
        ("/v2/_catalog", "HIT"),
    ] {
        assert_eq!(
            cached_as(&mirror.get(path).await),
            (200, cache, vec!["no-cache"]),
            "{path}"
        );
    }
    let request = mirror.request("GET", tag);
    let known = request
        .header("if-none-match", format!("\"{manifest}\""))
        .send()
        .await
        .unwrap();
    assert_eq!(cached_as(&known), (304, "HIT", vec!["no-cache"]));
    mirror.clock.advance(Duration::from_mins(6));
    hub.always("* ", Fault::status(500));
    assert_eq!(
        cached_as(&mirror.get(tag).await),
        (200, "STALE", vec!["no-cache"])
    );
}

/// No cache between keeps a failure for longer than it lasts.
#[tokio::test]
async fn errors_are_not_cacheable() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    let absent = format!("/v2/app/blobs/sha256:{}", "0".repeat(64));
    for (path, status) in [
        (absent.as_str(), 404),
        ("/v2/app/manifests/none", 404),
        ("/v2/App/manifests/1", 400),
        ("/v2/nothing", 404),
    ] {
        assert_eq!(
            cached_as(&mirror.get(path).await),
            (status, "", vec!["no-store"]),
            "{path}"
        );
    }
    hub.always("* ", Fault::status(500));
    assert_eq!(
        cached_as(&mirror.get("/v2/app/manifests/2").await),
        (503, "", vec!["no-store"])
    );
}
