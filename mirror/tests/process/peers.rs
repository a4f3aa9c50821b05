//! One upstream transfer for all replicas, also while a replica is killed.

use std::time::Duration;

use futures::future::join_all;
use mirror::digest::{Algorithm, Digest};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::fleet::{Replicas, authorization, hello_of, metric, now, send, status, until_peers, weight};
use crate::hub::{Fault, Gate, Hub};
use crate::server::{Head, Server};
use crate::{LIMIT, MIB, bytes, until};

fn blob(digest: &Digest) -> String {
    format!("/v2/library/app/blobs/{digest}")
}

/// Pulls a path by so many clients of each server; each gets this digest.
async fn pull(servers: &[&Server], clients: usize, path: &str, digest: &Digest) {
    let one = async |server: &Server| {
        let head = server.get(path, "").await.unwrap();
        assert_eq!(head.status, 200, "{}", head.text);
        head.digest().await.unwrap()
    };
    let pulls = servers
        .iter()
        .flat_map(|server| (0..clients).map(move |_| one(server)));
    assert!(join_all(pulls).await.iter().all(|found| found == digest));
}

/// Ninety-six clients of a cold blob at three replicas cost one download.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn herd_at_three_replicas_costs_one_request() {
    let (hub, digest) = Hub::with_blob(bytes(1, 32 * MIB)).await;
    let replicas = Replicas::start(3, &hub, "").await;
    let servers = [0, 1, 2].map(|index| replicas.get(index));
    pull(&servers, 32, &blob(&digest), &digest).await;
    assert_eq!((hub.count("GET blobs"), hub.count("HEAD blobs")), (1, 0));
    let (mut from_peers, expected) = (0.0, f64::from(64 * 32 * (1_u32 << 20)) * 0.999);
    for server in servers {
        from_peers += metric(server, "registry_mirror_served_bytes_total{source=\"peer\"}").await;
    }
    assert!(from_peers >= expected, "{from_peers} bytes from peers");
}

/// The owner is killed while clients of the other replicas wait for its bytes: none of them fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_killed_in_mid_fill_fails_no_pull() {
    let (hub, size) = (Hub::start().await, 16 * MIB);
    let digest = hub.push_blob("library/app", bytes(2, size));
    let mut replicas = Replicas::start(3, &hub, "").await;
    let gate = Gate::shut();
    hub.once("GET blobs", Fault::Wait(6 * MIB, gate.clone()));
    let path = blob(&digest);
    let mut heads = Vec::new();
    for index in 0..3 {
        let mut head = replicas.get(index).get(&path, "").await.unwrap();
        head.first_byte().await.unwrap();
        heads.push(head);
    }
    let mut owner = None;
    for index in 0..3 {
        let name = "registry_mirror_upstream_requests_total";
        if metric(replicas.get(index), name).await > 0.0 {
            owner = Some(index);
        }
    }
    let owner = owner.unwrap();
    heads.remove(owner);
    let server = replicas.servers[owner].take().unwrap();
    let others: Vec<_> = replicas.servers.iter().flatten().collect();
    let waiting = async {
        let digests = join_all(heads.into_iter().map(Head::digest)).await;
        assert!(digests.into_iter().all(|found| found.unwrap() == digest));
    };
    let kill = async {
        server.kill().await;
        gate.open();
    };
    tokio::join!(pull(&others, 16, &path, &digest), waiting, kill);
    let sent = hub.sent("GET blobs");
    assert!(sent <= 2 * size as u64, "{sent} bytes from upstream for {size}");
}

/// An owner that stands still is left after seconds, and its clients fail no pull.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_that_hangs_fails_no_pull() {
    let hub = Hub::start().await;
    let replicas = Replicas::start(2, &hub, "").await;
    replicas.get(0).stop();
    let digests: Vec<_> = (0..4)
        .map(|seed| hub.push_blob("library/app", bytes(seed, MIB)))
        .collect();
    for digest in &digests {
        pull(&[replicas.get(1)], 2, &blob(digest), digest).await;
    }
    replicas.get(0).resume();
    until_peers(replicas.get(1), "serving", 1).await;
}

/// A tag is checked once in its lifetime for all replicas, and its manifest is fetched once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tag_is_checked_once_for_all_replicas() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    let replicas = Replicas::start(3, &hub, "cache: {tagttl: 4s}").await;
    let servers = [0, 1, 2].map(|index| replicas.get(index));
    pull(&servers, 4, "/v2/library/app/manifests/1", &digest).await;
    let by_digest = format!("/v2/library/app/manifests/{digest}");
    pull(&servers, 4, &by_digest, &digest).await;
    assert_eq!((hub.count("GET manifests"), hub.count("HEAD manifests")), (1, 0));
    tokio::time::sleep(Duration::from_millis(5_200)).await;
    for server in servers {
        pull(&[server], 2, "/v2/library/app/manifests/1", &digest).await;
    }
    assert_eq!((hub.count("GET manifests"), hub.count("HEAD manifests")), (1, 1));
}

/// Content that is not there, and a refusal, cost one request for all replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstreams_errors_are_passed_on() {
    let hub = Hub::start().await;
    hub.push_blob("library/app", b"something");
    let absent = format!("/v2/library/app/blobs/sha256:{}", "0".repeat(64));
    hub.always("GET library/closed", Fault::error(403, "DENIED"));
    let replicas = Replicas::start(3, &hub, "").await;
    for (path, status) in [
        (absent.as_str(), 404),
        ("/v2/library/app/manifests/none", 404),
        ("/v2/library/closed/manifests/1", 403),
    ] {
        for index in 0..3 {
            let head = replicas.get(index).get(path, "").await.unwrap();
            assert_eq!(head.status, status, "{path}: {}", head.text);
        }
    }
    assert_eq!(
        (hub.count("GET app/blobs"), hub.count("GET app/manifests")),
        (1, 1)
    );
}

/// A list of tags comes through the owner as the upstream has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tag_list_is_the_same_at_each_replica() {
    let hub = Hub::start().await;
    for tag in ["1", "2", "3"] {
        hub.push_image("library/app", tag, &[b"layer"]);
    }
    let replicas = Replicas::start(3, &hub, "").await;
    for index in 0..3 {
        let head = replicas.get(index).get("/v2/library/app/tags/list?n=2", "").await;
        let head = head.unwrap();
        assert!(
            head.header("link").is_some_and(|link| !link.contains("ns=")),
            "{}",
            head.text
        );
        let body: serde_json::Value = serde_json::from_str(&head.body().await.unwrap()).unwrap();
        assert_eq!(body["tags"], serde_json::json!(["1", "2"]));
    }
}

/// A replica that is added takes what it owns now from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_replica_takes_blobs_from_others() {
    let hub = Hub::start().await;
    let mut replicas = Replicas::planned(3, "", &[]);
    replicas.add(0, &hub).await;
    replicas.add(1, &hub).await;
    replicas.until_complete().await;
    let digests: Vec<_> = (0..12)
        .map(|seed| hub.push_blob("library/app", bytes(seed, 100 * 1024)))
        .collect();
    for digest in &digests {
        pull(&[replicas.get(0), replicas.get(1)], 1, &blob(digest), digest).await;
    }
    let images: Vec<_> = (0..6)
        .map(|number| {
            let repository = format!("library/app{number}");
            let (digest, _) = hub.push_image(&repository, "1", &[b"layer"]);
            (format!("/v2/{repository}/manifests/{digest}"), digest)
        })
        .collect();
    for (path, digest) in &images {
        pull(&[replicas.get(0)], 1, path, digest).await;
    }
    replicas.add(2, &hub).await;
    replicas.until_complete().await;
    for (path, digest) in &images {
        pull(&[replicas.get(2)], 1, path, digest).await;
    }
    assert_eq!(hub.count("GET manifests"), images.len());
    for digest in &digests {
        pull(&[replicas.get(2)], 1, &blob(digest), digest).await;
    }
    assert_eq!(hub.count("GET blobs"), digests.len());
}

/// Pushes a large blob that one of two replicas owns; its download stops after 6 MiB until the gate opens.
async fn push_gated(hub: &Hub, replicas: &Replicas, owner: usize) -> (Digest, Gate) {
    let ids = [
        hello_of(replicas, 0, "id").await,
        hello_of(replicas, 1, "id").await,
    ];
    let is_owned = |digest: &Digest| weight(&ids[owner], digest) > weight(&ids[1 - owner], digest);
    let mut candidates = (50..).map(|seed| bytes(seed, 16 * MIB));
    let data = candidates.find(|data| is_owned(&Digest::compute(Algorithm::Sha256, data)));
    let (digest, gate) = (hub.push_blob("library/app", data.unwrap()), Gate::shut());
    hub.once("GET blobs", Fault::Wait(6 * MIB, gate.clone()));
    (digest, gate)
}

/// A replica that becomes the owner reads the fill of the one before it: after it was added, the blob is downloaded once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_owner_reads_fill_of_the_previous_one() {
    let hub = Hub::start().await;
    let mut replicas = Replicas::start(2, &hub, "").await;
    let (digest, gate) = push_gated(&hub, &replicas, 1).await;
    let added = replicas.servers[1].take().unwrap();
    assert_eq!(added.end().await.code(), Some(0));
    until_peers(replicas.get(0), "unreachable", 1).await;
    let mut first = replicas.get(0).get(&blob(&digest), "").await.unwrap();
    first.first_byte().await.unwrap();
    replicas.add(1, &hub).await;
    replicas.until_complete().await;
    let mut second = replicas.get(1).get(&blob(&digest), "").await.unwrap();
    second.first_byte().await.unwrap();
    gate.open();
    for head in [first, second] {
        assert_eq!(head.digest().await.unwrap(), digest);
    }
    assert_eq!(hub.count("GET blobs"), 1);
}

/// A replica that becomes the owner as the one before it drains reads the fill of that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_owner_reads_fill_of_draining_one() {
    let hub = Hub::start().await;
    let mut replicas = Replicas::planned(2, "", &[]);
    replicas.environment[1] = vec![("REGISTRY_HTTP_LAMEDUCK".into(), "20s".into())];
    replicas.add(0, &hub).await;
    replicas.add(1, &hub).await;
    replicas.until_complete().await;
    let (digest, gate) = push_gated(&hub, &replicas, 1).await;
    let mut first = replicas.get(1).get(&blob(&digest), "").await.unwrap();
    first.first_byte().await.unwrap();
    let leaving = replicas.servers[1].take().unwrap();
    let pulled = async {
        until_peers(replicas.get(0), "draining", 1).await;
        let mut second = replicas.get(0).get(&blob(&digest), "").await.unwrap();
        second.first_byte().await.unwrap();
        gate.open();
        for head in [first, second] {
            assert_eq!(head.digest().await.unwrap(), digest);
        }
        assert_eq!(hub.count("GET blobs"), 1);
    };
    let ((), status) = tokio::join!(pulled, leaving.end());
    assert_eq!(status.code(), Some(0));
}

/// The peer port answers no request without the secret, whatever it asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_port_answers_members_alone() {
    let (hub, digest) = Hub::with_blob(b"content of the blob").await;
    let replicas = Replicas::start(1, &hub, "").await;
    let path = blob(&digest);
    pull(&[replicas.get(0)], 1, &path, &digest).await;
    let (secret, time) = (crate::fleet::SECRET, now());
    let port = &replicas.peer_ports[0];
    let asked = async |target: &str, authorization: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nhost: m\r\nconnection: close\r\n{authorization}\r\n");
        send(port, &request).await
    };
    for target in ["/peer/v1/hello", "/v2/", "/", "/nothing", "/v2/_catalog", &path] {
        let valid = authorization(secret, "GET", target, time);
        let short = &valid[..valid.len() - 1];
        for (case, header) in [
            ("none", String::new()),
            ("another scheme", "authorization: Basic eDp5\r\n".to_owned()),
            ("no tag", format!("authorization: Mirror {time}.\r\n")),
            ("a part of a tag", format!("authorization: {short}\r\n")),
            (
                "another secret",
                format!("authorization: {}\r\n", authorization("x", "GET", target, time)),
            ),
            (
                "another path",
                format!("authorization: {}\r\n", authorization(secret, "GET", "/x", time)),
            ),
            (
                "another method",
                format!(
                    "authorization: {}\r\n",
                    authorization(secret, "HEAD", target, time)
                ),
            ),
            (
                "too old",
                format!(
                    "authorization: {}\r\n",
                    authorization(secret, "GET", target, time - 62)
                ),
            ),
            (
                "too early",
                format!(
                    "authorization: {}\r\n",
                    authorization(secret, "GET", target, time + 120)
                ),
            ),
        ] {
            let head = asked(target, &header).await;
            assert_eq!(head.status, 401, "{target}, {case}: {}", head.text);
            let body = head.body().await.unwrap();
            assert!(
                !body.contains("content") && !body.contains(secret),
                "{case}: {body}"
            );
        }
    }
    let skewed = authorization(secret, "GET", "/peer/v1/hello", time - 50);
    let head = asked("/peer/v1/hello", &format!("authorization: {skewed}\r\n")).await;
    assert_eq!(head.status, 200, "{}", head.text);
    let hello: serde_json::Value = serde_json::from_str(&head.body().await.unwrap()).unwrap();
    assert_eq!(
        (hello["protocol"].as_u64(), hello["state"].as_str()),
        (Some(1), Some("serving"))
    );
}

/// The secret rotates while the replicas run: first both keys, then the new one alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secret_rotates_without_restart() {
    let hub = Hub::start().await;
    let replicas = Replicas::start(2, &hub, "").await;
    let (old, new) = (crate::fleet::SECRET, "another-secret-of-these-replicas");
    let is_accepted = async |secret: &str| {
        let value = authorization(secret, "GET", "/peer/v1/hello", now());
        let request = format!(
            "GET /peer/v1/hello HTTP/1.1\r\nhost: m\r\nconnection: close\r\nauthorization: {value}\r\n\r\n"
        );
        let mut accepted = 0;
        for port in &replicas.peer_ports {
            accepted += usize::from(send(port, &request).await.status == 200);
        }
        accepted
    };
    for (text, expected) in [(format!("{new}\n{old}\n"), (2, 2)), (format!("{new}\n"), (2, 0))] {
        std::fs::write(&replicas.secret, text).unwrap();
        let start = std::time::Instant::now();
        while (is_accepted(new).await, is_accepted(old).await) != expected {
            assert!(start.elapsed() < LIMIT, "the secret was not read again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        replicas.until_complete().await;
    }
    let digest = hub.push_blob("library/app", b"after the rotation");
    let servers = [replicas.get(0), replicas.get(1)];
    pull(&servers, 1, &blob(&digest), &digest).await;
    assert_eq!(hub.count("GET blobs"), 1);
    assert_eq!(
        servers[0].said(new) + servers[1].said(old),
        0,
        "a secret is in the log"
    );
    let status = status(servers[0]).await.to_string();
    assert!(!status.contains(new) && !status.contains(old), "{status}");
}

/// A name without addresses, and an address where nothing listens, leave the server to act alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_members_acts_alone() {
    let hub = Hub::start().await;
    let strangers = ["nothing.invalid:5002".to_owned(), "127.0.0.1:9".to_owned()];
    let mut replicas = Replicas::planned(1, "", &strangers);
    replicas.add(0, &hub).await;
    let digest = hub.push_blob("library/app", bytes(3, MIB));
    pull(&[replicas.get(0)], 4, &blob(&digest), &digest).await;
    assert_eq!(hub.count("GET blobs"), 1);
    until_peers(replicas.get(0), "unreachable", 1).await;
}

/// A server that drains is not chosen by the others, and ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_replica_ends_and_others_serve() {
    let hub = Hub::start().await;
    let mut replicas = Replicas::start(2, &hub, "").await;
    let leaving = replicas.servers[0].take().unwrap();
    assert_eq!(leaving.end().await.code(), Some(0));
    for seed in 0..6 {
        let digest = hub.push_blob("library/app", bytes(seed, 64 * 1024));
        pull(&[replicas.get(1)], 2, &blob(&digest), &digest).await;
    }
    assert_eq!(hub.count("GET blobs"), 6);
}

/// A body that is cut ends with FIN, after which containerd resumes; it does not after RST.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_answer_ends_without_reset() {
    let (hub, digest) = Hub::with_blob(bytes(5, 4 * MIB)).await;
    hub.once("GET blobs", Fault::Cut(2 * MIB));
    hub.always("GET blobs", Fault::status(500));
    let replicas = Replicas::start(1, &hub, "").await;
    let mut stream = TcpStream::connect(&replicas.get(0).address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nhost: m\r\n\r\n", blob(&digest));
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    assert!(ended.unwrap().is_ok(), "the connection was reset");
    assert!(answer.len() < 4 * MIB);
    until("the fill's end", || hub.count("GET blobs") >= 2).await;
}
