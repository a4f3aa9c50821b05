//! The reverse proxy in front of the registry.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{HOST, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use super::Error;
use super::counts::{Counts, Kind};
use super::tokens::{self, Tokens};
use crate::pki::Leaf;
use crate::reverse_proxy::{self, ServerThread};

/// The longest body of a token request, in bytes.
const FORM_BYTES: usize = 1 << 16;

pub(super) struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    running: Option<ServerThread>,
}

struct Shared {
    registry: String,
    scheme: &'static str,
    tokens: Option<Tokens>,
    counts: Mutex<Counts>,
    limits: AtomicBool,
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
        self.running = None;
    }

    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.close();
        // Connections that were cut are no reason to refuse the address: the standard library sets SO_REUSEADDR.
        self.serve(TcpListener::bind(self.address)?)
    }

    fn serve(&mut self, listener: TcpListener) -> io::Result<()> {
        let app = axum::Router::new().fallback(forward).with_state(Open {
            shared: self.shared.clone(),
            client: reverse_proxy::client()?,
        });
        self.running = Some(ServerThread::start(listener, self.tls.clone(), app)?);
        Ok(())
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
        let shared = self.shared.clone();
        let count = move |bytes: &Bytes| shared.count(|counts| counts.sent(kind, bytes.len() as u64));
        reverse_proxy::pass(&self.client, &self.shared.registry, request, count).await
    }
}

fn unauthorized(headers: HeaderMap) -> Response {
    let errors = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]});
    (StatusCode::UNAUTHORIZED, headers, Json(errors)).into_response()
}
