//! Odd answers of upstreams that all common clients accept, and their limits: digests and sizes.

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use mirror::config::Cache;
use serde_json::json;
use test_case::test_case;

use crate::hub::{Fault, Gate, Hub};
use crate::pattern;
use crate::served::{Mirror, assert_answer, cache, header, json as body_of, live};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const ORAS: &str = "application/vnd.oras.artifact.manifest.v1+json";
/// Types that a Docker Engine with its own image store names.
const DOCKER: &str = "application/json, application/vnd.docker.distribution.manifest.v1+prettyjws, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json";
const PATH: &str = "/v2/app/manifests/1";

fn answer(status: u16, media_type: &str, body: impl Into<bytes::Bytes>) -> Fault {
    let kind = vec![("content-type", media_type.to_owned())];
    Fault::Answer(StatusCode::from_u16(status).unwrap(), kind, body.into())
}

fn errors(status: u16, body: &'static str) -> Fault {
    answer(status, "application/json", body)
}

fn marked(status: u16, body: &'static str) -> Fault {
    let api = ("docker-distribution-api-version", "registry/2.0".to_owned());
    let kind = ("content-type", "text/plain".to_owned());
    Fault::Answer(
        StatusCode::from_u16(status).unwrap(),
        vec![api, kind],
        body.into(),
    )
}

/// Returns the status, and the error's code where there is one.
async fn code_of(mirror: &Mirror, method: &str, path: &str) -> (u16, String) {
    let answer = mirror.request(method, path).send().await.unwrap();
    let status = answer.status().as_u16();
    let body: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default();
    let code = body["errors"][0]["code"].as_str().unwrap_or_default();
    (status, code.to_owned())
}

/// A registry says that content is gone in many ways; no copy is served against its word.
#[test_case(&errors(404, r#"{"errors":[{"code":"TAG_EXPIRED","message":"Tag 1 has expired"}]}"#); "quay")]
#[test_case(&errors(404, r#"{"errors":[{"code":"manifest_unknown"}]}"#); "a code in lower case")]
#[test_case(&errors(404, r#"{"errors":[{"code":"UNKNOWN"}]}"#); "unknown")]
#[test_case(&errors(404, r#"{"errors":[{"message":"a"},{"code":"TAG_INVALID"}]}"#); "a code in the second entry")]
#[test_case(&errors(404, r#"{"errors":[{"status":404,"message":"Not Found"}]}"#); "jfrog")]
#[test_case(&errors(404, r#"{"errors":[null,[],1]}"#); "odd entries")]
#[test_case(&errors(404, r#"{"errors":[]}"#); "no entry")]
#[test_case(&errors(410, r#"{"errors":[{"code":"GONE"}]}"#); "410")]
#[test_case(&answer(404, "text/plain", r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#); "json called text")]
#[test_case(&marked(404, "404 page not found"); "text with the header of the api")]
#[test_case(&marked(410, ""); "nothing with the header of the api")]
#[tokio::test]
async fn gone_content_is_404_for_any_error_code(says: &Fault) {
    let (hub, mirror, digest) = Mirror::with_image().await;
    let referrers = format!("/v2/app/referrers/{digest}");
    for path in [PATH, &referrers] {
        assert_eq!(mirror.get(path).await.status(), 200);
    }
    mirror.clock.advance(Duration::from_mins(6));
    hub.always("* /v2/", says.clone());
    let elsewhere = format!("sha256:{}", "0".repeat(64));
    let blob = format!("/v2/app/blobs/{elsewhere}");
    let by_digest = format!("/v2/app/manifests/{elsewhere}");
    for (path, code) in [
        (PATH, "MANIFEST_UNKNOWN"),
        ("/v2/app/manifests/other", "MANIFEST_UNKNOWN"),
        (&by_digest, "MANIFEST_UNKNOWN"),
        (&referrers, "MANIFEST_UNKNOWN"),
        ("/v2/app/tags/list", "NAME_UNKNOWN"),
        (&blob, "BLOB_UNKNOWN"),
    ] {
        assert_eq!(code_of(&mirror, "HEAD", path).await.0, 404, "HEAD {path}");
        assert_eq!(code_of(&mirror, "GET", path).await, (404, code.into()), "{path}");
    }
}

/// An error that no registry wrote does not describe content: the server serves its copy, and does not treat the tag as
/// removed.
#[test_case(&Fault::html(404); "a page")]
#[test_case(&Fault::html(410); "410 with a page")]
#[test_case(&Fault::status(404); "nothing")]
#[test_case(&errors(404, r#"{"message":"no Route matched"}"#); "json without errors")]
#[test_case(&errors(404, r#"{"errors":"none"}"#); "errors without a list")]
#[tokio::test]
async fn ingress_404_keeps_cached_content(says: &Fault) {
    let (hub, mirror, _) = Mirror::with_image().await;
    mirror.get(PATH).await;
    mirror.clock.advance(Duration::from_mins(6));
    hub.always("* /v2/", says.clone());
    for path in [PATH, "/v2/app/tags/list"] {
        for method in ["HEAD", "GET"] {
            let answer = mirror.request(method, path).send().await.unwrap();
            assert_answer(&answer, 200, "x-cache", "STALE");
        }
    }
    assert_eq!(mirror.get("/v2/app/manifests/other").await.status(), 503);
}

/// Without the referrers API a client takes the fallback tag, which it does for 404 alone.
#[test_case(&Fault::html(200); "200 with a page")]
#[test_case(&errors(200, "{}"); "200 with an empty object")]
#[test_case(&answer(200, INDEX, "{}"); "an empty object called index")]
#[test_case(&errors(200, r#"["a"]"#); "200 with another list")]
#[test_case(&Fault::status(204); "204")]
#[test_case(&Fault::html(302); "302 with a page")]
#[test_case(&Fault::status(400); "400")]
#[test_case(&Fault::html(404); "404")]
#[test_case(&Fault::status(405); "405")]
#[test_case(&errors(406, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#); "406")]
#[test_case(&Fault::status(410); "410")]
#[test_case(&Fault::status(415); "415")]
#[test_case(&Fault::status(501); "501")]
#[tokio::test]
async fn missing_referrers_api_is_404(says: &Fault) {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    let fallback = format!("sha256-{}", digest.hex());
    let list = r#"{"schemaVersion":2,"manifests":[]}"#;
    hub.push_manifest("library/app", Some(&fallback), INDEX, list);
    hub.always("GET referrers", says.clone());
    let mirror = Mirror::of(&hub).await;
    for path in [
        format!("/v2/app/referrers/{digest}"),
        format!("/v2/app/referrers/{digest}?artifactType=x"),
    ] {
        assert_eq!(code_of(&mirror, "HEAD", &path).await.0, 404);
        assert_eq!(
            code_of(&mirror, "GET", &path).await,
            (404, "MANIFEST_UNKNOWN".into())
        );
    }
    let listed = mirror.get(&format!("/v2/app/manifests/{fallback}")).await;
    assert_eq!(listed.status(), 200);
}

/// A referrers API that redirects to a page is absent.
#[tokio::test]
async fn referrers_redirected_to_a_page_are_absent() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    hub.always("GET referrers", Fault::redirect("/login"));
    hub.always("GET /login", Fault::html(200));
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/referrers/{digest}");
    assert_eq!(mirror.get(&path).await.status(), 404);
}

/// These say something of upstream, of the client or of the moment, so they never hide signatures.
#[test_case(&Fault::status(401), 403)]
#[test_case(&Fault::status(403), 403)]
#[test_case(&Fault::limited(None), 429)]
#[test_case(&Fault::status(408), 503)]
#[test_case(&Fault::status(500), 503)]
#[test_case(&Fault::html(502), 503)]
#[test_case(&Fault::status(503), 503)]
#[test_case(&answer(200, INDEX, r#"{"schemaVersion":2,"manifests":[{"#), 503; "a broken index")]
#[test_case(&Fault::Cut(10), 503; "a cut")]
#[tokio::test]
async fn upstream_failure_is_no_absent_referrers_api(says: &Fault, status: u16) {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    hub.always("GET referrers", says.clone());
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/referrers/{digest}");
    assert_eq!(mirror.get(&path).await.status(), status);
}

/// A referrers index without descriptors is an empty list.
#[test_case(r#"{"schemaVersion":2,"manifests":null}"#; "null")]
#[test_case(r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#; "absent")]
#[test_case(r#"{"schemaVersion":2,"manifests":[null,"x"]}"#; "no descriptor")]
#[tokio::test]
async fn referrers_without_descriptors_are_empty(index: &'static str) {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    hub.always("GET referrers", answer(200, INDEX, index));
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/referrers/{digest}");
    for path in [&path, &format!("{path}?artifactType=x")] {
        assert_eq!(body_of(mirror.get(path).await).await["manifests"], json!([]));
    }
    let offline = Cache {
        offline: true,
        ..cache()
    };
    mirror
        .pull
        .reload(live(&[(&hub, "docker.io")], offline, &mirror.clock));
    assert_eq!(body_of(mirror.get(&path).await).await["manifests"], json!([]));
    assert_eq!(hub.count("GET referrers"), 1);
}

/// A referrers API that is gone for longer than the stale period is answered with 404.
#[tokio::test]
async fn referrers_api_gone_for_long_is_404() {
    let (hub, mirror, digest) = Mirror::with_image().await;
    let path = format!("/v2/app/referrers/{digest}");
    mirror.get(&path).await;
    hub.always("GET referrers", Fault::status(405));
    mirror.clock.advance(Duration::from_mins(6));
    assert_eq!(header(&mirror.get(&path).await, "x-cache"), "STALE");
    mirror.clock.advance(Duration::from_hours(2));
    assert_eq!(mirror.get(&path).await.status(), 404);
}

#[tokio::test]
async fn odd_entries_hide_no_tags() {
    let hub = Hub::start().await;
    let list = r#"{"name":"app","tags":["b",null,7,{"x":1},["y"],"not a tag","\ud800","a"]}"#;
    hub.always("GET tags", errors(200, list));
    let mirror = Mirror::of(&hub).await;
    let tags = body_of(mirror.get("/v2/app/tags/list").await).await;
    assert_eq!(tags, json!({"name": "app", "tags": ["a", "b"]}));
    let page = mirror.get("/v2/app/tags/list?n=1").await;
    assert!(header(&page, "link").contains("last=a"));
    hub.heal();
    hub.always("GET tags", errors(200, r#"{"name":"app","tags":null}"#));
    let tags = body_of(mirror.get("/v2/app/tags/list").await).await;
    assert_eq!(tags["tags"], json!([]));
}

/// A `Content-Encoding` that is only a label changes nothing.
#[test_case("gzip")]
#[test_case("x-gzip")]
#[test_case("aws-chunked")]
#[test_case("utf-8"; "a charset")]
#[test_case(""; "empty")]
#[test_case("identity, identity"; "twice")]
#[tokio::test]
async fn false_content_encoding_hides_nothing(label: &str) {
    let hub = Hub::start().await;
    let layer = pattern(600_000);
    let (digest, layers) = hub.push_image("library/app", "1", &[&layer]);
    hub.redirect_blobs(true);
    hub.always("*", Fault::Header("content-encoding", label.to_owned()));
    let mirror = Mirror::of(&hub).await;
    let blob = format!("/v2/app/blobs/{}", layers[0]);
    let size = mirror.request("HEAD", &blob).send().await.unwrap();
    assert_eq!(header(&size, "content-length"), "600000");
    for path in [
        PATH.to_owned(),
        format!("/v2/app/manifests/{digest}"),
        "/v2/app/tags/list".to_owned(),
        format!("/v2/app/referrers/{digest}"),
        blob.clone(),
    ] {
        let answer = mirror.get(&path).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert!(!answer.headers().contains_key("content-encoding"), "{path}");
    }
    assert_eq!(mirror.fetch(&blob).await, (200, Some(layer.into())));
}

/// The digest is of the blob, so a blob that really is compressed is another one, whatever its label says.
#[tokio::test]
async fn compressed_blob_is_never_completed() {
    let hub = Hub::start().await;
    let layer = pattern(600_000);
    let digest = hub.push_blob("library/app", &layer);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&layer).unwrap();
    hub.spoil_blob("library/app", &digest, encoder.finish().unwrap());
    hub.always("GET blobs", Fault::Gzip);
    let mirror = Mirror::of(&hub).await;
    let (status, body) = mirror.fetch(&format!("/v2/app/blobs/{digest}")).await;
    assert!(status == 503 || body.is_none(), "{status}");
    mirror.settled().await;
    assert_eq!(mirror.store.usage().blobs, 0);
}

/// The cache has no room, and no digest is checked: the size that the manifest names tells.
#[tokio::test]
async fn range_of_compressed_blob_is_refused() {
    let hub = Hub::start().await;
    let layer = pattern(600_000);
    let (_, layers) = hub.push_image("library/app", "1", &[&layer]);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(&layer).unwrap();
    hub.spoil_blob("library/app", &layers[0], encoder.finish().unwrap());
    hub.always("GET blobs", Fault::Gzip);
    let mirror = Mirror::with(&[(&hub, "docker.io")], cache(), Some(20_000)).await;
    assert_eq!(mirror.get(PATH).await.status(), 200);
    let blob = format!("/v2/app/blobs/{}", layers[0]);
    let part = mirror.request("GET", &blob).header("range", "bytes=0-1023");
    assert_eq!(part.send().await.unwrap().status(), 503);
}

/// A login page that comes as a redirect to nowhere.
#[test_case(302)]
#[test_case(303)]
#[test_case(307)]
#[tokio::test]
async fn redirect_page_makes_blob_unavailable(status: u16) {
    let (hub, digest) = Hub::with_blob(b"layer").await;
    let blob = format!("/v2/app/blobs/{digest}");
    for faulty in ["* blobs", "GET blobs"] {
        hub.heal();
        hub.always(faulty, Fault::html(status));
        if faulty == "GET blobs" {
            hub.always("HEAD blobs", Fault::status(405));
        }
        let mirror = Mirror::of(&hub).await;
        for method in ["HEAD", "GET"] {
            let answer = mirror.request(method, &blob).send().await.unwrap();
            assert_eq!(answer.status(), 503, "{method}, {faulty}");
        }
    }
}

/// Go reads these, and so do the clients that are written in it.
#[test_case(r#"{"schemaVersion":2.0,"manifests":[]}"#; "a fraction of zero")]
#[test_case(r#"{"schemaVersion":"2","manifests":[]}"#; "text")]
#[test_case(r#"{"schemaVersion":1,"schemaVersion":2,"manifests":[]}"#; "a name twice")]
#[test_case(r#"{"SchemaVersion":2,"manifests":[null,{"digest":7}]}"#; "odd entries")]
#[tokio::test]
async fn oddly_written_manifest_is_served_unchanged(manifest: &str) {
    let hub = Hub::start().await;
    hub.push_manifest("library/app", Some("1"), "application/json", manifest);
    let mirror = Mirror::of(&hub).await;
    for cache in ["MISS", "HIT"] {
        let answer = mirror.get(PATH).await;
        assert_eq!(
            (answer.status().as_u16(), header(&answer, "x-cache")),
            (200, cache)
        );
        assert_eq!(header(&answer, "content-type"), INDEX);
        assert_eq!(answer.text().await.unwrap(), manifest);
    }
}

/// The Accept types of a client reach the upstream with each request.
#[tokio::test]
async fn client_accept_types_reach_upstream() {
    let hub = Hub::start().await;
    hub.push_manifest("library/app", Some("1"), ORAS, r#"{"mediaType":"x"}"#);
    let mirror = Mirror::of(&hub).await;
    let accepting = async |accept: &str| {
        let request = mirror.request("GET", PATH).header("accept", accept);
        request.send().await.unwrap().status().as_u16()
    };
    // A strict registry has nothing for a client that does not name the type.
    hub.once("GET manifests", Fault::error(404, "MANIFEST_UNKNOWN"));
    assert_eq!(accepting("*/*").await, 404);
    assert_eq!(accepting(&format!("text/html, {ORAS};q=0.5")).await, 200);
    let sent = hub.seen("GET manifests");
    let sent: Vec<_> = sent.iter().map(|seen| seen.header("accept").unwrap()).collect();
    assert!(
        !sent[0].contains("oras") && sent[0].ends_with(", */*"),
        "{sent:?}"
    );
    assert!(
        sent[1].ends_with(&format!("+json, {ORAS}, */*")) && !sent[1].contains("html"),
        "{sent:?}"
    );
    // Upstream is asked about the copy by its type, whatever the next client names.
    mirror.clock.advance(Duration::from_mins(6));
    assert_eq!(accepting("application/x+json").await, 200);
    let asked = hub.seen("HEAD manifests");
    let sent = asked[0].header("accept").unwrap();
    assert!(
        sent.ends_with(&format!("+json, application/x+json, {ORAS}, */*")),
        "{sent}"
    );
}

/// Clients that accept different types share no upstream request.
#[tokio::test]
async fn different_accept_types_share_no_request() {
    let hub = Hub::start().await;
    hub.push_manifest("library/app", Some("1"), ORAS, r#"{"mediaType":"x"}"#);
    let (mirror, gate) = (Mirror::of(&hub).await, Gate::shut());
    hub.always("GET manifests", Fault::Hold(gate.clone()));
    let accepting = async |accept: &str| {
        let request = mirror.request("GET", PATH).header("accept", accept);
        request.send().await.unwrap().status().as_u16()
    };
    let open = async {
        while hub.count("GET manifests") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.open();
    };
    let (plain, docker, oras, ()) = tokio::join!(accepting("*/*"), accepting(DOCKER), accepting(ORAS), open);
    assert_eq!((plain, docker, oras), (200, 200, 200));
    assert_eq!(hub.count("GET manifests"), 2);
}

/// The words of a denial say what to do, as those of Amazon ECR do.
#[test_case(&answer(403, "text/plain; charset=utf-8", "Your authorization token has expired. Reauthenticate and try again."), "Your authorization token has expired. Reauthenticate"; "ecr")]
#[test_case(&errors(403, r#"{"errors":[{"code":"DENIED","message":"pay first"}]}"#), "DENIED (pay first)"; "a registry")]
#[test_case(&answer(401, "text/plain", "token\r\nexpired"), "token expired"; "401 without a challenge")]
#[test_case(&Fault::html(403), "403 Forbidden"; "a page has no words")]
#[tokio::test]
async fn denial_has_upstreams_message(says: &Fault, words: &str) {
    let (hub, digest) = Hub::with_blob(b"layer").await;
    hub.always("* /v2/", says.clone());
    let mirror = Mirror::of(&hub).await;
    for path in [
        PATH.to_owned(),
        format!("/v2/app/blobs/{digest}"),
        "/v2/app/tags/list".to_owned(),
        format!("/v2/app/referrers/{digest}"),
    ] {
        let answer = mirror.get(&path).await;
        assert_eq!(answer.status(), 403, "{path}");
        let body = body_of(answer).await;
        let message = body["errors"][0]["message"].as_str().unwrap();
        assert!(
            message.contains(words) && !message.contains("html"),
            "{path}: {message}"
        );
    }
}
