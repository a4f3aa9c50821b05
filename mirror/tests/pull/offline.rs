//! A mirror without upstream requests: it serves what it has, and nothing else.

use mirror::config::Cache;

use crate::hub::Hub;
use crate::served::{Mirror, cache, header, json, live};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An offline mirror serves what is cached and sends no upstream request.
#[tokio::test]
async fn offline_serves_cache_without_requests() {
    let hub = Hub::start().await;
    let (manifest, layers) = hub.push_image("library/app", "1", &[b"layer"]);
    let fallback = format!("sha256-{}", manifest.hex());
    let referrers = r#"{"schemaVersion":2,"manifests":[]}"#;
    hub.push_manifest("library/app", Some(&fallback), INDEX, referrers);
    let mirror = Mirror::of(&hub).await;
    let path = |rest: &str| format!("/v2/app/{rest}");
    let cached = [
        path("manifests/1"),
        path(&format!("manifests/{manifest}")),
        path(&format!("blobs/{}", layers[0])),
    ];
    for path in cached.iter().chain([&path(&format!("manifests/{fallback}"))]) {
        mirror.get(path).await.bytes().await.unwrap();
    }
    mirror.settled().await;
    let offline = Cache {
        offline: true,
        tag_ttl: std::time::Duration::ZERO,
        ..cache()
    };
    mirror
        .pull
        .reload(live(&[(&hub, "docker.io")], offline, &mirror.clock));
    hub.forget();

    let of_referrers = path(&format!("referrers/{manifest}"));
    for path in cached.iter().chain([&path("tags/list"), &of_referrers]) {
        for method in ["HEAD", "GET"] {
            let answer = mirror.request(method, path).send().await.unwrap();
            let reported = (header(&answer, "x-cache"), header(&answer, "warning"));
            assert_eq!(
                (answer.status().as_u16(), reported),
                (200, ("HIT", "")),
                "{method} {path}"
            );
        }
    }
    let tags = json(mirror.get(&path("tags/list")).await).await;
    assert_eq!(tags["tags"], serde_json::json!(["1", fallback]));
    for (rest, status) in [
        ("manifests/2", 503),
        (
            "blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            503,
        ),
        (
            "referrers/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            404,
        ),
    ] {
        let answer = mirror.get(&path(rest)).await;
        assert_eq!(answer.status(), status, "{rest}");
        let error = json(answer).await.to_string();
        assert!(error.contains("offline"), "{error}");
    }
    assert_eq!(hub.count("* "), 0);
}
