//! Connections to the admin port: none is kept for long without a question.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The time limit for the next request header of a client. Clients that scrape less often reconnect.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after an accept error that closed connections may repair (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most connections at once: a flood of them must not take the descriptors that clients are served with.
const MAX_CONNECTIONS: usize = 64;

/// Answers until `end`. Beyond 64 connections the oldest is closed.
pub async fn serve(listener: TcpListener, service: Router, end: CancellationToken) {
    let mut open = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                open.retain(|connection: &AbortHandle| !connection.is_finished());
                if open.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(tokio::spawn(answer(stream, service.clone())).abort_handle());
            }
            Err(error) => {
                warn!(%error, "a connection to the admin port could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, service: Router) {
    let answered = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
    if let Err(error) = answered {
        debug!(%error, "a connection to the admin port ended early");
    }
}
