//! An upstream that never answers takes no replica away from other upstreams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::bytes;
use crate::fleet::{Replicas, metric, until_peers};
use crate::hub::{Fault, Hub};

/// The innocent blobs, about half of which the other replica owns.
const BLOBS: u64 = 16;

/// Forwards the connections to an address, and counts the hellos among their requests.
async fn forward(listener: TcpListener, to: String, hellos: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        let (to, hellos) = (to.clone(), Arc::clone(&hellos));
        tokio::spawn(async move {
            let server = TcpStream::connect(to).await?;
            let (mut requests, mut back) = client.into_split();
            let (mut answers, mut out) = server.into_split();
            tokio::spawn(async move { copy(&mut answers, &mut back).await });
            let mut buffer = vec![0; 1 << 16];
            loop {
                let length = requests.read(&mut buffer).await?;
                if length == 0 {
                    return out.shutdown().await;
                }
                if buffer.starts_with(b"GET /peer/v1/hello") {
                    hellos.fetch_add(1, Ordering::SeqCst);
                }
                out.write_all(&buffer[..length]).await?;
            }
        });
    }
}

/// Sends a request from an address of its own, and waits for an answer.
async fn ask(from: SocketAddr, to: SocketAddr, path: String) -> std::io::Result<usize> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(from)?;
    let mut stream = socket.connect(to).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: m\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.read(&mut [0; 100]).await
}

/// More requests than a replica takes of another one wait for an upstream that never answers: the other one stays a
/// member, and shares the downloads of another upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_upstream_costs_no_peer() {
    let (good, bad) = (Hub::start().await, Hub::start().await);
    bad.always("* /v2/", Fault::Hang);
    let upstreams = format!("upstreams: [{{host: bad.test, remoteurl: '{}'}}]", bad.url());
    let mut replicas = Replicas::planned(2, &upstreams, &[]);
    let (listener, hellos) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::default());
    let between = listener.local_addr().unwrap().to_string();
    tokio::spawn(forward(
        listener,
        replicas.peer_ports[1].clone(),
        Arc::clone(&hellos),
    ));
    replicas.views[0] = vec![replicas.peer_ports[0].clone(), between];
    for index in 0..2 {
        replicas.add(index, &good).await;
    }
    replicas.until_complete().await;
    let server = replicas.get(0);
    let mut waiting = JoinSet::new();
    for number in 0..300_u32 {
        let from = format!("127.0.3.{}:0", 1 + number / 40).parse().unwrap();
        let path = format!("/v2/bad.test/r{number}/manifests/1");
        waiting.spawn(ask(from, server.address.parse().unwrap(), path));
    }
    crate::until("requests at the upstream", || bad.count("GET manifests") >= 80).await;
    for seed in 0..BLOBS {
        let digest = good.push_blob("library/app", bytes(seed, 10_000));
        for index in [0, 1] {
            let path = format!("/v2/library/app/blobs/{digest}");
            let head = replicas.get(index).get(&path, "").await.unwrap();
            assert_eq!(head.digest().await.unwrap(), digest);
        }
    }
    let seen = hellos.load(Ordering::SeqCst);
    crate::until("three hellos", || hellos.load(Ordering::SeqCst) >= seen + 3).await;
    // A busy machine may delay a hello; without a share, each blob costs two downloads.
    let downloads = good.count("GET blobs");
    assert!(
        downloads <= usize::try_from(BLOBS).unwrap() * 3 / 2,
        "{downloads} downloads"
    );
    let shared = "registry_mirror_served_bytes_total{source=\"peer\"}";
    assert!(
        metric(server, shared).await > 0.0,
        "no blob came from the other replica"
    );
    until_peers(server, "serving", 1).await;
}
