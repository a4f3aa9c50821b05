//! An upstream that sends as much as it may, and more: it costs little memory, and no other client an answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use test_case::test_case;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::hub::{Fault, Hub};
use crate::server::Server;
use crate::{MIB, bytes, floods, http2};

/// The most that memory may grow by while four large documents are read at once.
const MOST: u64 = 64 << 20;

fn answer(status: u16, headers: Vec<(&'static str, String)>, body: impl Into<Bytes>) -> Fault {
    Fault::Answer(StatusCode::from_u16(status).unwrap(), headers, body.into())
}

/// JSON of about `size` bytes with a list of this entry; `~` becomes a byte that is not UTF-8.
fn list(name: &str, entry: &str, size: usize) -> Bytes {
    let entries = format!("{entry},").repeat(size / (entry.len() + 1));
    let text = format!(r#"{{"schemaVersion":2,"{name}":[{entries}{entry}]}}"#);
    // No text has this byte.
    let byte = |byte| if byte == b'~' { 0xff } else { byte };
    text.into_bytes().into_iter().map(byte).collect()
}

/// A catalog of 30,000 repositories, requested by 60 clients at once, is listed in pages; other requests do not wait, and
/// memory stays small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_catalog_is_paged_and_cheap_for_many() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let repositories = home.path().join("cache/docker/registry/v2/repositories");
    for index in 0..30_000 {
        let path = format!("team-{}/app-{index:05}/_layers", index % 300);
        std::fs::create_dir_all(repositories.join(path)).unwrap();
    }
    let names = |body: String| {
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        body["repositories"].as_array().unwrap().clone()
    };
    let before = server.memory();
    let lists = join_all((0..60).map(|_| async {
        let answer = server.get("/v2/_catalog", "").await.unwrap();
        (answer.status, names(answer.body().await.unwrap()).len())
    }));
    let others = async {
        let begun = Instant::now();
        for _ in 0..20 {
            assert_eq!(server.get("/v2/", "").await.unwrap().status, 200);
        }
        begun.elapsed()
    };
    let (lists, waited) = tokio::join!(lists, others);
    assert!(lists.iter().all(|list| *list == (200, 10_000)), "{lists:?}");
    let growth = server.memory().saturating_sub(before);
    eprintln!("memory grew by {growth} bytes, 20 other requests took {waited:?}");
    assert!(growth < MOST, "memory grew by {growth} bytes");
    let (mut path, mut found) = ("/v2/_catalog".to_owned(), Vec::new());
    loop {
        let answer = server.get(&path, "").await.unwrap();
        let next = answer
            .header("link")
            .map(|link| link[1..].split_once('>').unwrap().0.to_owned());
        found.extend(names(answer.body().await.unwrap()));
        match next {
            Some(next) => path = next,
            None => break,
        }
    }
    assert_eq!(found.len(), 30_000);
    assert!(found.is_sorted_by_key(|name| name.as_str().map(str::to_owned)));
}

/// Each refusal names another service, and its token server sends a token as large as may be, or a larger one; every
/// second request is for another repository.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_tokens_take_little_memory() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    server.get("/v2/", "").await.unwrap();
    let before = server.memory();
    for index in 0..600_usize {
        hub.heal();
        let challenge = format!(
            "Bearer realm=\"{}token\",service=\"{index}{}\"",
            hub.url(),
            "x".repeat(1500)
        );
        hub.always(
            "GET manifests",
            answer(401, vec![("www-authenticate", challenge)], ""),
        );
        let length = [16 * 1024, MIB][usize::from(index % 16 == 0)];
        let token = format!("{{\"token\":\"{}\",\"expires_in\":3600}}", "t".repeat(length));
        hub.always("GET /token", answer(200, Vec::new(), token));
        let repository = format!("library/app{}", index / 2);
        let head = server
            .get(&format!("/v2/{repository}/manifests/v1"), "")
            .await
            .unwrap();
        assert!(matches!(head.status, 403 | 503), "{}", head.status);
    }
    let growth = server.memory().saturating_sub(before);
    eprintln!("memory grew by {growth} bytes");
    assert!(growth < 32 << 20, "memory grew by {growth} bytes");
}

/// Four at once, of the largest size that is read and of a larger one.
#[test_case("referrers", "manifests", "{}"; "referrers")]
#[test_case("manifests", "manifests", "{}"; "manifests of an index")]
#[test_case("manifests", "layers", r#"{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#; "layers that are right")]
#[test_case("manifests", "x", "[]"; "a member that nothing knows")]
#[test_case("manifests", "x", r#""~~~~~~~~""#; "a manifest that is not UTF-8")]
#[test_case("referrers", "x", r#""~~~~~~~~""#; "referrers that are not UTF-8")]
#[test_case("tags", "x", r#""~~~~~~~~""#; "tags that are not UTF-8")]
#[test_case("tags", "tags", r#""a""#; "tags")]
#[test_case("tags", "tags", "1"; "entries that are no tags")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_documents_take_little_memory(kind: &str, name: &str, entry: &str) {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    hub.push_image("library/good", "v1", &[b"layer"]);
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    server.get("/v2/", "").await.unwrap();
    let (before, most) = (server.memory(), AtomicU64::new(0));
    let watch = async {
        loop {
            most.fetch_max(server.memory(), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let attack = async {
        for (round, size) in [4 * MIB - 200, 15 * MIB].into_iter().enumerate() {
            hub.heal();
            hub.always(
                &format!("GET bad/{kind}"),
                answer(200, Vec::new(), list(name, entry, size)),
            );
            let requests = join_all((0..4_usize).map(|index| {
                let reference = match kind {
                    "tags" => format!("list?last={round}{index}"),
                    _ => format!("sha256:{}", format!("{round}{index}").repeat(32)),
                };
                let path = format!("/v2/library/bad/{kind}/{reference}");
                let server = &server;
                async move { server.get(&path, "").await.unwrap().status }
            }));
            let good = server.get("/v2/library/good/manifests/v1", "");
            let (statuses, good) = tokio::join!(requests, good);
            assert_eq!(good.unwrap().status, 200);
            assert!(
                statuses.iter().all(|status| matches!(status, 200 | 404 | 503)),
                "{statuses:?}"
            );
        }
    };
    tokio::select! {
        () = attack => {}
        () = watch => unreachable!(),
    };
    let growth = most.into_inner().saturating_sub(before);
    eprintln!("memory grew by {growth} bytes");
    assert!(growth < MOST, "memory grew by {growth} bytes");
}

/// The most anonymous memory of a debug build under all floods at once, while other tests use the processors.
const UNDER_ALL_FLOODS: u64 = 96 << 20;

/// All floods at once, for 10 s: tokens and challenges as large as they may be, large documents of each kind, error bodies,
/// downloads that send drops, lengths that are lies, clients that connect and send no request, long requests, headers
/// without an end, and streams and connections whose client reads nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_floods_at_once_stay_within_memory() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    hub.push_image("library/good", "v1", &[b"layer"]);
    for index in 0..40 {
        let service = format!("{index}{}", "x".repeat(1500));
        let challenge = format!("Bearer realm=\"{}token\",service=\"{service}\"", hub.url());
        let refusal = answer(401, vec![("www-authenticate", challenge)], "");
        hub.always(&format!("GET app{index}/manifests"), refusal);
    }
    let token = format!("{{\"token\":\"{}\",\"expires_in\":3600}}", "t".repeat(16 << 10));
    hub.always("GET /token", answer(200, Vec::new(), token));
    for (kind, name, entry) in DOCUMENTS {
        let body = list(name, entry, 4 * MIB - 200);
        hub.always(&format!("GET bad/{kind}"), answer(200, Vec::new(), body));
    }
    hub.always(
        "GET denied/manifests",
        answer(403, Vec::new(), "e".repeat(64 << 10)),
    );
    hub.always("GET drops/blobs", Fault::Drops(Duration::from_millis(500)));
    let lie = vec![("content-length", (99 * MIB).to_string())];
    hub.always("GET lies/blobs", answer(200, lie, ""));
    let unread = hub.push_blob("library/good", bytes(1, MIB));
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    assert_eq!(status_of(&server, "good/manifests/v1").await, Some(200));
    let path = format!("/v2/library/good/blobs/{unread}");
    server.get(&path, "").await.unwrap().digest().await.unwrap();
    let _held = hold_connections(&server, &path).await;
    let (most, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let floods = join_all((0..48_usize).map(|client| {
        let (server, most, done) = (&server, &most, &done);
        async move {
            let mut round = client;
            while !done.load(Ordering::Relaxed) {
                let digest = format!("sha256:{round:064x}");
                let path = match client % 8 {
                    0 => format!("app{}/manifests/{digest}", round % 40),
                    1 => format!("bad/manifests/{digest}"),
                    2 => format!("bad/referrers/{digest}"),
                    3 => format!("bad/tags/list?last={round}"),
                    4 => format!("denied{round}/denied/manifests/v1"),
                    5 => format!("drops/blobs/{digest}"),
                    6 => format!("lies/blobs/{digest}"),
                    _ => format!("good/manifests/{}", "v".repeat(30_000)),
                };
                let patience = Duration::from_secs(1);
                let _ = tokio::time::timeout(patience, status_of(server, &path)).await;
                most.fetch_max(server.memory(), Ordering::Relaxed);
                round += 48;
            }
        }
    }));
    let pulls = async {
        let (begin, mut pulls) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(10) {
            assert_eq!(status_of(&server, "good/manifests/v1").await, Some(200));
            pulls += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        done.store(true, Ordering::Relaxed);
        pulls
    };
    let (pulls, _) = tokio::join!(pulls, floods);
    let most = most.into_inner();
    eprintln!("at most {most} bytes of memory, {pulls} pulls of the innocent client");
    assert!(most < UNDER_ALL_FLOODS, "{most} bytes of memory");
    assert!(pulls > 0);
}

/// Opens connections of one address on which the client reads nothing: silent ones, headers without an end, and requests
/// of HTTP/1.1 and HTTP/2.
async fn hold_connections(server: &Server, path: &str) -> Vec<TcpStream> {
    let http1 = format!("GET {path} HTTP/1.1\r\nhost: m\r\nrange: bytes=0-60000\r\n\r\n").repeat(80);
    let begun = format!("GET /v2/ HTTP/1.1\r\nhost: m\r\nx: {}", "x".repeat(30_000));
    let streams = (0..100).map(|number| http2::get(2 * number + 1, path, &[]));
    let http2: Vec<_> = std::iter::once(http2::start(1)).chain(streams).collect();
    let (http2, endless) = (http2.concat(), http2::unfinished_header(30_000));
    let endless = [http2::start(1), endless].concat();
    let mut held = Vec::new();
    for number in 0..600 {
        let bytes: &[u8] = match number % 6 {
            0 => http1.as_bytes(),
            1 => begun.as_bytes(),
            2 if number < 120 => &http2,
            3 => &endless,
            _ => b"",
        };
        let mut stream = floods::connect(&server.address, floods::ATTACKER).await;
        floods::send(&mut stream, bytes).await;
        held.push(stream);
    }
    held
}

/// Large documents: kind, list, and one entry of it.
const DOCUMENTS: [(&str, &str, &str); 3] = [
    ("manifests", "manifests", "{}"),
    ("referrers", "manifests", "{}"),
    ("tags", "tags", r#""a""#),
];

/// Serves these bytes on each connection, once or each 10 ms, and keeps the connection open.
async fn serve_bytes(bytes: String, endless: bool) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                while stream.write_all(bytes.as_bytes()).await.is_ok() && endless {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                std::future::pending::<()>().await;
            });
        }
    });
    url.parse().unwrap()
}

/// Clients that ask at once for many large manifests, and read none, cost the memory of a few. The number of bytes is that
/// of each of 9,000 descriptors beyond its digest.
#[test_case(260, true, 192 << 20; "of 3 MiB, cached")]
#[test_case(260, false, 192 << 20; "of 3 MiB, cold")]
#[test_case(0, true, UNDER_ALL_FLOODS; "of 850 KiB, cached")]
#[test_case(0, false, UNDER_ALL_FLOODS; "of 850 KiB, cold")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_of_large_manifests_stays_within_memory(padding: usize, is_cached: bool, limit: u64) {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let push = |number: usize| {
        let (digest, padding) = ("a".repeat(64), "p".repeat(padding));
        let layer = format!("{{\"size\":1,\"digest\":\"sha256:{digest}\",\"x\":\"{padding}\"}},");
        let layers = layer.repeat(9_000);
        let text = format!(
            "{{\"schemaVersion\":2,\"x\":{number},\"layers\":[{}]}}",
            layers.trim_end_matches(',')
        );
        hub.push_manifest(
            "library/large",
            None,
            "application/vnd.oci.image.manifest.v1+json",
            text,
        )
    };
    let digests: Vec<_> = (0..60).map(push).collect();
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let path = |digest| format!("large/manifests/{digest}");
    for digest in digests.iter().filter(|_| is_cached) {
        assert_eq!(status_of(&server, &path(digest)).await, Some(200));
    }
    let most = AtomicU64::new(0);
    let requests = digests.iter().chain(&digests).map(async |digest| {
        assert_eq!(status_of(&server, &path(digest)).await, Some(200));
        most.fetch_max(server.memory(), Ordering::Relaxed);
    });
    join_all(requests).await;
    let most = most.into_inner();
    eprintln!("{} MiB", most >> 20);
    assert!(most < limit, "{most} bytes");
}

/// The header of a response is not kept while its body comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_headers_are_dropped_before_the_body() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    server.get("/v2/", "").await.unwrap();
    let before = server.memory();
    let fields: Vec<_> = (0..400)
        .map(|number| format!("x-{number}: {}\r\n", "x".repeat(600)))
        .collect();
    let fields = fields.concat();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n{fields}\r\nbegun");
    let url = serve_bytes(answer, false).await;
    hub.always("GET large/blobs", Fault::Forward(307, url));
    let fills = join_all((0..90).map(|number| {
        let path = format!("large/blobs/sha256:{number:064x}");
        let server = &server;
        async move { tokio::time::timeout(Duration::from_secs(8), status_of(server, &path)).await }
    }));
    fills.await;
    assert_eq!(hub.count("GET large/blobs"), 90);
    // The buffers in which the headers came are freed one after the other.
    let limit = 20 << 20;
    let growth = || server.memory().saturating_sub(before);
    let begin = Instant::now();
    while growth() >= limit && begin.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprintln!("memory grew by {} bytes", growth());
    assert!(growth() < limit, "memory grew by {} bytes", growth());
}

/// A server that sends a thousand informational responses (1xx) a second, on each of four connections, holds up no other
/// request: the parser prepares space for few fields for each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_informational_responses_delay_no_other() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    hub.push_image("library/good", "v1", &[b"layer"]);
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let before = server.memory();
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: <x>; rel=preload\r\n\r\n".repeat(10);
    let url = serve_bytes(hint, true).await;
    hub.always("GET bad/blobs", Fault::Forward(307, url));
    let end = Instant::now() + Duration::from_secs(5);
    let bad = join_all((0..4).map(|number| {
        let path = format!("bad/blobs/sha256:{number:064x}");
        let server = &server;
        async move { tokio::time::timeout_at(end.into(), status_of(server, &path)).await }
    }));
    let good = async {
        let mut pulls = 0;
        while Instant::now() < end {
            let begun = Instant::now();
            assert_eq!(status_of(&server, "good/manifests/v1").await, Some(200));
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(3), "an innocent request took {took:?}");
            pulls += 1;
        }
        pulls
    };
    let (pulls, _) = tokio::join!(good, bad);
    let growth = server.memory().saturating_sub(before);
    eprintln!("{pulls} pulls, memory grew by {growth} bytes");
    assert!(pulls > 20 && growth < 32 << 20, "{pulls} pulls, {growth} bytes");
}

/// Requests a path below `/v2/library/`, and returns the status, if there is an answer.
async fn status_of(server: &Server, path: &str) -> Option<u16> {
    let head = server.get(&format!("/v2/library/{path}"), "").await;
    head.ok().map(|head| head.status)
}
