//! Answers whose headers break the grammar of RFC 9112, or are more than most servers send: what curl and Go read is read.

use std::fmt::Write as _;
use std::time::Duration;

use mirror::clock::Clock;
use mirror::upstream::{Error, ManifestAnswer, Upstream};
use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::hub::Hub;
use crate::{impatient, name, tag};

const BODY: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
const KIND: &str = "application/vnd.oci.image.index.v1+json";

/// Pulls a manifest from a server that answers each connection's first request with these bytes.
async fn pull(head: &str, body: &str) -> Result<ManifestAnswer, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!("{head}{body}");
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let hub = Hub::start().await;
    let mut config = hub.config();
    config.remote = format!("http://{address}").parse().unwrap();
    let upstream = Upstream::new(&config, Clock::system()).unwrap();
    let got = upstream.manifest(&name("library/app"), &tag("v1")).await;
    server.abort();
    got
}

/// Returns a head with lines between the status and the end; `LEN` is replaced by the length of the body.
fn head(lines: &str) -> String {
    let length = BODY.len().to_string();
    format!("HTTP/1.1 200 OK\r\n{}\r\n", lines.replace("LEN", &length))
}

/// An odd header is read as clients read it.
#[test_case("Content-Length: LEN\r\nContent-Type: application/vnd.oci\r\n .image.index.v1+json; a=b\r\n", "application/vnd.oci .image.index.v1+json"; "folded inside its value")]
#[test_case("X-Folded: a\r\n b\r\n\tc\r\nContent-Length: LEN\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n", KIND; "folded twice, with a space and with a tab")]
#[test_case("Content-Type:\r\n application/vnd.oci.image.index.v1+json\r\nContent-Length: LEN\r\n", KIND; "folded before its value")]
#[test_case("Content-Length : LEN\r\nContent-Type\t: application/vnd.oci.image.index.v1+json\r\n", KIND; "space and tab before the colon")]
#[test_case("content-length:LEN\r\ncontent-type:application/vnd.oci.image.index.v1+json\r\n", KIND; "lower case without space")]
#[test_case("Content-Length: LEN\nContent-Type: application/vnd.oci.image.index.v1+json\n", KIND; "bare line feeds")]
#[test_case("Content-Length: LEN\r\nX Y: z\r\nno header\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n", KIND; "lines that are no header")]
#[test_case("Content-Length: LEN\r\nServer: Z\u{fc}rich\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n", KIND; "a value that is not ASCII")]
#[test_case("Content-Length: LEN\r\nContent-Length: LEN\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n", KIND; "the same length twice")]
#[tokio::test]
async fn odd_header_is_read_as_clients_do(lines: &str, kind: &str) {
    let got = pull(&head(lines), BODY).await.unwrap();
    assert_eq!(got.content.bytes(), BODY.as_bytes());
    assert_eq!(got.media_type.as_deref(), Some(kind));
}

/// An odd status line is read as clients read it.
#[test_case("HTTP/1.1 200\r\n"; "no reason")]
#[test_case("HTTP/1.1 200 \r\n"; "an empty reason")]
#[test_case("HTTP/1.1 200 Tr\u{e8}s bien\r\n"; "a reason that is not ASCII")]
#[test_case("HTTP/1.0 200 OK\r\n"; "an old version")]
#[test_case("\r\nHTTP/1.1 200 OK\r\n"; "an empty line before it")]
#[test_case("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n"; "an interim answer before it")]
#[tokio::test]
async fn odd_status_line_is_read_as_clients_do(line: &str) {
    let head = format!("{line}Content-Length: {}\r\n\r\n", BODY.len());
    let got = pull(&head, BODY).await.unwrap();
    assert_eq!(got.content.bytes(), BODY.as_bytes());
}

/// Ten times the fields of any registry are read, and curl's limit of 300 KiB.
#[test_case(150, 10; "a hundred and fifty")]
#[test_case(500, 40; "five hundred")]
#[test_case(1, 100 * 1024; "one of a hundred KiB")]
#[test_case(30, 9_900; "three hundred KiB in all")]
#[tokio::test]
async fn many_and_long_headers_are_read(count: usize, length: usize) {
    let mut lines = String::new();
    for index in 0..count {
        write!(lines, "X-Filler-{index}: {}\r\n", "x".repeat(length)).unwrap();
    }
    lines.push_str("Content-Length: LEN\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n");
    let got = pull(&head(&lines), BODY).await.unwrap();
    assert_eq!(got.media_type.as_deref(), Some(KIND));
}

/// Of several transfer codings the HTTP client reads only the last one.
#[test_case("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"; "two lines")]
#[test_case("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"; "chunked twice")]
#[test_case("Transfer-Encoding: gzip, chunked\r\n"; "two in a line")]
#[test_case("Transfer-Encoding: identity\r\n"; "identity")]
#[test_case("Transfer-Encoding: xchunked\r\nContent-Length: LEN\r\n"; "unknown, and a length")]
#[test_case("Transfer-Encoding: chunked;a=b\r\n"; "with a parameter")]
#[test_case("Transfer-Encoding:\r\n"; "empty")]
#[tokio::test]
async fn other_transfer_coding_than_chunked_is_refused(lines: &str) {
    let chunks = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    let error = pull(&head(lines), &chunks).await.unwrap_err();
    assert!(error.to_string().contains("Transfer-Encoding"), "{error:?}");
}

#[test_case("Transfer-Encoding: chunked\r\n"; "chunked")]
#[test_case("transfer-encoding:  Chunked \r\n"; "in another case with space")]
#[tokio::test]
async fn single_chunked_is_read(lines: &str) {
    let chunks = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    let got = pull(&head(lines), &chunks).await.unwrap();
    assert_eq!(got.content.bytes(), BODY.as_bytes());
}

/// The server gives up headers without an end, and keeps none of them.
#[test_case(6_000, 10; "too many")]
#[test_case(1, 2_000_000; "too long")]
#[tokio::test]
async fn endless_headers_are_given_up(count: usize, length: usize) {
    let lines = format!("X: {}\r\n", "x".repeat(length)).repeat(count);
    let error = pull(&head(&lines), BODY).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

/// An upstream that sends informational responses (RFC 9110, 15.2) and no final one is given up after the time of a
/// header, and its connections end.
#[test_case("100 Continue"; "continue")]
#[test_case("103 Early Hints\r\nLink: </x>; rel=preload"; "early hints")]
#[tokio::test]
async fn endless_informational_responses_are_given_up(status: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let responses = format!("HTTP/1.1 {status}\r\n\r\n").repeat(100);
    let (ended, mut ends) = tokio::sync::mpsc::channel(100);
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (responses, ended) = (responses.clone(), ended.clone());
            tokio::spawn(async move {
                while stream.write_all(responses.as_bytes()).await.is_ok() {
                    tokio::task::yield_now().await;
                }
                ended.send(()).await
            });
        }
    });
    let hub = Hub::start().await;
    let mut config = hub.config();
    config.remote = format!("http://{address}").parse().unwrap();
    let upstream = Upstream::with_options(&config, impatient(Clock::system())).unwrap();
    let error = upstream.manifest(&name("library/app"), &tag("v1")).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let ends = tokio::time::timeout(Duration::from_mins(1), ends.recv()).await;
    assert!(ends.unwrap().is_some(), "the connection ends");
    server.abort();
}
