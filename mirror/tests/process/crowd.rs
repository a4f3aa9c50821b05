//! Clients that take their time: held where they do no harm, dropped where they hold up others.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::LIMIT;
use crate::hub::Hub;
use crate::server::Server;

/// What they may take: futures of a build for debugging are larger than those that users run.
const MEMORY: u64 = if cfg!(debug_assertions) {
    300 << 20
} else {
    200 << 20
};

/// As many files as this machine allows; the server, started afterwards, may open as many.
fn raise_file_limit(wanted: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Beyond the maximum only root may go.
    let most = limit.maximum.map_or(wanted, |maximum| maximum.max(wanted));
    let raised = Rlimit {
        current: Some(most),
        maximum: limit.maximum.map(|_| most),
    };
    setrlimit(Resource::Nofile, raised).is_ok()
}

async fn idle(count: u64) {
    if !raise_file_limit(count + 500) {
        let why = format!("this machine allows fewer than {count} open files (ulimit -Hn)");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        eprintln!("skipped: {why}");
        return;
    }
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let mut open = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream
            .write_all(b"GET /v2/ HTTP/1.1\r\nhost: m\r\n\r\n")
            .await
            .unwrap();
        open.push(stream);
    }
    for stream in &mut open {
        let read = tokio::time::timeout(LIMIT, stream.read(&mut [0; 16])).await;
        assert_eq!(read.unwrap().unwrap(), 16, "an answer on each of them");
    }
    let memory = server.memory();
    eprintln!("{count} idle connections: {memory} bytes");
    assert!(memory < MEMORY, "{memory} bytes for {count} idle connections");
    assert_eq!(server.get("/v2/", "").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_take_little_memory() {
    idle(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_no_header_or_a_header_by_drops_is_dropped() {
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    let silent = TcpStream::connect(&server.address).await.unwrap();
    let mut slow = TcpStream::connect(&server.address).await.unwrap();
    slow.write_all(b"GET /v2/ HTTP/1.1\r\nhost: m\r\n").await.unwrap();
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
    let (of_silent, of_slow) = tokio::select! {
        dropped = tokio::time::timeout(LIMIT, dropped) => dropped.expect("both are dropped"),
        () = drip => unreachable!(),
    };
    assert_eq!(of_silent, b"", "nothing was asked");
    let told = String::from_utf8_lossy(&of_slow);
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 408"), "{told}");
}
