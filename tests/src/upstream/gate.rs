//! The reverse proxy in front of the registry.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use http::header::{CONNECTION, HOST, RETRY_AFTER, TRANSFER_ENCODING, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener as TokioListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::Error;
use super::counts::{Counts, Kind};
use super::tokens::{self, Tokens};
use crate::pki::Leaf;
use crate::tls_listener::TlsListener;

/// The longest body of a token request, in bytes.
const FORM_BYTES: usize = 1 << 16;

pub(super) struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    running: Option<Running>,
}

struct Shared {
    registry: String,
    scheme: &'static str,
    tokens: Option<Tokens>,
    counts: Mutex<Counts>,
    limits: AtomicBool,
}

/// A thread with a runtime of its own: its end cuts every connection at once, and no test's end cuts any.
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Gate {
    pub(super) fn open(registry: String, tokens: Option<Tokens>, tls: Option<&Leaf>) -> Result<Self, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut gate = Self {
            address: listener.local_addr()?,
            shared: Arc::new(Shared {
                registry,
                scheme: if tls.is_some() { "https" } else { "http" },
                tokens,
                counts: Mutex::default(),
                limits: AtomicBool::new(false),
            }),
            tls: tls.map(Leaf::acceptor).transpose()?,
            running: None,
        };
        gate.serve(listener)?;
        Ok(gate)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn counts(&self) -> Counts {
        self.shared.count(|counts| *counts)
    }

    pub(super) fn reset_counts(&self) {
        self.shared.count(|counts| *counts = Counts::default());
    }

    pub(super) fn limit(&self, limit: bool) {
        self.shared.limits.store(limit, Ordering::Relaxed);
    }

    pub(super) fn set_users(&self, users: &[(String, String)]) {
        if let Some(tokens) = &self.shared.tokens {
            tokens.set_users(users);
        }
    }

    pub(super) fn close(&mut self) {
        if let Some(running) = self.running.take() {
            drop(running.stop);
            // It ends by itself, or has.
            let _ = running.thread.join();
        }
    }

    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.close();
        // Connections that were cut are no reason to refuse the address: the standard library sets SO_REUSEADDR.
        self.serve(TcpListener::bind(self.address)?)
    }

    fn serve(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let app = axum::Router::new().fallback(forward).with_state(Open {
            shared: self.shared.clone(),
            client: client().map_err(io::Error::other)?,
        });
        let tls = self.tls.clone();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = run(listener, tls, app) => {}
                    _ = stopped => {}
                }
            });
            // Dropped here, and with it every connection.
        });
        self.running = Some(Running { stop, thread });
        Ok(())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.close();
    }
}

/// Answers as the registry does, byte for byte: redirects are the client's to follow.
fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, app: axum::Router) {
    let Ok(listener) = TokioListener::from_std(listener) else {
        return;
    };
    match tls {
        // Both run for ever.
        Some(acceptor) => drop(axum::serve(TlsListener::new(listener, acceptor), app).await),
        None => drop(axum::serve(listener, app).await),
    }
}

impl Shared {
    fn count<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        let mut counts = self.counts.lock();
        change(&mut counts)
    }
}

#[derive(Clone)]
struct Open {
    shared: Arc<Shared>,
    client: reqwest::Client,
}

async fn forward(State(open): State<Open>, request: Request) -> Response {
    let kind = Kind::from_path(request.uri().path());
    open.shared.count(|counts| counts.request(kind, request.method()));
    if open.shared.limits.load(Ordering::Relaxed) {
        let errors = json!({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]});
        return (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "60")], Json(errors)).into_response();
    }
    let response = match &open.shared.tokens {
        Some(tokens) => open.guarded(tokens, kind, request).await,
        None => open.pass(kind, request).await,
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        open.shared.count(|counts| counts.challenges += 1);
    }
    response
}

impl Open {
    /// Tokens are this gate's business; the registry behind it asks for nothing.
    async fn guarded(&self, tokens: &Tokens, kind: Kind, request: Request) -> Response {
        if kind == Kind::Token && request.method() == Method::POST {
            let form = axum::body::to_bytes(request.into_body(), FORM_BYTES)
                .await
                .unwrap_or_default();
            return match tokens.refresh(&String::from_utf8_lossy(&form)) {
                Some(answer) => Json(answer).into_response(),
                None => unauthorized(HeaderMap::new()),
            };
        }
        if kind == Kind::Token {
            let query = request.uri().query().unwrap_or_default();
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            let scope = pairs
                .find(|(name, _)| name == "scope")
                .map(|(_, scope)| scope)
                .unwrap_or_default();
            return match tokens.issue(request.headers(), &scope) {
                Some(answer) => Json(answer).into_response(),
                None => unauthorized(HeaderMap::new()),
            };
        }
        let scope = tokens::scope(request.uri().path());
        if tokens.admit(request.headers(), &scope) {
            return self.pass(kind, request).await;
        }
        self.challenge(request.headers(), &scope)
    }

    fn challenge(&self, headers: &HeaderMap, scope: &str) -> Response {
        let host = headers
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default();
        let realm = format!("{}://{host}{}", self.shared.scheme, tokens::PATH);
        let scope = if scope.is_empty() {
            String::new()
        } else {
            format!(",scope=\"{scope}\"")
        };
        let challenge = format!("Bearer realm=\"{realm}\",service=\"test\"{scope}").parse();
        unauthorized(
            challenge
                .map(|value| (WWW_AUTHENTICATE, value))
                .into_iter()
                .collect(),
        )
    }

    async fn pass(&self, kind: Kind, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        let onward = self
            .client
            .request(parts.method, format!("{}{path}", self.shared.registry))
            .headers(end_to_end(parts.headers))
            .body(reqwest::Body::wrap_stream(body.into_data_stream()));
        match onward.send().await {
            Ok(answer) => self.counted(kind, answer),
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        }
    }

    fn counted(&self, kind: Kind, answer: reqwest::Response) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = end_to_end(answer.headers().clone());
        let shared = self.shared.clone();
        let count =
            move |bytes: &axum::body::Bytes| shared.count(|counts| counts.sent(kind, bytes.len() as u64));
        *response.body_mut() = Body::from_stream(answer.bytes_stream().inspect_ok(count));
        response
    }
}

fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for hop in [CONNECTION, TRANSFER_ENCODING] {
        headers.remove(hop);
    }
    headers
}

fn unauthorized(headers: HeaderMap) -> Response {
    let errors = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]});
    (StatusCode::UNAUTHORIZED, headers, Json(errors)).into_response()
}
