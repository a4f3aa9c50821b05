//! Tags, referrers and the catalog.

use std::time::Duration;

use serde_json::json;
use test_case::test_case;

use crate::hub::{Fault, Gate, Hub};
use crate::served::{Mirror, assert_answer, cache, header, json as body_of};

/// The list of tags comes from the upstream page by page.
#[tokio::test]
async fn tags_are_paged_from_upstream() {
    let hub = Hub::start().await;
    for tag in ["a", "b", "c"] {
        hub.push_image("library/app", tag, &[tag.as_bytes()]);
    }
    let mirror = Mirror::of(&hub).await;
    let first = mirror.get("/v2/app/tags/list?n=2&ns=docker.io").await;
    let link = header(&first, "link").to_owned();
    assert_eq!(body_of(first).await, json!({"name": "app", "tags": ["a", "b"]}));
    let next = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
    assert!(
        next.starts_with("/v2/app/tags/list?") && next.contains("ns=docker.io"),
        "{link}"
    );
    let second = mirror.get(next).await;
    assert_eq!(body_of(second).await["tags"], json!(["c"]));
}

fn page(tags: &[&str], link: Option<&str>) -> Fault {
    let body = json!({"name": "library/app", "tags": tags}).to_string();
    let link = link.map(|link| ("link", link.to_owned()));
    let headers = [("content-type", "application/json".to_owned())];
    Fault::Answer(
        http::StatusCode::OK,
        headers.into_iter().chain(link).collect(),
        body.into(),
    )
}

/// A registry that fills a page and sends no `Link` is asked for the tag after its last one.
#[test_case(&["c"], "</v2/app/tags/list?last=b&n=2>; rel=\"next\""; "another page")]
#[test_case(&[], ""; "the last page")]
#[test_case(&["a", "b"], ""; "last is ignored")]
#[tokio::test]
async fn full_page_without_link_is_continued(after: &[&str], link: &str) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    hub.once("GET tags", page(&["a", "b"], None));
    hub.once("GET tags", page(after, None));
    let first = mirror.get("/v2/app/tags/list?n=2").await;
    assert_eq!(header(&first, "link"), link);
    assert_eq!(body_of(first).await["tags"], json!(["a", "b"]));
    assert_eq!(hub.count("GET tags"), 2);
}

/// A page that is not full ends a list, and costs no further request; neither does one with a `Link`.
#[test_case("?n=3", None; "fewer tags")]
#[test_case("", None; "no number")]
#[test_case("?n=2", Some("</v2/a/tags/list?last=b&n=2>; rel=next"); "a link")]
#[tokio::test]
async fn page_that_shows_its_end_needs_one_request(query: &str, link: Option<&str>) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    hub.once("GET tags", page(&["a", "b"], link));
    let first = mirror.get(&format!("/v2/app/tags/list{query}")).await;
    assert_eq!(header(&first, "link").is_empty(), link.is_none());
    assert_eq!(hub.count("GET tags"), 1);
}

/// A client that follows the links of a registry that sends none gets each tag once.
#[tokio::test]
async fn all_tags_come_from_registry_without_links() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    let answers = [&["a", "b"][..], &["c"], &["c", "d"], &[]];
    for tags in answers {
        hub.once("GET tags", page(tags, None));
    }
    let (mut path, mut found) = ("/v2/app/tags/list?n=2".to_owned(), Vec::new());
    loop {
        let answer = mirror.get(&path).await;
        let link = header(&answer, "link").to_owned();
        found.extend(body_of(answer).await["tags"].as_array().unwrap().clone());
        match link.strip_prefix('<').and_then(|link| link.split_once('>')) {
            Some((next, _)) => path = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(found, ["a", "b", "c", "d"]);
}

/// GHCR sends `n=0` in its links, for no limit, and sorts tags by time.
#[tokio::test]
async fn tags_of_ghcr_are_paged_to_the_end() {
    let hub = Hub::start().await;
    let link = "</v2/library/app/tags/list?last=v1.9&n=0>; rel=\"next\"";
    let mirror = Mirror::of(&hub).await;
    hub.once("GET tags", page(&["v2", "v1.9"], Some(link)));
    let first = mirror.get("/v2/app/tags/list").await;
    assert_eq!(
        header(&first, "link"),
        "</v2/app/tags/list?last=v1.9>; rel=\"next\""
    );
    assert_eq!(body_of(first).await["tags"], json!(["v2", "v1.9"]));
    hub.once("GET tags", page(&["v1.11", "v1.10"], None));
    let last = mirror.get("/v2/app/tags/list?last=v1.9").await;
    assert_eq!(header(&last, "link"), "");
    assert_eq!(body_of(last).await["tags"], json!(["v1.11", "v1.10"]));
}

/// Clients would follow it to another upstream, or read a second link.
#[tokio::test]
async fn link_of_upstream_is_encoded_again() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "a", &[b"a"]);
    let link = r#"</v2/app/tags/list?ns=evil.example&%6es=x&last=a"b>; rel="next", </evil>; rel="next""#;
    hub.always("GET tags", Fault::Header("link", link.to_owned()));
    let mirror = Mirror::of(&hub).await;
    for (query, ns) in [("", ""), ("?ns=docker.io", "&ns=docker.io")] {
        let answer = mirror.get(&format!("/v2/app/tags/list{query}")).await;
        assert_eq!(answer.headers().get_all("link").iter().count(), 1);
        let expected = format!("</v2/app/tags/list?last=a%22b{ns}>; rel=\"next\"");
        assert_eq!(header(&answer, "link"), expected);
    }
}

/// The cached tags are listed while the upstream fails.
#[tokio::test]
async fn cached_tags_are_listed_while_upstream_fails() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "a", &[b"a"]);
    let mirror = Mirror::of(&hub).await;
    mirror.get("/v2/app/manifests/a").await;
    hub.always("* tags", Fault::status(500));
    let answer = mirror.get("/v2/app/tags/list").await;
    assert_eq!(header(&answer, "x-cache"), "STALE");
    assert_eq!(body_of(answer).await["tags"], json!(["a"]));
}

/// The catalog lists the repositories that are cached.
#[tokio::test]
async fn catalog_lists_cached_repositories() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "a", &[b"a"]);
    let mirror = Mirror::of(&hub).await;
    mirror.get("/v2/app/manifests/a").await;
    let catalog = body_of(mirror.get("/v2/_catalog").await).await;
    assert_eq!(catalog, json!({"repositories": ["library/app"]}));
}

/// Referrers are requested once while fresh, filtered by the mirror, and served stale.
#[tokio::test]
async fn referrers_are_cached_filtered_and_served_stale() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "a", &[b"a"]);
    let index =
        json!({"schemaVersion": 2, "manifests": [{"artifactType": "x/sig"}, {"artifactType": "x/sbom"}]});
    let kind = vec![(
        "content-type",
        "application/vnd.oci.image.index.v1+json".to_owned(),
    )];
    let answer = Fault::Answer(http::StatusCode::OK, kind, index.to_string().into());
    hub.always("GET referrers", answer);
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/referrers/{digest}");
    let all = body_of(mirror.get(&path).await).await;
    assert_eq!(all["manifests"].as_array().unwrap().len(), 2);
    let some = mirror.get(&format!("{path}?artifactType=x/sig")).await;
    assert_eq!(header(&some, "oci-filters-applied"), "artifactType");
    assert_eq!(
        body_of(some).await["manifests"],
        json!([{"artifactType": "x/sig"}])
    );
    let empty = mirror.get(&format!("{path}?artifactType=")).await;
    assert!(!empty.headers().contains_key("oci-filters-applied"));
    assert_eq!(body_of(empty).await, all, "an empty value is no filter");
    assert_eq!(hub.count("GET referrers"), 1);
    hub.heal();
    hub.always("GET referrers", Fault::status(500));
    mirror.clock.advance(Duration::from_mins(6));
    assert_eq!(header(&mirror.get(&path).await, "x-cache"), "STALE");
}

/// The error page of an ingress does not hide referrers that are cached.
#[tokio::test]
async fn ingress_page_keeps_known_referrers() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "a", &[b"a"]);
    let index = json!({"schemaVersion": 2, "manifests": [{"artifactType": "x/sig"}]});
    let kind = vec![(
        "content-type",
        "application/vnd.oci.image.index.v1+json".to_owned(),
    )];
    hub.once(
        "GET referrers",
        Fault::Answer(http::StatusCode::OK, kind, index.to_string().into()),
    );
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/referrers/{digest}");
    mirror.get(&path).await;
    mirror.clock.advance(Duration::from_mins(6));
    hub.always("GET referrers", Fault::html(404));
    let answer = mirror.get(&path).await;
    assert_answer(&answer, 200, "x-cache", "STALE");
}

/// Concurrent requests for referrers cost one upstream request.
#[tokio::test]
async fn concurrent_referrers_cost_one_request() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "a", &[b"a"]);
    let gate = Gate::shut();
    hub.always("GET referrers", Fault::Hold(gate.clone()));
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/referrers/{digest}");
    let ask = async || {
        let answer = mirror.get(&path).await;
        (answer.status().as_u16(), header(&answer, "x-cache").to_owned())
    };
    let open = async {
        while hub.count("GET referrers") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.open();
    };
    let (answers, ()) = tokio::join!(futures::future::join_all((0..20).map(|_| ask())), open);
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(hub.count("GET referrers"), 1);
}

/// The catalog names no repository that clients may not pull: kept out by patterns, or of an upstream that is gone.
#[tokio::test]
async fn catalog_lists_only_what_clients_may_pull() {
    let (hub, quay, gone) = (Hub::start().await, Hub::start().await, Hub::start().await);
    let hubs = [(&hub, "docker.io"), (&quay, "quay.io"), (&gone, "gone.test")];
    let mirror = Mirror::with(&hubs, cache(), None).await;
    for (hub, host, name) in [
        (&hub, "docker.io", "team/open"),
        (&hub, "docker.io", "team/secret"),
        (&quay, "quay.io", "team/app"),
        (&quay, "quay.io", "other/app"),
        (&gone, "gone.test", "team/app"),
    ] {
        hub.push_image(name, "1", &[b"layer"]);
        let pulled = mirror.get(&format!("/v2/{host}/{name}/manifests/1")).await;
        assert_eq!(pulled.status(), 200, "{host}/{name}");
    }
    let globs = |pattern: &str| mirror::config::Globs::new(&[pattern.to_owned()]).unwrap();
    let mut live = crate::served::live(&hubs[..2], cache(), &mirror.clock);
    live.upstreams[0].settings.exclude = globs("**/secret");
    live.upstreams[1].settings.include = globs("team/**");
    mirror.pull.reload(live);
    let listed = body_of(mirror.get("/v2/_catalog").await).await;
    assert_eq!(listed["repositories"], json!(["quay.io/team/app", "team/open"]));
    let page = body_of(mirror.get("/v2/_catalog?n=1&last=quay.io/team/app").await).await;
    assert_eq!(page["repositories"], json!(["team/open"]));
}
