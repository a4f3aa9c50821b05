//! Clients that take all connections there are, in a process that may open few files.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::crowd::{MANY_FILES, asks, raise_file_limit};
use crate::hub::Hub;
use crate::server::{Head, Server};

/// The address of a client that opens connections.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The files that the server may open.
const FILES: u32 = 256;
/// The connections of the attacker.
const CONNECTIONS: usize = 2_000;

/// Connects from the attacker's address, and sends this.
async fn attack(address: &str, bytes: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((ATTACKER, 0))).unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    // A connection that the server closed at once is one of the attacker's losses.
    let _ = stream.write_all(bytes).await;
    stream
}

/// Returns the status of `GET /livez` on the admin port.
async fn health(server: &Server) -> u16 {
    let mut stream = TcpStream::connect(&server.admin).await.unwrap();
    let request = b"GET /livez HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    Head::read(stream).await.unwrap().status
}

/// Health, hits and misses continue under thousands of idle connections, silent ones and answered ones, also on the
/// admin port; the innocent client's own idle connection stays open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_take_no_descriptors_from_others() {
    let _alone = MANY_FILES.lock().await;
    if !raise_file_limit(CONNECTIONS as u64 * 2) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "too few open files");
        eprintln!("skipped: this machine allows too few open files");
        return;
    }
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let cached = hub.push_blob("library/app", b"cached");
    let server = Server::start_with_limit(&format!("-n {FILES}"), &home.path().join("cache"), &hub).await;
    let hit = format!("/v2/library/app/blobs/{cached}");
    assert_eq!(server.get(&hit, "").await.unwrap().status, 200);
    let request = format!("GET {hit} HTTP/1.1\r\nhost: m\r\n\r\n");
    let mut own = TcpStream::connect(&server.address).await.unwrap();
    assert!(asks(&mut own).await.starts_with("HTTP/1.1 200"));
    let mut taken = Vec::new();
    for number in 0..CONNECTIONS {
        let (address, bytes): (_, &[u8]) = match number % 4 {
            0 => (&server.address, b""),
            1 => (&server.address, b"GET /v2/ HT"),
            2 => (&server.address, request.as_bytes()),
            _ => (&server.admin, b""),
        };
        taken.push(attack(address, bytes).await);
        if number % 100 == 0 {
            let missing = hub.push_blob("library/app", format!("missing {number}").as_bytes());
            let miss = format!("/v2/library/app/blobs/{missing}");
            assert_eq!(server.get(&hit, "").await.unwrap().status, 200, "hit {number}");
            assert_eq!(server.get(&miss, "").await.unwrap().status, 200, "miss {number}");
            assert_eq!(health(&server).await, 200, "health {number}");
        }
    }
    assert_eq!(server.said("could not be accepted"), 0);
    assert!(asks(&mut own).await.starts_with("HTTP/1.1 200"));
    assert_eq!(server.end().await.code(), Some(0));
}
