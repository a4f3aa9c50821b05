//! Blobs in the cache that are large enough for the kernel to send them by itself.

use std::fs;

use mirror::digest::Digest;
use reqwest::{Client, RequestBuilder};
use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hub::Hub;
use crate::served::{Mirror, header};
use crate::{LIMIT, pattern};

const MIB: usize = 1024 * 1024;

async fn cached(data: &[u8]) -> (Hub, Mirror, Digest, String) {
    let (hub, digest) = Hub::with_blob(data).await;
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/blobs/{digest}");
    assert_eq!(mirror.fetch(&path).await.0, 200);
    mirror.settled().await;
    (hub, mirror, digest, path)
}

async fn got(request: RequestBuilder) -> Vec<u8> {
    let answer = request.send().await.unwrap();
    assert_eq!(header(&answer, "x-cache"), "HIT");
    answer.bytes().await.unwrap().to_vec()
}

/// A large hit arrives byte for byte, whole and in parts.
#[test_case(Client::builder(); "HTTP/1")]
#[test_case(Client::builder().http2_prior_knowledge(); "HTTP/2")]
#[tokio::test]
async fn large_hit_is_byte_identical_with_ranges(client: reqwest::ClientBuilder) {
    // Neither whole pages nor whole pieces.
    let data = pattern(5 * MIB + 70_001);
    let (_hub, mirror, _, path) = cached(&data).await;
    let client = client.no_proxy().timeout(LIMIT).build().unwrap();
    let ask = || client.get(format!("{}{path}", mirror.url));
    assert!(got(ask()).await == data, "other bytes");
    let end = data.len();
    for range in [
        1..MIB,
        4095..end - 1,
        3 * MIB + 1..end,
        end - MIB - 64 * 1024..end,
    ] {
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let part = got(ask().header("range", &header)).await;
        assert!(part == data[range], "other bytes of {header}");
    }
    let several = got(ask().header("range", "bytes=7-2000000,5-9")).await;
    let found = several.windows(1_999_994).any(|part| part == &data[7..2_000_001]);
    assert!(found, "other bytes in several parts");
}

/// Pipelined requests are answered in order, byte for byte.
#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let data = pattern(2 * MIB + 1);
    let (_hub, mirror, _, path) = cached(&data).await;
    let mut stream = TcpStream::connect(mirror.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let ask = |range: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: m\r\n{range}{more}\r\n");
    let both = ask("", "") + &ask("range: bytes=3-1500000\r\n", "connection: close\r\n");
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).await.unwrap();
    let body = |from: usize| {
        from + answers[from..]
            .windows(4)
            .position(|part| part == b"\r\n\r\n")
            .unwrap()
            + 4
    };
    let first = body(0);
    assert!(answers[first..first + data.len()] == data, "other bytes at first");
    let second = body(first + data.len());
    assert!(answers[second..] == data[3..1_500_001], "other bytes then");
}

#[tokio::test]
async fn file_shrinking_mid_response_truncates_then_heals() {
    let data = pattern(48 * MIB);
    let (_hub, mirror, digest, path) = cached(&data).await;
    let mut stream = TcpStream::connect(mirror.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; MIB];
    stream.read_exact(&mut answer).await.unwrap();
    let hex = digest.hex();
    let file = mirror.root().join(format!(
        "docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(40_000_000).unwrap();
    // An end and a reset of the connection are equally good.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.len() < 40_001_000, "{} bytes", answer.len());
    assert_eq!(mirror.fetch(&path).await, (200, Some(data.into())));
}
