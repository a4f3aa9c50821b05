//! Logins while other clients guess passwords.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::hub::Hub;
use crate::server::{Head, Server};

/// The address of a client that guesses.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const INNOCENT: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Starts a server whose users have the password "right" and these bcrypt costs.
async fn server_with_users(home: &tempfile::TempDir, hub: &Hub, users: &[(&str, u32)]) -> Server {
    let line = |(name, cost): &(&str, u32)| format!("{name}:{}\n", bcrypt::hash("right", *cost).unwrap());
    let path = home.path().join("users");
    std::fs::write(&path, users.iter().map(line).collect::<String>()).unwrap();
    let environment = [
        ("REGISTRY_AUTH_HTPASSWD_REALM", "mirror"),
        ("REGISTRY_AUTH_HTPASSWD_PATH", path.to_str().unwrap()),
    ];
    Server::start_in(&home.path().join("cache"), hub, "", &environment).await
}

/// Connects from an address, and sends a request with a login.
async fn ask(server: &Server, from: Ipv4Addr, user: &str, password: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut stream = socket.connect(server.address.parse().unwrap()).await.unwrap();
    let login = STANDARD.encode(format!("{user}:{password}"));
    let request =
        format!("GET /v2/ HTTP/1.1\r\nhost: m\r\nauthorization: Basic {login}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn time_to_log_in(server: &Server, user: &str) -> Duration {
    let begin = Instant::now();
    let head = Head::read(ask(server, INNOCENT, user, "right").await)
        .await
        .unwrap();
    assert_eq!(head.status, 200, "{}", head.text);
    begin.elapsed()
}

/// A client that guesses passwords is answered 429 beyond its bound; a right login from another address waits for a
/// check or two, not for all guesses, whether the client that guesses waits for its answers or closes its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_login_waits_for_no_flood_of_wrong_ones() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let users = [("ann", 7), ("bob", 7), ("eve", 7)];
    let server = server_with_users(&home, &hub, &users).await;
    let alone = time_to_log_in(&server, "ann").await;
    for number in 0..100 {
        let stream = ask(&server, ATTACKER, "eve", &format!("closed {number}")).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        drop(stream);
    }
    let mut guesses = Vec::new();
    for number in 0..100 {
        guesses.push(ask(&server, ATTACKER, "eve", &format!("held {number}")).await);
    }
    let under_attack = time_to_log_in(&server, "bob").await;
    assert!(
        under_attack < 6 * alone + Duration::from_secs(1),
        "{under_attack:?} instead of {alone:?}"
    );
    let mut busy = 0;
    for guess in guesses {
        let head = Head::read(guess).await.unwrap();
        assert!([401, 429].contains(&head.status), "{}", head.text);
        if head.status == 429 {
            assert!(head.header("retry-after").is_some(), "{}", head.text);
            busy += 1;
        }
    }
    assert!(busy > 50, "{busy} of 100 guesses were refused a check");
}

/// A hash cannot be interrupted, and does not keep the process from ending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_the_server_during_a_hash() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    // The highest cost takes a second, and many times that in a debug build.
    let server = server_with_users(&home, &hub, &[("ann", 14)]).await;
    drop(ask(&server, INNOCENT, "ann", "wrong").await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begin = Instant::now();
    assert_eq!(server.end().await.code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
}
