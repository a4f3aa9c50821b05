//! Clients that take their time: held where they do no harm, dropped where they hold up others.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use test_case::test_case;

use crate::LIMIT;
use crate::hub::Hub;
use crate::server::Server;

/// The largest memory of the server with these connections, in bytes, in every build.
const MEMORY: u64 = 200 << 20;

/// As many files as this machine allows; the server, started afterwards, may open as many.
pub(crate) fn raise_file_limit(wanted: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(wanted);
    let raised = Rlimit {
        current: Some(most),
        maximum: limit.maximum,
    };
    most >= wanted && setrlimit(Resource::Nofile, raised).is_ok()
}

/// The lock of tests that open many files: the limit is that of the process.
pub(crate) static MANY_FILES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Holds so many connections after this request on each of them.
async fn idle(count: u64, request: &[u8]) {
    let _alone = MANY_FILES.lock().await;
    // The server leaves a quarter of its files to other things than connections.
    if !raise_file_limit(count * 4 / 3 + 500) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "too few open files");
        eprintln!("skipped: this machine allows fewer than {count} open files");
        return;
    }
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let environment = [("REGISTRY_HTTP_MAXCONNECTIONS", "12000")];
    let server = Server::start_in(&home.path().join("cache"), &hub, "", &environment).await;
    let mut open = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        open.push(stream);
    }
    if !request.is_empty() {
        for stream in &mut open {
            let read = tokio::time::timeout(LIMIT, stream.read(&mut [0; 1024])).await;
            assert!(read.unwrap().unwrap() > 16, "an answer on each of them");
        }
    }
    let memory = server.memory();
    // Clients that ask nothing are disconnected soon: a slow machine has fewer of them at once.
    let held = open.iter().filter(|stream| says_nothing(stream)).count() as u64;
    eprintln!("{held} idle connections, of {count}: {memory} bytes");
    assert!(memory < MEMORY, "{memory} bytes for {held} idle connections");
    if !request.is_empty() {
        assert_eq!(held, count, "held at once");
    }
    assert_eq!(server.get("/v2/", "").await.unwrap().status, 200);
    assert_eq!(server.end().await.code(), Some(0));
    for mut stream in open.into_iter().take(100) {
        let read = tokio::time::timeout(LIMIT, stream.read(&mut [0; 1])).await;
        assert!(!matches!(read.unwrap(), Ok(1..)), "more than an end");
    }
}

/// Neither bytes nor the end.
fn says_nothing(stream: &TcpStream) -> bool {
    let read = stream.try_read(&mut [0; 1]);
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Ten thousand idle connections use little memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_use_little_memory() {
    idle(10_000, b"GET /v2/ HTTP/1.1\r\nhost: m\r\n\r\n").await;
}

/// Ten thousand connections without a request use little memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_silent_connections_use_little_memory() {
    idle(10_000, b"").await;
}

/// A connection on which one request was answered.
async fn answered(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    assert!(asks(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream
}

/// Sends a request, and returns the first bytes of the answer; empty once the server has ended the connection.
pub(crate) async fn asks(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 1024];
    let _ = stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: m\r\n\r\n").await;
    let read = tokio::time::timeout(LIMIT, stream.read(&mut answer)).await;
    answer.truncate(read.unwrap().unwrap_or(0));
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connection_outlives_unfinished_header() {
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let (mut idle, mut slow, mut pipelined) = (
        answered(&server).await,
        answered(&server).await,
        answered(&server).await,
    );
    slow.write_all(b"GET /v2/ HTTP/1.1\r\nhost: m\r\n").await.unwrap();
    // A whole request and a half at once.
    let half = asks(&mut pipelined).await;
    assert!(half.starts_with("HTTP/1.1 200"), "{half}");
    pipelined
        .write_all(b"GET /v2/ HTTP/1.1\r\nhost: m\r\n\r\nGET /v2/ HTTP/1.1\r\nho")
        .await
        .unwrap();
    for stream in [&mut slow, &mut pipelined] {
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "half a header is waited for");
    }
    assert!(asks(&mut idle).await.starts_with("HTTP/1.1 200"));
    let mut half = answered(&server).await;
    half.write_all(b"GET /v2/ HT").await.unwrap();
    assert_eq!(server.end().await.code(), Some(0));
    let ended = half.read(&mut [0; 1]).await;
    assert!(!matches!(ended, Ok(1..)), "an answer to half a header");
    assert_eq!(asks(&mut idle).await, "", "the server ended");
}

/// A client that sends no header, or a header drop by drop, is disconnected.
#[test_case(|server| &server.address; "the registry's port")]
#[test_case(|server| &server.admin; "the admin port")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_or_slow_header_is_disconnected(port: fn(&Server) -> &String) {
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let silent = TcpStream::connect(port(&server)).await.unwrap();
    let mut slow = TcpStream::connect(port(&server)).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: m\r\n")
        .await
        .unwrap();
    let (mut hears, mut says) = slow.into_split();
    let drip = async {
        // One more byte a second would keep a time-out between bytes from ever ending.
        while says.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::future::pending::<()>().await;
    };
    let dropped = async {
        let mut silent = silent;
        let (mut of_silent, mut of_slow) = (Vec::new(), Vec::new());
        // Either way of ending a connection will do.
        let _ = silent.read_to_end(&mut of_silent).await;
        let _ = hears.read_to_end(&mut of_slow).await;
        (of_silent, of_slow)
    };
    let ends = tokio::select! {
        dropped = tokio::time::timeout(LIMIT, dropped) => dropped.ok(),
        () = drip => None,
    };
    assert!(ends.is_some(), "both are dropped");
    let (of_silent, of_slow) = ends.unwrap_or_default();
    assert_eq!(of_silent, b"", "nothing was asked");
    let reported = String::from_utf8_lossy(&of_slow);
    assert!(
        reported.is_empty() || reported.starts_with("HTTP/1.1 408"),
        "{reported}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_log_delays_neither_request_nor_stop() {
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let (server, _unread) = Server::start_unread(&home.path().join("cache"), &hub).await;
    let requests = async {
        // Several times what a pipe holds.
        for _ in 0..2_000 {
            assert_eq!(server.get("/v2/", "").await.unwrap().status, 200);
        }
    };
    let answered = tokio::time::timeout(LIMIT, requests).await;
    assert!(answered.is_ok(), "an answer waits for a reader of the log");
    assert_eq!(server.end().await.code(), Some(0));
}
