//! Clients that speak TLS to a port of plain HTTP, and the reverse: each gets an answer in plain HTTP with the action.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::protocols::PREFACE;
use super::socket::Stream;

/// The content type of a TLS handshake record (RFC 8446, 5.1), with which a client begins.
const TLS_HANDSHAKE: u8 = 0x16;
/// The most bytes of the client that are read before the connection is closed: unread ones would destroy the answer.
const MAX_DRAINED: u64 = 64 * 1024;
/// The longest time for which they are read.
const DRAIN: Duration = Duration::from_secs(2);

/// The first bytes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionKind {
    /// Those of an HTTP/2 preface, or its beginning.
    MayBeHttp2,
    /// Those of an HTTP/1 request.
    Http1,
    /// Those of a TLS handshake.
    Tls,
    /// Any others, or unknown ones.
    Other,
}

/// A protocol that a port does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum ConnectionMismatch {
    /// TLS at a port of plain HTTP.
    #[error(
        "the client speaks TLS, and this port serves plain HTTP: use http://, or configure http.tls of the mirror"
    )]
    TlsToHttp,
    /// Plain HTTP at a port with TLS.
    #[error("the client speaks plain HTTP, and this port serves TLS: use https://")]
    HttpToTls,
}

impl ConnectionKind {
    /// Classifies the first bytes that came; none at the end of the stream.
    pub(super) fn classify(bytes: &[u8]) -> Self {
        match bytes.first() {
            Some(&TLS_HANDSHAKE) => Self::Tls,
            _ if PREFACE.starts_with(bytes) => Self::MayBeHttp2,
            Some(first) if first.is_ascii_uppercase() => Self::Http1,
            _ => Self::Other,
        }
    }

    /// Returns the mismatch with a port that serves TLS, or does not.
    pub(super) fn mismatch(self, is_tls: bool) -> Option<ConnectionMismatch> {
        match self {
            Self::Tls if !is_tls => Some(ConnectionMismatch::TlsToHttp),
            // A client that ends without a byte may be a probe.
            Self::Http1 if is_tls => Some(ConnectionMismatch::HttpToTls),
            _ => None,
        }
    }
}

impl ConnectionMismatch {
    /// Answers with 400, and closes the connection once the client has read it.
    pub(super) async fn refuse(self, mut stream: Box<dyn Stream>) {
        let body = serde_json::json!({"errors": [{"code": "UNSUPPORTED", "message": self.to_string()}]});
        let (body, kind) = (format!("{body}\n"), "application/json");
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
            return;
        }
        let (mut unread, mut sink) = (stream.take(MAX_DRAINED), tokio::io::sink());
        // The client may close, or continue: both end here.
        let _ = tokio::time::timeout(DRAIN, tokio::io::copy(&mut unread, &mut sink)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(b"\x16\x03\x01" => (ConnectionKind::Tls, true, false); "tls")]
    #[test_case(b"GET / HTTP/1.1" => (ConnectionKind::Http1, false, true); "http")]
    #[test_case(b"PRI * HTTP/2.0" => (ConnectionKind::MayBeHttp2, false, false); "a preface")]
    #[test_case(b"P" => (ConnectionKind::MayBeHttp2, false, false); "a letter of both")]
    #[test_case(b"" => (ConnectionKind::MayBeHttp2, false, false); "the end")]
    #[test_case(b"\0\0" => (ConnectionKind::Other, false, false); "neither")]
    fn first_bytes_show_the_protocol(bytes: &[u8]) -> (ConnectionKind, bool, bool) {
        let first = ConnectionKind::classify(bytes);
        (
            first,
            first.mismatch(false).is_some(),
            first.mismatch(true).is_some(),
        )
    }
}
