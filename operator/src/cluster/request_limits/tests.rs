use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures::stream;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, WatchParams},
};
use parking_lot::Mutex as Shared;
use serde_json::json;
use test_case::test_case;

use super::*;

type Served = UnsyncBoxBody<Bytes, Infallible>;

/// Returns a client with the limits to a server, and the URIs that the server got.
fn served<F>(answer: F) -> (Client, Arc<Shared<Vec<Uri>>>)
where
    F: Fn(&Uri) -> Served + Send + Sync + 'static,
{
    let seen = Arc::new(Shared::new(Vec::new()));
    let requests = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Body>| {
        let body = answer(request.uri());
        requests.lock().push(request.uri().clone());
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    (limited(&Client::new(service, "mirrors")), seen)
}

fn json_body(value: &serde_json::Value) -> Served {
    Full::new(Bytes::from(value.to_string())).boxed_unsync()
}

fn message(error: &kube::Error) -> String {
    crate::cluster::error_message(error)
}

/// A name with characters of a path or a query sends no request, whatever the verb.
#[test_case("../x")]
#[test_case("../../mirrors/secrets/victim")]
#[test_case("..")]
#[test_case("/")]
#[test_case("x/")]
#[test_case("x/log")]
#[test_case("?watch=true")]
#[test_case("x?watch=true")]
#[test_case("?limit=1")]
#[test_case("x?y")]
#[test_case("%2e%2e")]
#[test_case("..%2fx")]
#[test_case("a b")]
#[test_case("ä")]
#[test_case("")]
#[test_case(&"a".repeat(300))]
#[tokio::test]
async fn malformed_name_sends_no_request(name: &str) {
    let (client, seen) = served(|_| json_body(&json!({"kind": "Secret", "metadata": {}})));
    let api = Api::<Secret>::namespaced(client.clone(), "mirrors");
    assert!(api.get_opt(name).await.is_err(), "get");
    assert!(
        api.delete(name, &DeleteParams::default()).await.is_err(),
        "delete"
    );
    let (params, patch) = (PatchParams::default(), json!({}));
    assert!(
        api.patch(name, &params, &Patch::Merge(&patch)).await.is_err(),
        "patch"
    );
    let other = Api::<Secret>::namespaced(client, name);
    assert!(other.get_opt("x").await.is_err(), "a namespace");
    assert_eq!(*seen.lock(), Vec::<Uri>::new());
}

/// Requests for objects, collections and their status pass.
#[test_case("GET", "/api/v1/namespaces/ns/secrets/x.y-1", RequestTarget::Other)]
#[test_case(
    "GET",
    "/api/v1/namespaces/ns/secrets?fieldSelector=a%3Db",
    RequestTarget::Other
)]
#[test_case("GET", "/api/v1/secrets?&limit=100&continue=abc%3D", RequestTarget::Page(100))]
#[test_case(
    "GET",
    "/apis/apps/v1/deployments?watch=true&resourceVersion=1",
    RequestTarget::Watch
)]
#[test_case(
    "PATCH",
    "/apis/registrymirror.io/v1alpha1/namespaces/n/registrymirrors/x/status?force=true",
    RequestTarget::Other
)]
#[test_case("DELETE", "/api/v1/namespaces/ns/configmaps/x?", RequestTarget::Other)]
#[test_case("POST", "/apis/events.k8s.io/v1/namespaces/ns/events?", RequestTarget::Other)]
fn request_of_the_operator_is_sent(method: &str, uri: &str, expected: RequestTarget) {
    let method = method.parse().unwrap();
    assert_eq!(
        RequestTarget::parse(&method, &uri.parse().unwrap()),
        Some(expected)
    );
}

#[tokio::test]
async fn answer_above_the_bound_is_refused() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let (client, _) = served(move |_| {
        let sent = Arc::clone(&counter);
        let piece = Bytes::from(vec![b' '; 1 << 20]);
        let pieces = stream::repeat_with(move || {
            sent.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(Frame::data(piece.clone()))
        });
        BodyExt::boxed_unsync(StreamBody::new(pieces))
    });
    let error = Api::<Secret>::namespaced(client, "mirrors").get_opt("x").await;
    let error = message(&error.unwrap_err());
    assert!(error.contains("larger than 12582912 bytes"), "{error}");
    assert!(sent.load(Ordering::SeqCst) < 20);
}

#[tokio::test]
async fn answer_that_never_ends_ends_in_time() {
    let limit = Duration::from_millis(10);
    let error = within::<()>(limit, std::future::pending()).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&LimitError::Time(limit)));
}

/// Objects that together are larger than a page are listed all, in pages that fit.
#[tokio::test]
async fn large_objects_are_listed_in_small_pages() {
    const OBJECTS: usize = 16;
    let (client, seen) = served(|uri| {
        let pairs: HashMap<_, _> = url::form_urlencoded::parse(uri.query().unwrap().as_bytes()).collect();
        let number = |key: &str| pairs.get(key).map_or(0, |value| value.parse::<usize>().unwrap());
        let (begin, end) = (
            number("continue"),
            OBJECTS.min(number("continue") + number("limit")),
        );
        let items = (begin..end)
            .map(|i| json!({"metadata": {"name": format!("m{i}")}, "data": {"k": "x".repeat(500_000)}}));
        let next = (end < OBJECTS).then(|| end.to_string());
        json_body(&json!({
            "kind": "ConfigMapList", "apiVersion": "v1",
            "metadata": {"continue": next, "resourceVersion": "1"},
            "items": items.collect::<Vec<_>>(),
        }))
    });
    let api = Api::<ConfigMap>::all(client);
    let (mut names, mut params) = (Vec::new(), ListParams::default().limit(100));
    loop {
        let page = api.list(&params).await.unwrap();
        assert!(
            page.items.len() <= 4,
            "{} objects of half a megabyte",
            page.items.len()
        );
        names.extend(page.items.iter().map(ResourceExt::name_any));
        match page.metadata.continue_ {
            Some(next) => params.continue_token = Some(next),
            None => break,
        }
    }
    let expected: Vec<_> = (0..OBJECTS).map(|i| format!("m{i}")).collect();
    assert_eq!(names, expected);
    let requests = seen.lock().len();
    assert!(requests <= OBJECTS, "{requests} requests");
}

/// A page that fits is one request, as it was asked for.
#[tokio::test]
async fn page_that_fits_is_requested_once() {
    let (client, seen) = served(|_| {
        json_body(&json!({"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []}))
    });
    let api = Api::<Secret>::all(client);
    api.list(&ListParams::default().limit(500)).await.unwrap();
    let seen: Vec<_> = seen.lock().iter().map(Uri::to_string).collect();
    assert_eq!(seen, ["/api/v1/secrets?&limit=500"]);
}

#[tokio::test]
async fn watch_event_above_the_bound_ends_the_watch() {
    let (client, _) = served(|_| {
        let event = json!({"type": "ADDED", "object": {"metadata": {"name": "x"}}});
        let event = Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n"))));
        let endless = stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![b' '; 1 << 20]))));
        BodyExt::boxed_unsync(StreamBody::new(stream::iter([event]).chain(endless)))
    });
    let api = Api::<Secret>::all(client);
    let events = api.watch(&WatchParams::default(), "0").await.unwrap();
    let events: Vec<_> = events.take(3).collect().await;
    assert!(matches!(events[..], [Ok(_), Err(_)]), "{} events", events.len());
}
