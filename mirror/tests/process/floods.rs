//! Clients that make the server hold bytes for them: streams and connections that are not read, headers that do not end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use mirror::digest::Digest;
use test_case::test_case;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::http2;
use crate::hub::{Fault, Hub};
use crate::server::{Head, Server};
use crate::{MIB, bytes};

/// The address of the client that floods.
pub(crate) const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The most that memory may grow by for one address that reads nothing.
const MOST: u64 = 32 << 20;
/// The most that memory may grow by for many addresses that read nothing.
const MOST_OF_MANY: u64 = 80 << 20;
/// The most that memory may grow by while lists are fetched and filtered for one address that reads nothing.
const MOST_WITH_LISTS: u64 = 72 << 20;
/// The time in which innocent requests are answered while a busy machine answers the flood. It is less than the time after
/// which connections are closed that hold memory.
const AT_ONCE: Duration = Duration::from_secs(25);

/// Connects from an address, for a connection that is not read: the system takes little of it.
pub(crate) async fn connect(address: &str, from: Ipv4Addr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    connect_socket(socket, address, from).await
}

async fn connect_socket(socket: TcpSocket, address: &str, from: Ipv4Addr) -> TcpStream {
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

/// Sends bytes on a connection that the client does not read; the server may close it.
pub(crate) async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(bytes)).await;
}

/// A mirror with a cached blob, which the innocent client asks for.
struct Scene {
    hub: Hub,
    server: Server,
    blob: Digest,
    uncached: Digest,
    before: u64,
    _home: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    /// Starts the server with these variables in its environment.
    async fn with(environment: &[(&str, &str)]) -> Self {
        let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
        let blob = hub.push_blob("library/app", bytes(1, MIB));
        let uncached = hub.push_blob("library/stalled", bytes(2, MIB));
        hub.push_image("library/app", "v1", &[b"layer"]);
        let server = Server::start_in(&home.path().join("cache"), &hub, "", environment).await;
        let scene = Self {
            hub,
            server,
            blob,
            uncached,
            before: 0,
            _home: home,
        };
        scene.pull().await;
        let before = scene.server.memory();
        Self { before, ..scene }
    }

    fn path(&self) -> String {
        format!("/v2/library/app/blobs/{}", self.blob)
    }

    /// Pulls as the innocent client, over HTTP/1.1 and HTTP/2.
    async fn pull(&self) {
        let head = self.server.get(&self.path(), "").await.unwrap();
        assert_eq!(
            (head.status, head.digest().await.unwrap()),
            (200, self.blob.clone())
        );
        let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge();
        let url = format!("http://{}", self.server.address);
        let client = client.build().unwrap();
        let manifest = client.get(format!("{url}/v2/library/app/manifests/v1"));
        assert_eq!(manifest.send().await.unwrap().status(), 200);
        let blob = client.get(format!("{url}{}", self.path())).send().await.unwrap();
        assert_eq!(blob.bytes().await.unwrap().len(), MIB);
    }

    /// Pulls a part, which is too small for sendfile, from the address of the flood.
    async fn pull_part_from_attacker(&self) {
        let path = self.path();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: m\r\nrange: bytes=0-60000\r\nconnection: close\r\n\r\n");
        let socket = TcpSocket::new_v4().unwrap();
        let mut stream = connect_socket(socket, &self.server.address, ATTACKER).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = Head::read(stream).await.unwrap();
        assert_eq!(head.status, 206, "{}", head.text);
        head.digest().await.unwrap();
    }

    /// Pulls for some seconds, and checks the memory meanwhile.
    async fn endure(&self, limit: u64) {
        let (mut most, end) = (0, Instant::now() + Duration::from_secs(3));
        while Instant::now() < end {
            let begin = Instant::now();
            self.pull().await;
            self.pull_part_from_attacker().await;
            let took = begin.elapsed();
            assert!(took < AT_ONCE, "innocent pulls took {took:?}");
            most = most.max(self.server.memory());
        }
        let growth = most.saturating_sub(self.before);
        eprintln!("memory grew by {growth} bytes");
        assert!(growth < limit, "memory grew by {growth} bytes");
    }
}

/// The path that each stream asks for.
#[derive(Clone, Copy)]
enum Target {
    Blob,
    Referrers,
    Tags,
    Base,
    /// A blob of which the upstream sends the first bytes only.
    Stalled,
    /// A blob for which the upstream sends nothing.
    Hanging,
}

impl Target {
    fn path(self, scene: &Scene, number: usize) -> String {
        match self {
            Self::Blob => scene.path(),
            Self::Referrers => format!("/v2/library/app/referrers/{}?artifactType=a", scene.blob),
            Self::Tags => format!("/v2/library/app/tags/list?last={number}"),
            Self::Base => "/v2/".into(),
            Self::Stalled => format!("/v2/library/stalled/blobs/{}", scene.uncached),
            Self::Hanging => format!("/v2/library/hanging/blobs/{}", scene.uncached),
        }
    }
}

/// Has the upstream answer lists as large as they may be.
fn answer_large_lists(hub: &Hub) {
    let answer = |body: String| Fault::Answer(StatusCode::OK, Vec::new(), Bytes::from(body));
    let descriptor = format!(
        r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":1,"artifactType":"a"}}"#,
        "a".repeat(64)
    );
    let referrers = vec![descriptor; 9_000].join(",");
    hub.always(
        "GET referrers",
        answer(format!(r#"{{"schemaVersion":2,"manifests":[{referrers}]}}"#)),
    );
    let tags: Vec<_> = (0..9_000).map(|number| format!("\"{number:0>120}\"")).collect();
    hub.always(
        "GET tags",
        answer(format!(r#"{{"name":"library/app","tags":[{}]}}"#, tags.join(","))),
    );
}

/// Streams of HTTP/2 whose client takes nothing, or a byte, hold a bounded part of memory, and delay no other client.
#[test_case(Target::Blob, 0; "blobs without a window")]
#[test_case(Target::Blob, 1; "blobs with a window of a byte")]
#[test_case(Target::Blob, i32::MAX.cast_unsigned(); "blobs with a large window")]
#[test_case(Target::Referrers, 1; "referrers")]
#[test_case(Target::Tags, 1; "tags")]
#[test_case(Target::Base, 1; "small answers")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_http2_streams_stay_within_memory(target: Target, window: u32) {
    let scene = Scene::new().await;
    answer_large_lists(&scene.hub);
    let mut unread = Vec::new();
    for connection in 0..20_usize {
        let mut stream = connect(&scene.server.address, ATTACKER).await;
        let mut requests = http2::start(window);
        for number in 0..200_u32 {
            let path = target.path(&scene, connection * 200 + number as usize);
            requests.extend(http2::get(2 * number + 1, &path, &[]));
        }
        send(&mut stream, &requests).await;
        unread.push(stream);
    }
    let limit = match target {
        Target::Referrers | Target::Tags => MOST_WITH_LISTS,
        _ => MOST,
    };
    scene.endure(limit).await;
}

/// Streams of many addresses whose clients take nothing hold a bounded part of memory in all, and delay no other client.
#[test_case(Target::Blob; "blobs")]
#[test_case(Target::Base; "small answers")]
#[test_case(Target::Stalled; "blobs that do not come")]
#[test_case(Target::Hanging; "requests without an answer")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_streams_of_many_addresses_stay_within_memory(target: Target) {
    let scene = Scene::new().await;
    scene.hub.always("GET stalled/blobs", Fault::Stall(1000));
    scene.hub.always("GET hanging/blobs", Fault::Hang);
    let path = target.path(&scene, 0);
    let streams = (0..100).map(|number| http2::get(2 * number + 1, &path, &[]));
    let begin = std::iter::once(http2::start(i32::MAX.cast_unsigned()));
    let requests = begin.chain(streams).collect::<Vec<_>>().concat();
    let mut unread = Vec::new();
    for connection in 0..300_u16 {
        let [_, address] = (connection / 10 + 3).to_be_bytes();
        let mut stream = connect(&scene.server.address, Ipv4Addr::new(127, 0, 0, address)).await;
        send(&mut stream, &requests).await;
        unread.push(stream);
    }
    scene.endure(MOST_OF_MANY).await;
}

/// Requests whose headers are long keep none of them for the log once they are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_headers_of_unread_streams_are_dropped() {
    let scene = Scene::new().await;
    let long = "a".repeat(15_000);
    let headers = [("user-agent", long.as_str()), ("x-request-id", "id")];
    let mut unread = Vec::new();
    for _ in 0..30 {
        let mut stream = connect(&scene.server.address, ATTACKER).await;
        send(&mut stream, &http2::start(0)).await;
        for number in 0..100_u32 {
            send(&mut stream, &http2::get(2 * number + 1, &scene.path(), &headers)).await;
        }
        unread.push(stream);
    }
    scene.endure(MOST).await;
}

/// Connections of HTTP/1.1 that read nothing hold a bounded part of memory: also for a range that is too small for
/// sendfile.
#[test_case(""; "a whole blob")]
#[test_case("range: bytes=0-60000\r\n"; "a small range")]
#[test_case("range: bytes=0-60000,70000-130000\r\n"; "two small ranges")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_http1_connections_stay_within_memory(range: &str) {
    let scene = Scene::new().await;
    let request = format!("GET {} HTTP/1.1\r\nhost: m\r\n{range}\r\n", scene.path());
    let mut unread = Vec::new();
    for _ in 0..200 {
        let mut stream = connect(&scene.server.address, ATTACKER).await;
        // More than the buffers of the sockets take.
        send(&mut stream, request.repeat(80).as_bytes()).await;
        unread.push(stream);
    }
    scene.endure(MOST).await;
}

/// An address that holds all connections, and takes a byte of each now and then, locks out no other address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowd_of_busy_streams_locks_out_no_other() {
    let scene = Scene::with(&[("REGISTRY_HTTP_MAXCONNECTIONS", "64")]).await;
    let request = [http2::start(100), http2::get(1, &scene.path(), &[])].concat();
    // RFC 9113, 6.9: a thousand bytes for the stream, which are more than a ping.
    let update = http2::frame(8, 0, 1, &1_000_u32.to_be_bytes());
    let crowd = async {
        let mut crowd = Vec::new();
        loop {
            while crowd.len() < 80 {
                let mut stream = connect(&scene.server.address, ATTACKER).await;
                send(&mut stream, &request).await;
                crowd.push(stream);
            }
            for stream in &mut crowd {
                send(stream, &update).await;
            }
            crowd.retain(|stream| !matches!(stream.try_read(&mut [0; 4096]), Ok(0)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let innocent = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..5 {
            let begin = Instant::now();
            scene.pull().await;
            assert!(
                begin.elapsed() < AT_ONCE,
                "an innocent pull took {:?}",
                begin.elapsed()
            );
        }
    };
    tokio::select! {
        () = innocent => {}
        () = crowd => unreachable!("it has no end"),
    }
}

/// Headers that do not end hold a bounded part of memory.
#[test_case(false; "http1")]
#[test_case(true; "http2")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_headers_stay_within_memory(http2: bool) {
    let scene = Scene::new().await;
    let bytes = if http2 {
        [http2::start(65_535), http2::unfinished_header(30_000)].concat()
    } else {
        format!("GET /v2/ HTTP/1.1\r\nhost: m\r\nx: {}", "x".repeat(30_000)).into_bytes()
    };
    let mut unread = Vec::new();
    for _ in 0..1_000 {
        let mut stream = connect(&scene.server.address, ATTACKER).await;
        send(&mut stream, &bytes).await;
        unread.push(stream);
    }
    scene.endure(MOST).await;
}

/// Returns the configuration of a client that trusts this certificate, and speaks this protocol.
fn tls_client(certificate: &rcgen::Certificate, protocol: &[u8]) -> rustls::ClientConfig {
    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(certificate.der().clone()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut client = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    client.alpn_protocols = vec![protocol.to_vec()];
    client
}

/// Returns the first bytes of a handshake (RFC 8446, 4 and 5.1): of a `ClientHello` of 60,000 bytes, so many.
fn unfinished_hello(length: usize) -> Vec<u8> {
    let mut message = vec![1, 0, 0xea, 0x60];
    message.resize(length, 0);
    let records = message.chunks(16 * 1024).flat_map(|part| {
        let [high, low] = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1, high, low], part].concat()
    });
    records.collect()
}

/// Connections inside TLS that read nothing, and handshakes that do not end, hold a bounded part of memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_tls_connections_stay_within_memory() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let blob = hub.push_blob("library/app", bytes(1, MIB));
    let issued = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| home.path().join(name));
    std::fs::write(&certificate, issued.cert.pem()).unwrap();
    std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let environment = [
        ("REGISTRY_HTTP_TLS_CERTIFICATE", certificate.to_str().unwrap()),
        ("REGISTRY_HTTP_TLS_KEY", key.to_str().unwrap()),
    ];
    let server = Server::start_in(&home.path().join("cache"), &hub, "", &environment).await;
    let port = server.address.rsplit(':').next().unwrap();
    let url = format!("https://localhost:{port}/v2/library/app/blobs/{blob}");
    let pull = async || {
        let config = tls_client(&issued.cert, b"h2");
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(config);
        let response = client.build().unwrap().get(&url).send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap().len(), MIB);
    };
    pull().await;
    let before = server.memory();
    let path = format!("/v2/library/app/blobs/{blob}");
    let http1 = format!("GET {path} HTTP/1.1\r\nhost: m\r\n\r\n")
        .repeat(80)
        .into_bytes();
    let streams = (0..100).map(|number| http2::get(2 * number + 1, &path, &[]));
    let http2 = std::iter::once(http2::start(i32::MAX.cast_unsigned())).chain(streams);
    let http2 = http2.collect::<Vec<_>>().concat();
    let (mut unread, mut begun) = (Vec::new(), Vec::new());
    for number in 0..100 {
        let (protocol, requests): (&[u8], _) =
            [(b"http/1.1".as_slice(), &http1), (b"h2", &http2)][number % 2];
        let connector =
            tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls_client(&issued.cert, protocol)));
        let stream = connect(&server.address, ATTACKER).await;
        let Ok(mut stream) = connector.connect("localhost".try_into().unwrap(), stream).await else {
            continue;
        };
        let sent = async {
            stream.write_all(requests).await?;
            stream.flush().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), sent).await;
        unread.push(stream);
        for _ in 0..6 {
            let mut stream = connect(&server.address, ATTACKER).await;
            send(&mut stream, &unfinished_hello(50_000)).await;
            begun.push(stream);
        }
    }
    for _ in 0..5 {
        let start = Instant::now();
        pull().await;
        assert!(
            start.elapsed() < AT_ONCE,
            "an innocent pull took {:?}",
            start.elapsed()
        );
    }
    let growth = server.memory().saturating_sub(before);
    eprintln!("memory grew by {growth} bytes");
    assert!(growth < MOST + (8 << 20), "memory grew by {growth} bytes");
}
