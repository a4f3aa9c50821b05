//! Peers that have the secret and mean no good: they can deny, and never poison.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mirror::digest::Digest;
use test_case::test_case;
use tokio::net::TcpListener;

use crate::fleet::{Replicas, SECRET, hello_of, until_peers, weight};
use crate::hub::{Gate, Hub};
use crate::{MIB, bytes};

/// The way in which a peer misbehaves once it is asked for a blob.
#[derive(Clone, Copy, Debug)]
enum Lie {
    WrongBytes,
    WrongSize,
    Hang,
    Drops,
    Cut,
    Unsigned404,
    Garbage,
    Stall,
    OldProtocol,
    NewProtocol,
    OtherUpstreams,
    UnsignedHello,
    HugeHello,
    EndlessHello,
}

/// Returns an id that owns the shard of a digest against any other id.
fn owner_id(digest: &Digest) -> String {
    let mut ids = (0_u32..).map(|number| format!("{number:032x}"));
    ids.find(|id| weight(id, digest).starts_with("fff")).unwrap()
}

fn tag(text: &[u8]) -> String {
    hex::encode(hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()),
        text,
    ))
}

/// Returns the signature of an answer with one header at most.
fn signature(request: &Request<hyper::body::Incoming>, content_type: &str, body: &str) -> String {
    let authorization = request.headers()[header::AUTHORIZATION].to_str().unwrap();
    let answer = format!("GET 200\ncontent-type: {content_type}\n\n{body}");
    tag(format!("answer {authorization}\n{answer}").as_bytes())
}

struct Liar {
    lie: Lie,
    id: String,
    size: usize,
    asked: AtomicUsize,
    /// The start of the blob that each request gets, after which nothing comes until the gate opens.
    start: Option<(Bytes, Gate)>,
}

impl Liar {
    fn hello(&self, request: &Request<hyper::body::Incoming>, upstreams: &str) -> Response<Body> {
        let protocol = match self.lie {
            Lie::OldProtocol => 0,
            Lie::NewProtocol => 2,
            _ => 1,
        };
        let upstreams = match self.lie {
            Lie::OtherUpstreams => "0123456789abcdef",
            _ => upstreams,
        };
        let body = serde_json::json!({
            "id": self.id, "version": "0", "protocol": protocol, "state": "serving", "upstreams": upstreams,
        });
        let (kind, mut body) = ("application/json", body.to_string());
        match self.lie {
            Lie::HugeHello => body.push_str(&" ".repeat(MIB)),
            Lie::EndlessHello => {
                let spaces = stream::repeat(Ok::<_, Infallible>(Bytes::from_static(b"        ")));
                return Response::new(Body::from_stream(spaces));
            }
            _ => {}
        }
        let mut answer = Response::builder().header(header::CONTENT_TYPE, kind);
        if !matches!(self.lie, Lie::UnsignedHello) {
            answer = answer.header("mirror-signature", signature(request, kind, &body));
        }
        answer.body(Body::from(body)).unwrap()
    }

    /// Answers with the start of the blob. The first request waits for the gate then; others are cut.
    fn start_of_blob(&self, start: Bytes, gate: Gate, asked: usize) -> Response<Body> {
        let cut = stream::once(async move {
            if asked == 0 {
                gate.pass().await;
            }
            Err(std::io::Error::other("cut"))
        });
        let body = Body::from_stream(stream::iter([Ok(start)]).chain(cut));
        let answer = Response::builder().header(header::CONTENT_LENGTH, self.size);
        answer.body(body).unwrap()
    }

    async fn blob(&self) -> Response<Body> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some((start, gate)) = &self.start {
            return self.start_of_blob(start.clone(), gate.clone(), asked);
        }
        let wrong = Bytes::from(bytes(99, self.size));
        let sized = |length: usize| Response::builder().header(header::CONTENT_LENGTH, length);
        match self.lie {
            Lie::WrongBytes => Response::new(Body::from(wrong)),
            Lie::WrongSize => Response::new(Body::from(wrong.slice(..self.size / 2))),
            Lie::Hang => std::future::pending().await,
            Lie::Drops => {
                let drops = stream::unfold(0, |number| async move {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), number + 1))
                });
                sized(self.size).body(Body::from_stream(drops)).unwrap()
            }
            Lie::Cut => {
                let part = Ok(wrong.slice(..1000));
                let cut = Err(std::io::Error::other("cut"));
                let body = Body::from_stream(stream::iter([part, cut]));
                sized(self.size).body(body).unwrap()
            }
            Lie::Stall => {
                let part = Ok::<_, Infallible>(wrong.slice(..self.size / 2));
                let body = stream::iter([part]).chain(stream::pending());
                sized(self.size).body(Body::from_stream(body)).unwrap()
            }
            Lie::Unsigned404 => {
                let answer = Response::builder().status(StatusCode::NOT_FOUND);
                let error = r#"{"NotFound":{"code":"BLOB_UNKNOWN","message":"no"}}"#;
                let error = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, error);
                answer.header("mirror-error", error).body(Body::empty()).unwrap()
            }
            _ => Response::builder()
                .status(299)
                .body(Body::from("garbage"))
                .unwrap(),
        }
    }
}

/// Serves a liar at this address; `upstreams` is the hash that it says.
fn serve(liar: Arc<Liar>, listener: TcpListener, upstreams: String) {
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (liar, upstreams) = (Arc::clone(&liar), upstreams.clone());
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (liar, upstreams) = (Arc::clone(&liar), upstreams.clone());
                async move {
                    Ok::<_, Infallible>(match request.uri().path() {
                        "/peer/v1/hello" => liar.hello(&request, &upstreams),
                        path if path.contains("/blobs/") => liar.blob().await,
                        _ => Response::builder().status(500).body(Body::empty()).unwrap(),
                    })
                }
            });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(served);
        }
    });
}

/// Whatever a peer with the secret answers, a small blob is pulled at once, and wrong bytes reach no client.
#[test_case(Lie::WrongBytes, "serving"; "wrong bytes")]
#[test_case(Lie::WrongSize, "serving"; "wrong size")]
#[test_case(Lie::Hang, "serving"; "hang")]
#[test_case(Lie::Drops, "serving"; "drops")]
#[test_case(Lie::Cut, "serving"; "cut")]
#[test_case(Lie::Unsigned404, "serving"; "unsigned 404")]
#[test_case(Lie::Garbage, "serving"; "garbage")]
#[test_case(Lie::Stall, "serving"; "stall in the body")]
#[test_case(Lie::OldProtocol, "incompatible"; "old protocol")]
#[test_case(Lie::NewProtocol, "incompatible"; "new protocol")]
#[test_case(Lie::OtherUpstreams, "otherUpstreams"; "other upstreams")]
#[test_case(Lie::UnsignedHello, "refused"; "unsigned hello")]
#[test_case(Lie::HugeHello, "unreachable"; "huge hello")]
#[test_case(Lie::EndlessHello, "unreachable"; "endless hello")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lying_peer_fails_no_pull(lie: Lie, state: &str) {
    let data = bytes(7, 100 * 1024);
    let (hub, digest) = Hub::with_blob(&data).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stranger = listener.local_addr().unwrap().to_string();
    let mut replicas = Replicas::planned(1, "", &[stranger]);
    replicas.add(0, &hub).await;
    let liar = Arc::new(Liar {
        lie,
        id: owner_id(&digest),
        size: data.len(),
        asked: AtomicUsize::new(0),
        start: None,
    });
    serve(
        Arc::clone(&liar),
        listener,
        hello_of(&replicas, 0, "upstreams").await,
    );
    until_peers(replicas.get(0), state, 1).await;
    let head = replicas
        .get(0)
        .get(&format!("/v2/library/app/blobs/{digest}"), "")
        .await;
    let head = head.unwrap();
    assert_eq!(head.status, 200, "{}", head.text);
    assert_eq!(head.digest().await.unwrap(), digest);
    // A part that follows drops of a liar, and then the whole.
    assert!(hub.count("GET blobs") <= 2);
    let asked = liar.asked.load(Ordering::SeqCst);
    assert_eq!(asked > 0, state == "serving", "asked {asked} times");
}

/// A peer whose clock is wrong is named with the cause in `/status` and once in the log, and fails no pull.
#[test_case(600; "ahead")]
#[test_case(-600; "behind")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_with_wrong_clock_is_reported(skew: i64) {
    let (hub, digest) = Hub::with_blob(bytes(12, MIB)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stranger = listener.local_addr().unwrap().to_string();
    let mut replicas = Replicas::planned(1, "", &[stranger]);
    replicas.add(0, &hub).await;
    let seconds = u64::try_from(crate::fleet::now() + skew).unwrap();
    let date = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(seconds));
    let hellos = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hellos);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (date, counted) = (date.clone(), Arc::clone(&counted));
            let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = Response::builder().status(401).header(header::DATE, date.clone());
                std::future::ready(answer.body(Body::empty()))
            });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(served);
        }
    });
    let server = replicas.get(0);
    until_peers(server, "refused", 1).await;
    let path = format!("/v2/library/app/blobs/{digest}");
    let head = server.get(&path, "").await.unwrap();
    assert_eq!((head.status, head.digest().await.unwrap()), (200, digest));
    let since = crate::fleet::status(server).await["peers"][0].clone();
    assert_eq!(since["cause"], "clock", "{since}");
    let before = hellos.load(Ordering::SeqCst);
    // The second one comes after the answer to the first one was recorded.
    crate::until("two further hellos", || {
        hellos.load(Ordering::SeqCst) >= before + 2
    })
    .await;
    let peer = crate::fleet::status(server).await["peers"][0].clone();
    assert_eq!(peer, since);
    assert_eq!(server.said("\"cause\":\"clock\""), 1);
}

/// Clients of a large blob whose peer sends wrong bytes are cut, and the next request is served from the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_large_blob_is_cut_then_fetched_elsewhere() {
    let data = bytes(8, 2 * MIB);
    let (hub, digest) = Hub::with_blob(&data).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stranger = listener.local_addr().unwrap().to_string();
    let mut replicas = Replicas::planned(1, "", &[stranger]);
    replicas.add(0, &hub).await;
    let liar = Arc::new(Liar {
        lie: Lie::WrongBytes,
        id: owner_id(&digest),
        size: data.len(),
        asked: AtomicUsize::new(0),
        start: None,
    });
    serve(liar, listener, hello_of(&replicas, 0, "upstreams").await);
    until_peers(replicas.get(0), "serving", 1).await;
    let path = format!("/v2/library/app/blobs/{digest}");
    let first = replicas.get(0).get(&path, "").await.unwrap();
    assert!(first.digest().await.is_err(), "wrong bytes came to an end");
    until_peers(replicas.get(0), "excluded", 1).await;
    let second = replicas.get(0).get(&path, "").await.unwrap();
    assert_eq!(second.status, 200, "{}", second.text);
    assert_eq!(second.digest().await.unwrap(), digest);
}

/// A replica that takes another one for the owner reads its fill, though that fill still waits for a lost owner. The fill
/// asks the upstream for the remainder only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fill_of_lost_owner_is_resumed_once() {
    let hub = Hub::start().await;
    let (size, start) = (16 * MIB, 6 * MIB);
    let data = Bytes::from(bytes(9, size));
    let digest = hub.push_blob("library/app", &data);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stranger = listener.local_addr().unwrap().to_string();
    let mut replicas = Replicas::planned(2, "", &[stranger]);
    replicas.add(0, &hub).await;
    replicas.add(1, &hub).await;
    let gate = Gate::shut();
    let liar = Liar {
        lie: Lie::Cut,
        id: owner_id(&digest),
        size,
        asked: AtomicUsize::new(0),
        start: Some((data.slice(..start), gate.clone())),
    };
    serve(
        Arc::new(liar),
        listener,
        hello_of(&replicas, 0, "upstreams").await,
    );
    for index in 0..2 {
        until_peers(replicas.get(index), "serving", 2).await;
    }
    let mut order = Vec::new();
    for index in 0..2 {
        order.push((weight(&hello_of(&replicas, index, "id").await, &digest), index));
    }
    order.sort();
    let (next_owner, other) = (replicas.get(order[1].1), replicas.get(order[0].1));
    let path = format!("/v2/library/app/blobs/{digest}");
    let mut first = next_owner.get(&path, "").await.unwrap();
    first.first_byte().await.unwrap();
    let second = other.get(&path, "").await.unwrap();
    let open = async {
        // The time in which a replica would start a second download.
        tokio::time::sleep(Duration::from_secs(3)).await;
        gate.open();
    };
    let (first, second, ()) = tokio::join!(first.digest(), second.digest(), open);
    assert_eq!((first.unwrap(), second.unwrap()), (digest.clone(), digest));
    let sent = hub.sent("GET blobs");
    assert!(sent <= (size - start + MIB) as u64, "{sent} bytes from upstream");
}
