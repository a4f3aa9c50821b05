//! Requests that no honest client sends.

use std::time::Duration;

use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hub::Hub;
use crate::server::Server;
use crate::{LIMIT, bytes, http2};

/// A second request in what follows must never be answered as one: a proxy in front would have sent it as a body.
const HIDDEN: &str = "GET /v2/library/hidden/manifests/1 HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n";

async fn pair() -> (Hub, tempfile::TempDir, Server) {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let server = Server::start(&home.path().join("cache"), &hub, "").await;
    (hub, home, server)
}

#[test_case("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"; "a length and chunks")]
#[test_case("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n"; "chunks and a length")]
#[test_case("Content-Length: 0\r\nContent-Length: 80\r\n\r\n"; "two lengths")]
#[test_case("Content-Length: 0, 80\r\n\r\n"; "a list of lengths")]
#[test_case("Content-Length: +0\r\n\r\n"; "a signed length")]
#[test_case("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"; "chunks that are not last")]
#[test_case("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"; "an unknown coding")]
#[test_case("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"; "identity and chunks in two lines")]
#[test_case("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"; "another coding before chunks")]
#[test_case("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"; "a space before the colon")]
#[test_case("X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"; "a folded line")]
#[test_case("Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"; "a chunk size that is no number")]
#[test_case("Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n"; "a chunk size beyond all numbers")]
#[test_case("X: a\0b\r\n\r\n"; "a zero byte")]
#[test_case("X: a\rY: b\r\n\r\n"; "a bare carriage return")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_smuggled(headers: &str) {
    let (hub, _home, server) = pair().await;
    let answer = server
        .exchange(format!("POST /v2/ HTTP/1.1\r\nHost: m\r\n{headers}{HIDDEN}"))
        .await;
    assert_eq!(answer.matches("HTTP/1.1 ").count().max(1), 1, "{answer}");
    let status = answer.get(9..12).unwrap_or_default();
    assert!(["400", "405", "501", ""].contains(&status), "{answer}");
    assert_eq!(hub.count("* hidden"), 0, "the hidden request was taken");
}

/// Bytes that are no request are answered with 400.
#[test_case("GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n"; "no host")]
#[test_case("GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"; "two hosts")]
#[test_case("GET  /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"; "two spaces")]
#[test_case("GET /v2/ HTTP/9.9\r\nHost: a\r\nConnection: close\r\n\r\n"; "an unknown version")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_request_is_400(request: &str) {
    let (_hub, _home, server) = pair().await;
    let answer = server.exchange(request).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") || answer.is_empty(),
        "{answer}"
    );
}

/// A request whose target has no path is answered with 400, and is no request for `/`.
#[test_case("GET foo HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"; "a name")]
#[test_case("GET * HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"; "an asterisk")]
#[test_case("GET m:80 HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"; "a host and a port")]
#[test_case("HEAD ?a HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"; "a query alone")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn target_without_path_is_400(request: &str) {
    let (_hub, _home, server) = pair().await;
    let answer = server.exchange(request).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

/// The same over HTTP/2: no `:path`, and odd ones.
#[test_case(None; "no path")]
#[test_case(Some("*"); "an asterisk")]
#[test_case(Some("foo"); "a name")]
#[test_case(Some("?a"); "a query alone")]
#[test_case(Some(""); "empty")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_target_without_path_is_refused(path: Option<&str>) {
    let (_hub, _home, server) = pair().await;
    for has_authority in [true, false] {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(&http2::start(65_535)).await.unwrap();
        stream
            .write_all(&http2::get_target(path, has_authority))
            .await
            .unwrap();
        assert!(
            refusal_of_http2(&mut stream).await,
            "{path:?}, authority: {has_authority}"
        );
    }
}

/// Returns `true` if stream 1 is answered with status 400, or is reset or its connection ends before any response.
async fn refusal_of_http2(stream: &mut TcpStream) -> bool {
    loop {
        let mut head = [0; 9];
        let read = tokio::time::timeout(LIMIT, stream.read_exact(&mut head))
            .await
            .unwrap();
        if read.is_err() {
            return true;
        }
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        match head[3] {
            // A response: 400 is entry 12 of the static table of HPACK.
            1 => return payload.first() == Some(&0x8c),
            // RST_STREAM, GOAWAY.
            3 | 7 => return true,
            _ => {}
        }
    }
}

/// A request in absolute form reaches no other server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absolute_form_reaches_no_other_server() {
    let (hub, _home, server) = pair().await;
    let (manifest, _) = hub.push_image("library/app", "1", &[b"layer"]);
    let request = "GET http://elsewhere.example/v2/library/app/manifests/1 HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n";
    let head = server.send(request).await.unwrap();
    assert_eq!((head.status, head.digest().await.unwrap()), (200, manifest));
    let head = server
        .send("CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: m\r\n\r\n")
        .await
        .unwrap();
    assert!(head.status >= 400, "{}", head.text);
}

#[test_case("x: ", 70_000, 1, 431; "a line of 70 kB")]
#[test_case("x: ", 10, 101, 431; "101 lines")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_beyond_the_limits_are_431(name: &str, length: usize, count: usize, status: u16) {
    let (_hub, _home, server) = pair().await;
    let line = format!("{name}{}\r\n", "a".repeat(length));
    let answer = server
        .exchange(format!(
            "GET /v2/ HTTP/1.1\r\nHost: m\r\n{}\r\n",
            line.repeat(count)
        ))
        .await;
    assert!(
        answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")),
        "{answer}"
    );
    // No JSON: the specification's codes have none for it.
    assert!(answer.is_empty() || answer.ends_with("\r\n\r\n"), "{answer}");
}

/// Names that would lead out of the cache, or to what is ours in it, if they were used as they are.
const PATHS: [&str; 20] = [
    "/v2/../../../../etc/passwd",
    "/v2/%2e%2e/%2e%2e/etc/passwd",
    "/v2/..%2f..%2f..%2fsecret/manifests/latest",
    "/v2/%2e%2e%2f%2e%2e%2fsecret/manifests/latest",
    "/v2/a/../../secret/manifests/latest",
    "/v2/a/%252e%252e/manifests/latest",
    "/v2/a/manifests/..",
    "/v2/a/manifests/%2e%2e%2f%2e%2e%2fsecret",
    "/v2/a/manifests/..%5c..%5csecret",
    "/v2/a%00b/manifests/latest",
    "/v2/a/manifests/latest%00.json",
    "/v2/_upstreams/quay.io/a/manifests/latest",
    "/v2/_mirror/manifests/latest",
    "/v2//a/manifests/latest",
    "/v2/a//manifests/latest",
    "/v2/a/blobs/sha256:../../../../secret",
    "/v2/a/blobs/sha256:%2e%2e%2fsecret",
    "/v2/a/blobs/..:0000000000000000000000000000000000000000000000000000000000000000",
    "/v2/a\\..\\b/manifests/latest",
    "/v2/\u{202e}a/manifests/latest",
];

/// Returns whether the answer is a redirect to a path of this host without empty and dot segments.
fn leads_to_clean_path(answer: &str) -> bool {
    let mut lines = answer.lines();
    let location = lines.find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("location: ")
            .map(str::to_owned)
    });
    answer.starts_with("HTTP/1.1 301 ")
        && location.is_some_and(|path| {
            let mut segments = path.split('/');
            segments.next() == Some("") && segments.all(|segment| !["", ".", ".."].contains(&segment))
        })
}

/// No path leads out of the cache or of the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_path_escapes_the_cache_or_upstream() {
    let (hub, home, server) = pair().await;
    std::fs::write(home.path().join("secret"), "the secret").unwrap();
    for path in PATHS {
        let request = format!("GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
        let answer = server.exchange(request).await;
        assert!(
            answer.starts_with("HTTP/1.1 4") || leads_to_clean_path(&answer),
            "{path}: {answer}"
        );
        assert!(
            !answer.contains("the secret") && !answer.contains("root:"),
            "{path}: {answer}"
        );
    }
    assert_eq!(hub.count("* "), 0, "upstream was asked: {:?}", hub.seen("* "));
    assert_eq!(server.get("/v2/", "").await.unwrap().status, 200);
}

/// Returns the files and directories below a directory that other users may open, or their group may change.
fn open_to_others(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            found.extend(open_to_others(&path));
        }
        if metadata.permissions().mode() & 0o027 != 0 {
            found.push(path);
        }
    }
    found
}

/// Files of the cache may belong to private images.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_users_cannot_read_the_cache() {
    let (hub, home, server) = pair().await;
    hub.push_image("library/app", "1", &[b"layer"]);
    let manifest = server.get("/v2/library/app/manifests/1", "").await.unwrap();
    assert_eq!(manifest.status, 200);
    assert_eq!(server.end().await.code(), Some(0));
    assert_eq!(
        open_to_others(&home.path().join("cache")),
        Vec::<std::path::PathBuf>::new()
    );
}

/// The umask of the cache closes no socket to clients that the given umask admits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_has_the_mode_of_the_given_umask() {
    use std::os::unix::fs::PermissionsExt;
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let (socket, root) = (home.path().join("m.sock"), home.path().join("cache"));
    let server = Server::start_on_socket("007", &socket, &root, &hub).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o770, "{mode:o}");
    assert_eq!(server.end().await.code(), Some(0));
    assert_eq!(open_to_others(&root), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_garbage_ends_the_server() {
    let (_hub, _home, server) = pair().await;
    for seed in 0..200 {
        let mut garbage = bytes(seed, 300);
        garbage.extend(b"\r\n\r\n");
        let prefixes: [&[u8]; 4] = [
            b"",
            b"GET ",
            b"GET /v2/",
            b"GET /v2/a/blobs/sha256:0 HTTP/1.1\r\nhost: m\r\nrange: ",
        ];
        let request = [prefixes[usize::try_from(seed % 4).unwrap()], &garbage].concat();
        let mut stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &request).await;
    }
    assert_eq!(server.get("/v2/", "").await.unwrap().status, 200);
}

/// Sends a request whose trailers (RFC 9110, 6.5) do not end, until the server ends the connection.
async fn send_endless_trailers(server: &Server, begin: &[u8], more: &[u8], pause: Duration) {
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream.write_all(begin).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let send = async {
        while writer.write_all(more).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    };
    let read = async {
        let mut bytes = vec![0; 4096];
        while matches!(reader.read(&mut bytes).await, Ok(1..)) {}
    };
    let ended = async { tokio::join!(send, read) };
    assert!(tokio::time::timeout(LIMIT, ended).await.is_ok(), "no end");
}

/// A client that sends trailers without end loses its connection, and other clients are served meanwhile.
#[test_case(Duration::ZERO; "at once")]
#[test_case(Duration::from_millis(200); "slowly")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_trailers_end_their_connection(pause: Duration) {
    let (_hub, _home, server) = pair().await;
    let begin = "GET /v2/ HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
    let length = [10, 4_000][usize::from(pause.is_zero())];
    let more = format!("x: {}\r\n", "x".repeat(length));
    let http1 = send_endless_trailers(&server, begin.as_bytes(), more.as_bytes(), pause);
    let (begin, more) = http2::unfinished_trailers("/v2/", length);
    let begin = [http2::start(65_535), begin].concat();
    let http2 = send_endless_trailers(&server, &begin, &more, pause);
    let other = async { server.get("/v2/", "").await.unwrap().status };
    let (other, ..) = tokio::join!(other, http1, http2);
    assert_eq!(other, 200);
}
