//! Manifests, tags and referrers, and what becomes of odd answers.

use std::time::Duration;

use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use mirror::clock::Clock;
use mirror::digest::{Algorithm, Digest};
use mirror::upstream::{Accept, Error, Upstream, UpstreamState};
use test_case::test_case;

use crate::hub::{Fault, Gate, Hub};
use crate::{impatient, manifest_head, name, tag, upstream};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn manifest_is_identical_by_tag_and_by_digest() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "v1", &[b"layer"]);
    let upstream = upstream(&hub);
    let by_tag = upstream.manifest(&name("library/app"), &tag("v1")).await.unwrap();
    assert_eq!(Digest::compute(Algorithm::Sha256, by_tag.content.bytes()), digest);
    assert_eq!(by_tag.media_type.as_deref(), Some(MANIFEST));
    assert_eq!(*by_tag.content.digest(), digest);
    let by_digest = upstream
        .manifest(&name("library/app"), &digest.to_string().parse().unwrap())
        .await;
    assert_eq!(by_digest.unwrap().content, by_tag.content);
    let seen = &hub.seen("GET manifests")[0];
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert!(
        seen.header("accept")
            .unwrap()
            .contains("docker.distribution.manifest.list.v2+json")
    );
    let agent = format!("registry-mirror/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(seen.header("user-agent"), Some(agent.as_str()));
    assert_eq!(upstream.state(), UpstreamState::Reachable);
}

/// A HEAD request returns digest, type and size without a GET request.
#[tokio::test]
async fn head_has_digest_type_and_size() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "v1", &[b"layer"]);
    let head = upstream(&hub)
        .manifest_head(&name("library/app"), &tag("v1"), &Accept::default())
        .await
        .unwrap();
    assert_eq!(
        (head.digest, head.media_type.as_deref()),
        (Some(digest), Some(MANIFEST))
    );
    assert!(head.size.unwrap() > 100);
    assert_eq!(hub.count("GET manifests"), 0);
}

/// A registry that does not support HEAD gives no information, and does not count as failing.
#[test_case(400)]
#[test_case(405)]
#[test_case(406)]
#[test_case(501)]
#[tokio::test]
async fn registry_without_head_is_not_failing(status: u16) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    hub.always("HEAD manifests", Fault::status(status));
    let head = upstream(&hub)
        .manifest_head(&name("library/app"), &tag("v1"), &Accept::default())
        .await
        .unwrap();
    assert_eq!(head, mirror::upstream::ManifestHead::default());
}

#[tokio::test]
async fn head_404_is_checked_by_get_against_ingress_page() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let upstream = upstream(&hub);
    let missing = upstream
        .manifest_head(&name("library/app"), &tag("v2"), &Accept::default())
        .await;
    assert!(matches!(missing, Err(Error::NotFound { code, .. }) if code == "MANIFEST_UNKNOWN"));
    hub.always("* manifests", Fault::html(404));
    let strange = manifest_head(&upstream).await;
    assert_eq!(strange.unwrap_err(), Error::StrangeNotFound { host: None });
}

/// A page of a captive portal or a login, sent by the registry's name or by the target of a redirect, is named with its
/// host.
#[test_case(false, "127.0.0.1 sent a page (text/html)"; "in place of the registry")]
#[test_case(true, "127.0.0.1, where it redirects to, sent a page (text/html)"; "redirect to a login")]
#[tokio::test]
async fn page_of_a_portal_names_its_host(redirects: bool, expected: &str) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let fault = if redirects {
        Fault::redirect(&format!("{}login", hub.storage_url()))
    } else {
        Fault::html(200)
    };
    hub.always("GET /login", Fault::html(200));
    hub.always("GET manifests", fault.clone());
    hub.always("GET tags", fault.clone());
    hub.always("GET blobs", fault);
    let upstream = upstream(&hub);
    let app = name("library/app");
    let manifest = upstream.manifest(&app, &tag("v1")).await.unwrap_err();
    let tags = upstream.tags(&app, "").await.unwrap_err();
    let digest = Digest::compute(Algorithm::Sha256, b"layer");
    let blob = upstream.blob(&app, &digest, 0, None).await.unwrap_err();
    for error in [manifest, tags, blob] {
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// The repository prefix comes ahead of the name, and the path of the remote ahead of `/v2/`.
#[tokio::test]
async fn prefix_and_base_path_are_in_requests() {
    let hub = Hub::start().await;
    hub.push_image("proxy/library/app", "v1", &[b"layer"]);
    let mut config = hub.config();
    config.repository_prefix = Some(name("proxy"));
    let upstream = Upstream::new(&config, mirror::clock::Clock::system()).unwrap();
    assert!(upstream.manifest(&name("library/app"), &tag("v1")).await.is_ok());
    config.remote.set_path("/artifactory/");
    let below = Upstream::new(&config, mirror::clock::Clock::system()).unwrap();
    let _ = below.manifest(&name("library/app"), &tag("v1")).await;
    assert_eq!(hub.count("GET /artifactory/v2/proxy/library/app/manifests/v1"), 1);
}

fn json(status: u16, body: &'static str) -> Fault {
    let kind = vec![("content-type", "application/json".to_owned())];
    Fault::Answer(StatusCode::from_u16(status).unwrap(), kind, body.into())
}

fn marked(status: u16, body: &'static str) -> Fault {
    let api = vec![("docker-distribution-api-version", "registry/2.0".to_owned())];
    Fault::Answer(StatusCode::from_u16(status).unwrap(), api, body.into())
}

/// With the API's header a HEAD's 404 is the registry's, so no GET is needed.
#[test_case(404)]
#[test_case(410)]
#[tokio::test]
async fn marked_404_of_head_is_final(status: u16) {
    let (hub, digest) = Hub::with_blob(b"layer").await;
    hub.always("HEAD /v2/", marked(status, ""));
    let (upstream, name) = (upstream(&hub), name("library/app"));
    let manifest = upstream
        .manifest_head(&name, &tag("v1"), &Accept::default())
        .await;
    assert!(matches!(manifest, Err(Error::NotFound { .. })), "{manifest:?}");
    let blob = upstream.blob_head(&name, &digest).await;
    assert!(matches!(blob, Err(Error::NotFound { .. })), "{blob:?}");
    assert_eq!(hub.count("GET"), 0);
}

#[derive(Debug, PartialEq)]
enum Becomes {
    NotFound,
    Strange,
    Denied,
    Limited,
    Unavailable,
    Malformed,
}

/// The result that an odd response of an upstream becomes.
#[test_case(Fault::error(404, "MANIFEST_UNKNOWN") => Becomes::NotFound; "a registrys 404")]
#[test_case(Fault::error(404, "NAME_UNKNOWN") => Becomes::NotFound; "a registrys 404 for the name")]
#[test_case(Fault::error(404, "TAG_EXPIRED") => Becomes::NotFound; "a registrys 404 with a code of its own")]
#[test_case(Fault::error(410, "manifest_unknown") => Becomes::NotFound; "a registrys 410")]
#[test_case(json(404, r#"{"errors":[]}"#) => Becomes::NotFound; "404 with no entry")]
#[test_case(json(404, r#"{"errors":[null,{"status":404,"message":"gone"}]}"#) => Becomes::NotFound; "404 with odd entries")]
#[test_case(marked(404, "404 page not found") => Becomes::NotFound; "404 in text with the API's header")]
#[test_case(marked(410, "") => Becomes::NotFound; "410 of nothing with the API's header")]
#[test_case(Fault::html(404) => Becomes::Strange; "an ingress 404")]
#[test_case(Fault::html(410) => Becomes::Strange; "an ingress 410")]
#[test_case(Fault::status(404) => Becomes::Strange; "an empty 404")]
#[test_case(json(404, r#"{"message":"no Route matched","code":"MANIFEST_UNKNOWN"}"#) => Becomes::Strange; "404 in other JSON")]
#[test_case(Fault::error(403, "DENIED") => Becomes::Denied; "403")]
#[test_case(Fault::status(401) => Becomes::Denied; "401 without a challenge")]
#[test_case(Fault::limited(None) => Becomes::Limited; "429")]
#[test_case(Fault::status(500) => Becomes::Unavailable; "500")]
#[test_case(Fault::status(503) => Becomes::Unavailable; "503")]
#[test_case(Fault::status(204) => Becomes::Unavailable; "a status without a meaning here")]
#[test_case(Fault::status(304) => Becomes::Unavailable; "not modified, unasked")]
#[test_case(Fault::html(200) => Becomes::Malformed; "a page instead of a manifest")]
#[test_case(Fault::Body(vec![b' '; 5 << 20].into()) => Becomes::Malformed; "too large")]
#[test_case(Fault::Cut(10) => Becomes::Unavailable; "cut")]
#[test_case(Fault::Length(1000) => Becomes::Unavailable; "shorter than announced")]
#[test_case(Fault::Reset => Becomes::Unavailable; "no answer")]
#[tokio::test]
async fn odd_response_becomes(fault: Fault) -> Becomes {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    hub.always("GET manifests", fault);
    match upstream(&hub)
        .manifest(&name("library/app"), &tag("v1"))
        .await
        .unwrap_err()
    {
        Error::NotFound { .. } => Becomes::NotFound,
        Error::StrangeNotFound { .. } => Becomes::Strange,
        Error::Denied { .. } => Becomes::Denied,
        Error::RateLimited { .. } => Becomes::Limited,
        Error::Unavailable { .. } => Becomes::Unavailable,
        Error::Malformed { .. } => Becomes::Malformed,
    }
}

/// A manifest by digest that is a different one is refused.
#[tokio::test]
async fn wrong_manifest_by_digest_is_refused() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "v1", &[b"layer"]);
    hub.always("GET manifests", Fault::Body("{\"schemaVersion\":2}".into()));
    let got = upstream(&hub)
        .manifest(&name("library/app"), &digest.to_string().parse().unwrap())
        .await;
    assert!(matches!(got, Err(Error::Malformed { .. })), "{got:?}");
}

/// A large manifest without a length is given up at the limit.
#[tokio::test]
async fn large_manifest_without_length_is_limited() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    hub.always("GET manifests", Fault::Body(vec![b' '; 64 << 20].into()));
    hub.always("GET manifests", Fault::Header("content-length", String::new()));
    let got = upstream(&hub).manifest(&name("library/app"), &tag("v1")).await;
    assert!(matches!(got, Err(Error::Malformed { .. })), "{got:?}");
}

#[tokio::test]
async fn closed_pooled_connection_costs_one_retry() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let upstream = upstream(&hub);
    upstream.manifest(&name("library/app"), &tag("v1")).await.unwrap();
    hub.once("GET manifests", Fault::Reset);
    upstream.manifest(&name("library/app"), &tag("v1")).await.unwrap();
}

/// The query of a tag list is passed on, and the response names the next page.
#[tokio::test]
async fn tags_pass_query_and_return_next_page() {
    let hub = Hub::start().await;
    for version in ["v1", "v2", "v3"] {
        hub.push_image("library/app", version, &[b"layer"]);
    }
    let upstream = upstream(&hub);
    let page = upstream.tags(&name("library/app"), "n=2").await.unwrap();
    assert_eq!(page.tags, ["v1", "v2"]);
    let page = upstream
        .tags(&name("library/app"), &page.next.unwrap())
        .await
        .unwrap();
    assert_eq!(page.tags, ["v3"]);
    assert_eq!(page.next, None);
    assert_eq!(hub.seen("GET tags/list")[0].query, "n=2");
    assert_eq!(hub.seen("GET tags/list")[1].query, "last=v2&n=2");
}

/// Older registries send all tags at once unless a request asks for pages.
#[tokio::test]
async fn long_tag_list_is_requested_in_pages() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let upstream = upstream(&hub);
    let long = format!("{{\"tags\":[{}\"z\"]}}", "\"a\",".repeat(10_000));
    let large = format!("{{\"tags\":[{}\"z\"]}}", "1,".repeat(3 << 20));
    for list in [long, large] {
        hub.forget();
        hub.once("GET tags/list", Fault::Body(list.clone().into()));
        let page = upstream
            .tags(&name("library/app"), "last=a&n=99999")
            .await
            .unwrap();
        assert_eq!(page.tags, ["v1"]);
        let asked: Vec<_> = hub
            .seen("GET tags/list")
            .iter()
            .map(|seen| seen.query.clone())
            .collect();
        assert_eq!(asked, ["last=a&n=99999", "last=a&n=1000"]);
        hub.always("GET tags/list", Fault::Body(list.into()));
        let got = upstream.tags(&name("library/app"), "").await;
        assert!(
            matches!(&got, Err(Error::Malformed { what }) if what.contains("10000 tags")),
            "{got:?}"
        );
        hub.heal();
    }
}

#[tokio::test]
async fn manifest_of_too_many_descriptors_is_refused() {
    let hub = Hub::start().await;
    let descriptor = format!(r#"{{"digest":"sha256:{}"}}"#, "0".repeat(64));
    for list in ["layers", "manifests"] {
        let manifest = format!(
            r#"{{"schemaVersion":2,"{list}":[{}]}}"#,
            vec![descriptor.as_str(); 10_001].join(",")
        );
        hub.push_manifest("library/app", Some("v1"), MANIFEST, manifest);
        let got = upstream(&hub).manifest(&name("library/app"), &tag("v1")).await;
        assert!(
            matches!(&got, Err(Error::Malformed { what }) if what.contains("10000 descriptors")),
            "{list}"
        );
    }
}

/// A large document waits for its place longer than its body may take, and is read.
#[tokio::test]
async fn place_wait_does_not_count_as_body_time() {
    let hub = Hub::start().await;
    let large = format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "x".repeat(200_000));
    for index in 0..5 {
        hub.push_manifest("library/large", Some(&format!("v{index}")), MANIFEST, &large);
    }
    let mut options = impatient(Clock::system());
    options.timeouts.idle = Duration::from_secs(5);
    options.timeouts.body = Duration::from_secs(2);
    let upstream = Upstream::with_options(&hub.config(), options).unwrap();
    let gates = [Gate::shut(), Gate::shut()];
    for _ in 0..4 {
        hub.once("GET large", Fault::Wait(100_000, gates[0].clone()));
    }
    let pull = async |index: usize| {
        let reference = tag(&format!("v{index}"));
        upstream
            .manifest(&name("library/large"), &reference)
            .await
            .map(drop)
    };
    let sent = async |bytes: u64| {
        while hub.sent("GET large") < bytes {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let last = async {
        sent(4 * 100_000).await;
        hub.once("GET large", Fault::Wait(100_000, gates[1].clone()));
        pull(4).await
    };
    let open = async {
        sent(5 * 100_000).await;
        // The fifth document waits for most of the time of a body, and its server takes as long again.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        gates[0].open();
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        gates[1].open();
    };
    let (first, last, ()) = tokio::join!(futures::future::join_all((0..4).map(pull)), last, open);
    assert!(first.iter().all(Result::is_ok), "{first:?}");
    last.unwrap();
}

/// Four documents that stall hold up others of their size, and nothing else.
#[tokio::test]
async fn stalled_large_documents_delay_no_small_one() {
    let hub = Hub::start().await;
    let large = format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "x".repeat(200_000));
    for index in 0..5 {
        hub.push_manifest("library/large", Some(&format!("v{index}")), MANIFEST, &large);
    }
    hub.push_image("library/app", "v1", &[b"layer"]);
    let (upstream, gate) = (upstream(&hub), Gate::shut());
    for _ in 0..4 {
        hub.once("GET large", Fault::Wait(100_000, gate.clone()));
    }
    let stalled = (0..4).map(|index| {
        let (upstream, reference) = (&upstream, tag(&format!("v{index}")));
        async move {
            upstream
                .manifest(&name("library/large"), &reference)
                .await
                .map(drop)
        }
    });
    let others = async {
        while hub.sent("GET large") < 4 * 100_000 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        upstream.manifest(&name("library/app"), &tag("v1")).await.unwrap();
        let (large, app) = (name("library/large"), tag("v4"));
        let waits = upstream.manifest(&large, &app);
        tokio::time::timeout(Duration::from_millis(300), waits)
            .await
            .unwrap_err();
        gate.open();
        upstream.manifest(&large, &app).await.unwrap();
    };
    let (stalled, ()) = tokio::join!(futures::future::join_all(stalled), others);
    assert!(stalled.iter().all(Result::is_ok), "{stalled:?}");
}

#[tokio::test]
async fn referrers_come_whole_from_all_pages() {
    let hub = Hub::start().await;
    let (subject, _) = hub.push_image("library/app", "v1", &[b"layer"]);
    let signature = format!(r#"{{"schemaVersion":2,"subject":{{"digest":"{subject}"}}}}"#);
    let signature = hub.push_manifest("library/app", None, MANIFEST, signature);
    let upstream = upstream(&hub);
    let found = upstream.referrers(&name("library/app"), &subject).await.unwrap();
    assert!(String::from_utf8_lossy(&found.unwrap()).contains(signature.as_str()));
    let next = |body: &'static str, next: bool| {
        let link = next.then(|| ("link", r#"</x?page=2>; rel="next""#.to_owned()));
        Fault::Answer(StatusCode::OK, link.into_iter().collect(), body.into())
    };
    for last in [
        r#"{"schemaVersion":2,"manifests":null}"#,
        r#"{"manifests":[{"digest":"b"}]}"#,
    ] {
        hub.once(
            "GET referrers",
            next(r#"{"schemaVersion":2,"manifests":[{"digest":"a"}]}"#, true),
        );
        hub.once("GET referrers", next(last, false));
        let found = upstream.referrers(&name("library/app"), &subject).await.unwrap();
        let found: serde_json::Value = serde_json::from_slice(&found.unwrap()).unwrap();
        assert_eq!(found["manifests"][0]["digest"], "a");
    }
}

/// A part of the list would hide signatures.
#[test_case(Fault::html(200); "a page")]
#[test_case(Fault::error(404, "NOT_FOUND"); "404")]
#[test_case(Fault::status(501); "501")]
#[tokio::test]
async fn incomplete_referrers_are_malformed(fault: Fault) {
    let hub = Hub::start().await;
    let (subject, _) = hub.push_image("library/app", "v1", &[b"layer"]);
    let link = vec![("link", r#"</x?page=2>; rel="next""#.to_owned())];
    let first = Fault::Answer(StatusCode::OK, link, r#"{"manifests":[]}"#.into());
    hub.once("GET referrers", first);
    hub.always("GET referrers", fault);
    let got = upstream(&hub).referrers(&name("library/app"), &subject).await;
    assert!(matches!(got, Err(Error::Malformed { .. })), "{got:?}");
}

/// The Accept header lists known types, then those of the client, then any.
#[tokio::test]
async fn accept_has_known_then_client_types_then_any() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let headers = HeaderMap::from_iter([(ACCEPT, "application/vnd.x+json, text/html".parse().unwrap())]);
    let (upstream, accept) = (upstream(&hub), Accept::of_client(&headers));
    upstream
        .manifest_as(&name("library/app"), &tag("v1"), &accept)
        .await
        .unwrap();
    upstream
        .manifest_head(&name("library/app"), &tag("v1"), &accept)
        .await
        .unwrap();
    for seen in hub.seen("* manifests") {
        let sent = seen.header("accept").unwrap();
        assert!(
            sent.starts_with("application/vnd.oci.image.index.v1+json, "),
            "{sent}"
        );
        assert!(
            sent.ends_with("+json, application/vnd.x+json, */*") && !sent.contains("html"),
            "{sent}"
        );
    }
}

/// Without a usable credential the upstream receives no request.
#[tokio::test]
async fn unusable_credential_sends_no_request() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let upstream = upstream(&hub);
    upstream.refuse("the Secret has no entry for docker.io".into());
    let got = upstream.manifest(&name("library/app"), &tag("v1")).await;
    assert!(matches!(got, Err(Error::Denied { message, .. }) if message.contains("no entry for docker.io")));
    assert_eq!(hub.count("*"), 0);
}
