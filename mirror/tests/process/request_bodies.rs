//! Requests with bodies, which no endpoint reads: the client gets the response while it still sends.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Output, Stdio};

use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::http2;
use crate::hub::Hub;
use crate::server::Server;
use crate::{MIB, bytes};

const UPLOAD: &str = "/v2/library/app/blobs/uploads/1";
const ATTEMPTS: usize = 4;
/// The bytes that a client may send before the server opens the window.
const WINDOW: usize = 65_535;
/// The kind of the frames, and the flag of the last one of a stream (RFC 9113, 6).
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;

async fn server() -> (Server, tempfile::TempDir) {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    (server, home)
}

/// The server takes more of the body of a refused upload, so that a client of HTTP/2 reads the response before the reset
/// of its stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_http2_upload_is_taken_past_its_response() {
    let (server, _home) = server().await;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    let request = [
        http2::start(65_535),
        http2::put(UPLOAD, 50 * MIB),
        http2::data(WINDOW),
    ];
    stream.write_all(&request.concat()).await.unwrap();
    let mut frames = HashSet::new();
    let of_response = (DATA, END_STREAM, 1);
    // More of the stream may be sent.
    let of_window = (WINDOW_UPDATE, 0, 1);
    while !(frames.contains(&of_response) && frames.contains(&of_window)) {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.unwrap();
        let [high, middle, low, kind, flags, .., number] = header;
        assert_ne!(kind, RST_STREAM, "{frames:?}");
        let length = u32::from_be_bytes([0, high, middle, low]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        frames.insert((kind, flags, number));
    }
}

/// A client of HTTP/1.1 that sends the body of a refused upload after it got the response can use its connection again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_http1_upload_is_taken_past_its_response() {
    let (server, _home) = server().await;
    // The second of the server may end before this client runs again.
    for _ in 0..ATTEMPTS {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        let request = format!("PUT {UPLOAD} HTTP/1.1\r\nhost: m\r\ncontent-length: 60000\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 405 "));
        let next = b"GET /v2/ HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n";
        let rest = [&bytes(1, 60_000)[..], next].concat();
        let mut answer = String::new();
        let is_sent = stream.write_all(&rest).await.is_ok();
        if is_sent && stream.read_to_string(&mut answer).await.is_ok() && !answer.is_empty() {
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            return;
        }
    }
    panic!("the connection ended {ATTEMPTS} times");
}

/// A client that waits for 100 (Continue) gets the response and no invitation, and the connection ends: what it sends next
/// may be another request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_upload_with_expectation_ends_its_connection() {
    let (server, _home) = server().await;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    let request =
        format!("PUT {UPLOAD} HTTP/1.1\r\nhost: m\r\nexpect: 100-continue\r\ncontent-length: 60000\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 405 ") && answer.ends_with('}'),
        "{answer}"
    );
}

/// curl gets 405 for an upload of 50 MB.
#[test_case(&["--http2-prior-knowledge"]; "over http2")]
#[test_case(&["--http1.1"]; "over http1 with an expectation")]
#[test_case(&["--http1.1", "--header", "Expect:"]; "over http1")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_405_for_a_large_upload(options: &[&str]) {
    let (server, home) = server().await;
    let file = home.path().join("layer");
    std::fs::write(&file, bytes(1, 50 * MIB)).unwrap();
    let mut said = Vec::new();
    // The second of the server may end before curl runs again.
    for _ in 0..ATTEMPTS {
        let curl = upload(&file, options, &format!("http://{}{UPLOAD}", server.address)).await;
        if curl.stdout == b"405" {
            return;
        }
        said.push(String::from_utf8_lossy(&curl.stderr).into_owned());
    }
    panic!("{said:?}");
}

async fn upload(file: &Path, options: &[&str], url: &str) -> Output {
    Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--output",
            "/dev/null",
        ])
        .args(["--write-out", "%{http_code}", "--upload-file"])
        .arg(file)
        .args(options)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap()
}
