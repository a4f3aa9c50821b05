//! The upstream that a request reaches.

use mirror::config::Globs;
use test_case::test_case;

use crate::hub::Hub;
use crate::served::{Mirror, cache, header, live};

/// A request reaches the upstream that it names.
#[test_case("/v2/app/manifests/1", "docker.io"; "the default, with library")]
#[test_case("/v2/library/app/manifests/1?ns=docker.io", "docker.io"; "by ns")]
#[test_case("/v2/org/app/manifests/1?ns=quay.io", "quay.io"; "another by ns")]
#[test_case("/v2/quay.io/org/app/manifests/1", "quay.io"; "by path prefix")]
#[test_case("/v2/quay.io/org/app/manifests/1?ns=quay.io", "quay.io"; "by both")]
#[test_case("/v2/app/manifests/1?ns=index.docker.io", "docker.io"; "by an alias of Docker Hub")]
#[test_case("/v2/app/manifests/1?ns=Registry-1.Docker.io%3A443", "docker.io"; "by another with a port")]
#[test_case("/v2/index.docker.io/app/manifests/1", "docker.io"; "by an alias in the path")]
#[test_case("/v2/org/app/manifests/1?ns=QUAY.io:443", "quay.io"; "with the port of https")]
#[test_case("/v2/org/app/manifests/1?ns=quay.io:80", "quay.io"; "with the port of http")]
#[test_case("/v2/quay.io:443/org/app/manifests/1?ns=quay.io", "quay.io"; "a port in the path")]
#[tokio::test]
async fn request_reaches_named_upstream(path: &str, host: &str) {
    let (hub, quay) = (Hub::start().await, Hub::start().await);
    hub.push_image("library/app", "1", &[b"layer"]);
    quay.push_image("org/app", "1", &[b"layer"]);
    let mirror = Mirror::with(&[(&hub, "docker.io"), (&quay, "quay.io")], cache(), None).await;
    let answer = mirror.get(path).await;
    assert_eq!(
        (answer.status().as_u16(), header(&answer, "oci-namespace")),
        (200, host)
    );
    assert_eq!(hub.count("GET ") + quay.count("GET "), 1);
}

/// A request for no configured upstream is answered with 404, and no upstream receives a request.
#[test_case("/v2/app/manifests/1?ns=gcr.io"; "a host that is not configured")]
#[test_case("/v2/app/manifests/1?ns=docker.io:5000"; "another port of a host")]
#[test_case("/v2/quay.io/app/manifests/1?ns=docker.io"; "two hosts")]
#[tokio::test]
async fn unknown_upstream_is_404_without_requests(path: &str) {
    let (hub, quay) = (Hub::start().await, Hub::start().await);
    let mirror = Mirror::with(&[(&hub, "docker.io"), (&quay, "quay.io")], cache(), None).await;
    assert_eq!(mirror.get(path).await.status(), 404);
    assert_eq!(hub.count("* ") + quay.count("* "), 0);
}

/// The tags of one upstream are never served for a different one.
#[tokio::test]
async fn tags_of_upstreams_are_not_mixed() {
    let (hub, quay) = (Hub::start().await, Hub::start().await);
    hub.push_image("org/app", "1", &[b"hub"]);
    quay.push_image("org/app", "1", &[b"quay"]);
    let mirror = Mirror::with(&[(&hub, "docker.io"), (&quay, "quay.io")], cache(), None).await;
    let ours = mirror.get("/v2/org/app/manifests/1").await;
    let theirs = mirror.get("/v2/org/app/manifests/1?ns=quay.io").await;
    assert_ne!(header(&ours, "etag"), header(&theirs, "etag"));
}

/// A repository that the patterns exclude is answered with 404 although it is cached.
#[tokio::test]
async fn excluded_repository_is_404_though_cached() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("evil/app", "1", &[b"layer"]);
    let mirror = Mirror::of(&hub).await;
    let paths = [
        "/v2/evil/app/manifests/1".to_owned(),
        format!("/v2/evil/app/manifests/{digest}"),
    ];
    for path in &paths {
        assert_eq!(mirror.get(path).await.status(), 200);
    }
    let mut settings = live(&[(&hub, "docker.io")], cache(), &mirror.clock);
    settings.upstreams[0].settings.exclude = Globs::new(&["evil/**".into()]).unwrap();
    mirror.pull.reload(settings);
    hub.forget();
    for path in &paths {
        assert_eq!(mirror.get(path).await.status(), 404);
    }
    assert_eq!(hub.count("* "), 0);
}

#[tokio::test]
async fn error_names_requested_registry() {
    let (hub, quay) = (Hub::start().await, Hub::start().await);
    let mirror = Mirror::with(&[(&hub, "docker.io"), (&quay, "quay.io")], cache(), None).await;
    for (path, host) in [
        ("/v2/org/app/manifests/none?ns=quay.io", "quay.io"),
        ("/v2/org/app/manifests/none?ns=quay.io:443", "quay.io"),
        ("/v2/org/app/manifests/none?ns=gcr.io", ""),
        ("/v2/org/app/manifests/none", ""),
    ] {
        let answer = mirror.get(path).await;
        assert_eq!(
            (answer.status().as_u16(), header(&answer, "oci-namespace")),
            (404, host),
            "{path}"
        );
    }
}
