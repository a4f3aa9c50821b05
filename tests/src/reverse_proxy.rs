//! The base of servers that stand between a program under test and a real server, and count, refuse or damage.

use std::io;
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::tls_listener::TlsListener;

/// A thread that serves with a runtime of its own: its end cuts all connections at once, and the end of a test cuts
/// none. Dropping it ends it.
pub(crate) struct ServerThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Serves `app` at this listener.
    pub(crate) fn start(listener: TcpListener, tls: Option<TlsAcceptor>, app: Router) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = run(listener, tls, app) => {}
                    _ = stopped => {}
                }
            });
            // The runtime is dropped here, with all connections.
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        // An error is a panic of the thread, which has printed it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, app: Router) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    match tls {
        // Both run for ever.
        Some(acceptor) => drop(axum::serve(TlsListener::new(listener, acceptor), app).await),
        None => drop(axum::serve(listener, app).await),
    }
}

/// Returns a client that passes redirects on.
pub(crate) fn client() -> io::Result<reqwest::Client> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(io::Error::other)
}

/// Sends a request to `origin`, and returns the answer byte for byte. `on_bytes` gets each part of its body.
pub(crate) async fn pass(
    client: &reqwest::Client,
    origin: &str,
    request: Request,
    mut on_bytes: impl FnMut(&Bytes) + Send + 'static,
) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts
        .uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let has_body = parts.headers.contains_key(CONTENT_LENGTH);
    let mut onward = client
        .request(parts.method, format!("{origin}{path}"))
        .headers(end_to_end(parts.headers));
    if has_body {
        onward = onward.body(reqwest::Body::wrap_stream(body.into_data_stream()));
    }
    match onward.send().await {
        Ok(answer) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = answer.status();
            *response.headers_mut() = end_to_end(answer.headers().clone());
            let bytes = answer.bytes_stream().inspect_ok(move |bytes| on_bytes(bytes));
            *response.body_mut() = Body::from_stream(bytes);
            response
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    headers
}
