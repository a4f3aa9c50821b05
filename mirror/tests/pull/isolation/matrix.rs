//! Each bad neighbour with each innocent request: result and latency of the innocent are as without the neighbour.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mirror::digest::Digest;
use test_case::test_case;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::{AT_ONCE, MIB, until};
use crate::http2;
use crate::hub::{Auth, Fault, Hub, Tokens};
use crate::pattern;
use crate::served::{Body, Mirror, cache, header};

/// The address of a client that is a bad neighbour.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The time that an innocent request may take longer than without a neighbour, on a machine with other work.
const LONGER: Duration = Duration::from_millis(1500);
const DRIP: Duration = Duration::from_millis(200);

/// A bad neighbour.
#[derive(Clone, Copy, Debug)]
enum Neighbour {
    None,
    /// The upstream sends a byte now and then.
    Drips,
    /// The upstream never answers.
    Hangs,
    /// The upstream sends other bytes than were asked for.
    WrongBytes,
    /// The upstream announces more than it sends.
    LyingLength,
    /// The upstream limits the rate of requests for an hour.
    RateLimit,
    /// The upstream refuses every login.
    RefusedLogin,
    /// The upstream's token server sends an answer that does not end.
    EndlessToken,
    /// The upstream answers with an error, and now and then not at all.
    Broken,
    /// A client asks both upstreams for many digests that they do not have.
    Flood,
    /// A client takes nothing of large answers.
    SlowClient,
    /// A client takes nothing of many streams of HTTP/2, or a byte of each.
    UnreadStreams,
    /// A client opens many connections, and sends half a request on each.
    ManyConnections,
}

/// The content that both upstreams have.
struct Content {
    manifests: [Digest; 2],
    layers: Vec<Digest>,
}

/// Two upstreams with the same content, and a mirror of both.
struct Scene {
    bad: Hub,
    good: Hub,
    mirror: Mirror,
    content: Content,
    /// The neighbour's requests; they end with the scene.
    traffic: JoinSet<()>,
}

/// The outcome of an innocent request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    kind: &'static str,
    status: u16,
    x_cache: String,
    body: Option<Body>,
}

fn push(hub: &Hub) -> Content {
    let layers: Vec<Vec<u8>> = (0..3)
        .map(|number| {
            let mut layer = pattern(MIB);
            layer[0] = number;
            layer
        })
        .collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let (first, digests) = hub.push_image("org/app", "1", &layers);
    let (second, _) = hub.push_image("org/app", "2", &layers[..1]);
    Content {
        manifests: [first, second],
        layers: digests,
    }
}

impl Scene {
    async fn new() -> Self {
        let (bad, good) = (Hub::start().await, Hub::start().await);
        push(&bad);
        let content = push(&good);
        let hubs = [(&bad, "bad.test"), (&good, "good.test")];
        let mirror = Mirror::with(&hubs, cache(), Some(64 << 20)).await;
        Self {
            bad,
            good,
            mirror,
            content,
            traffic: JoinSet::new(),
        }
    }

    /// Has the upstream or the client misbehave, and waits until it does.
    async fn admit(&mut self, neighbour: Neighbour) {
        let bad = &self.bad;
        match neighbour {
            Neighbour::None
            | Neighbour::Flood
            | Neighbour::SlowClient
            | Neighbour::UnreadStreams
            | Neighbour::ManyConnections => {}
            Neighbour::Drips => bad.always("* /v2/", Fault::Drops(DRIP)),
            Neighbour::Hangs => bad.always("* /v2/", Fault::Hang),
            Neighbour::WrongBytes => bad.always("* /v2/", Fault::Corrupt),
            Neighbour::LyingLength => bad.always("* /v2/", Fault::Length(60 << 20)),
            Neighbour::RateLimit => bad.always("* /v2/", Fault::limited(Some("3600"))),
            Neighbour::RefusedLogin => bad.always("* /v2/", Fault::status(401)),
            Neighbour::EndlessToken => {
                let mut tokens = Tokens::at(bad);
                tokens.padding = 100_000;
                *bad.auth() = Auth::Tokens(tokens);
                bad.always("* /token", Fault::Drops(DRIP));
            }
            Neighbour::Broken => {
                for _ in 0..5 {
                    bad.once("* /v2/", Fault::Reset);
                }
                bad.always("* /v2/", Fault::status(500));
            }
        }
        match neighbour {
            Neighbour::None => {}
            Neighbour::Flood => self.flood().await,
            Neighbour::SlowClient => self.take_nothing().await,
            Neighbour::UnreadStreams => self.read_no_streams().await,
            Neighbour::ManyConnections => self.open_connections().await,
            _ => {
                for path in self.paths("bad.test") {
                    for _ in 0..3 {
                        let request = self.mirror.request("GET", &path);
                        self.traffic.spawn(async move { drop(request.send().await) });
                    }
                }
                until(|| self.bad.count("* ") > 0).await;
            }
        }
    }

    /// Asks for 300 digests that are nowhere, of blobs and manifests, at both upstreams.
    async fn flood(&mut self) {
        for number in 0..300 {
            let digest = Digest::compute(
                mirror::digest::Algorithm::Sha256,
                format!("none {number}").as_bytes(),
            );
            let host = ["bad.test", "good.test"][number % 2];
            let kind = ["blobs", "manifests"][number / 2 % 2];
            let path = format!("/v2/{host}/org/app/{kind}/{digest}");
            let request = self.mirror.request("GET", &path);
            self.traffic.spawn(async move { drop(request.send().await) });
        }
        until(|| self.bad.count("* ") > 0 && self.good.count("* ") > 0).await;
    }

    /// Opens connections on which an answer of 16 MiB is asked for and not read.
    async fn take_nothing(&mut self) {
        let digest = self.bad.push_blob("org/app", pattern(16 * MIB));
        let request = format!("GET /v2/bad.test/org/app/blobs/{digest} HTTP/1.1\r\nHost: mirror\r\n\r\n");
        self.connect(20, request.as_bytes()).await;
        until(|| self.bad.count("GET blobs") > 0).await;
    }

    /// Asks for a blob of 16 MiB on 100 streams of each of ten connections, and reads none of them.
    async fn read_no_streams(&mut self) {
        let digest = self.bad.push_blob("org/app", pattern(16 * MIB));
        let path = format!("/v2/bad.test/org/app/blobs/{digest}");
        for window in [0, 1, i32::MAX.cast_unsigned()] {
            let streams = (0..100).map(|number| http2::get(2 * number + 1, &path, &[]));
            let requests: Vec<_> = std::iter::once(http2::start(window)).chain(streams).collect();
            self.connect(10, &requests.concat()).await;
        }
        until(|| self.bad.count("GET blobs") > 0).await;
    }

    async fn open_connections(&mut self) {
        self.connect(200, b"GET /v2/ HTTP/1.1\r\nHost: mi").await;
    }

    /// Connects from an address of the neighbour's own.
    async fn connect(&mut self, count: usize, bytes: &[u8]) {
        let address = self.mirror.url.strip_prefix("http://").unwrap().to_owned();
        for _ in 0..count {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((NEIGHBOUR, 0))).unwrap();
            let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
            // The server may refuse some.
            let _ = stream.write_all(bytes).await;
            self.traffic.spawn(async move {
                let _open = stream;
                std::future::pending::<()>().await;
            });
        }
    }

    /// Returns the paths that the neighbour's clients ask for: the innocent's, at another upstream.
    fn paths(&self, host: &str) -> Vec<String> {
        let name = format!("/v2/{host}/org/app");
        let Content { manifests, layers } = &self.content;
        let blobs = layers.iter().map(|digest| format!("{name}/blobs/{digest}"));
        let others = [
            format!("{name}/manifests/1"),
            format!("{name}/manifests/{}", manifests[1]),
            format!("{name}/tags/list"),
            format!("{name}/referrers/{}", manifests[0]),
        ];
        blobs.chain(others).collect()
    }

    /// Makes each kind of innocent request, one after the other.
    async fn innocents(&self) -> Vec<(Outcome, Duration)> {
        let paths = self.paths("good.test");
        let [cold, sized, ranged, tag, digest, tags, referrers] = &paths[..] else {
            unreachable!("seven paths");
        };
        let mut outcomes = vec![
            self.ask("manifest by tag, cold", "GET", tag, "").await,
            self.ask("manifest by tag, hit", "GET", tag, "").await,
            self.ask("manifest by digest, cold", "GET", digest, "").await,
            self.ask("manifest by digest, hit", "HEAD", digest, "").await,
            self.ask("tags", "GET", tags, "").await,
            self.ask("referrers, cold", "GET", referrers, "").await,
            self.ask("referrers, hit", "GET", referrers, "").await,
            self.ask("size of a blob, cold", "HEAD", sized, "").await,
            self.ask("blob, cold", "GET", cold, "").await,
            self.ask("range of a blob, cold", "GET", ranged, "bytes=1000-1999")
                .await,
        ];
        // The fill is committed a moment after its last byte was served.
        let began = Instant::now();
        while header(&self.mirror.get(cold).await, "x-cache") != "HIT" && began.elapsed() < AT_ONCE {}
        outcomes.push(self.ask("blob, hit", "GET", cold, "").await);
        outcomes.push(self.ask("range of a blob, hit", "GET", cold, "bytes=10-19").await);
        outcomes
    }

    async fn ask(&self, kind: &'static str, method: &str, path: &str, range: &str) -> (Outcome, Duration) {
        let began = Instant::now();
        let mut request = self.mirror.request(method, path);
        if !range.is_empty() {
            request = request.header("range", range);
        }
        let answer = request.send().await.unwrap();
        let (status, x_cache) = (answer.status().as_u16(), header(&answer, "x-cache").to_owned());
        let body = answer.bytes().await.ok().map(Body);
        let outcome = Outcome {
            kind,
            status,
            x_cache,
            body,
        };
        (outcome, began.elapsed())
    }
}

#[test_case(Neighbour::Drips; "drips")]
#[test_case(Neighbour::Hangs; "hangs")]
#[test_case(Neighbour::WrongBytes; "wrong bytes")]
#[test_case(Neighbour::LyingLength; "lying length")]
#[test_case(Neighbour::RateLimit; "rate limit")]
#[test_case(Neighbour::RefusedLogin; "refused login")]
#[test_case(Neighbour::EndlessToken; "endless token")]
#[test_case(Neighbour::Broken; "broken")]
#[test_case(Neighbour::Flood; "flood of digests")]
#[test_case(Neighbour::SlowClient; "slow client")]
#[test_case(Neighbour::UnreadStreams; "unread streams")]
#[test_case(Neighbour::ManyConnections; "many connections")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn innocent_request_is_as_without_the_neighbour(neighbour: Neighbour) {
    let mut outcomes = Vec::new();
    for neighbour in [Neighbour::None, neighbour] {
        let mut scene = Scene::new().await;
        scene.admit(neighbour).await;
        outcomes.push(scene.innocents().await);
    }
    let [alone, beside] = &outcomes[..] else {
        unreachable!("two rounds")
    };
    for ((expected, before), (found, after)) in alone.iter().zip(beside) {
        println!("{neighbour:?} | {} | {before:?} | {after:?}", expected.kind);
        assert_eq!(found, expected);
        assert_eq!(expected.status / 100, 2, "{}", expected.kind);
        assert!(
            *after < *before + LONGER,
            "{}: {before:?} became {after:?}",
            expected.kind
        );
    }
}
