//! A node agent that answers as a test wants: a report, or a fault.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The size of a report that no client should read to its end.
const HUGE: usize = 64 << 20;

/// An answer of an agent.
#[derive(Clone, Debug)]
pub enum AgentAnswer {
    /// A report.
    Report(Value),
    /// No answer.
    Hang,
    /// A document that is no report.
    Garbage,
    /// A report of 64 MiB.
    Huge,
    /// An error of the server.
    Error,
}

/// A node agent. Any number of nodes may have it.
#[derive(Debug)]
pub struct FakeAgent {
    address: SocketAddr,
    answer: Arc<Mutex<AgentAnswer>>,
    serving: JoinHandle<()>,
}

impl FakeAgent {
    /// Listens on a free port of a loopback address.
    ///
    /// # Errors
    /// Those of the listener.
    pub async fn start(ip: &str, answer: AgentAnswer) -> io::Result<Self> {
        let listener = TcpListener::bind(format!("{ip}:0")).await?;
        let address = listener.local_addr()?;
        let answer = Arc::new(Mutex::new(answer));
        let router = Router::new()
            .route("/status", get(status))
            .with_state(Arc::clone(&answer));
        let serving = tokio::spawn(async move {
            // Ends with the test.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            answer,
            serving,
        })
    }

    /// Returns the address of `/status`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the answer.
    pub fn set(&self, answer: AgentAnswer) {
        *self.answer.lock() = answer;
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl AgentAnswer {
    /// Returns the report of an agent that manages mirrors, with the state of each.
    pub fn states(namespace: &str, states: &[(&str, &str)]) -> Self {
        let mirrors: Vec<_> = states
            .iter()
            .map(|(name, state)| {
                json!({
                    "namespace": namespace, "name": name, "state": state, "since": "2026-01-01T00:00:00Z", "message": "",
                })
            })
            .collect();
        Self::Report(json!({
            "version": "0.1.0", "node": "node-0", "runtime": "containerd", "directory": "/etc/containerd/certs.d",
            "addresses": [], "mirrors": mirrors,
        }))
    }
}

async fn status(State(answer): State<Arc<Mutex<AgentAnswer>>>) -> Response {
    let answer = answer.lock().clone();
    match answer {
        AgentAnswer::Report(report) => axum::Json(report).into_response(),
        AgentAnswer::Hang => std::future::pending().await,
        AgentAnswer::Garbage => "<html>".into_response(),
        AgentAnswer::Huge => Body::from(vec![b' '; HUGE]).into_response(),
        AgentAnswer::Error => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
