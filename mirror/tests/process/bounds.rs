//! An upstream that sends as much as it may, and more: it costs little memory, and nobody else an answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use test_case::test_case;

use crate::MIB;
use crate::hub::{Fault, Hub};
use crate::server::Server;

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
