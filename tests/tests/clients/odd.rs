//! A registry of one image that says on demand what no registry should.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use testbed::image::Layout;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// Beyond what a mirror can hold back, so that clients get a part before anybody knows.
const LARGE: usize = 300_000;

/// The answers of the server to all requests.
#[derive(Clone, Debug)]
pub(crate) enum Says {
    /// The content itself.
    Truth,
    /// This, with these headers.
    This(u16, &'static [(&'static str, &'static str)], String),
    /// Large blobs with one bit changed near their start.
    WrongBlobs,
    /// No answer.
    Nothing,
}

impl Says {
    /// A registry's words.
    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body = json!({"errors": [{"code": code, "message": "so says the registry"}]});
        Self::This(status, &[("content-type", "application/json")], body.to_string())
    }
}

pub(crate) struct Odd {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    layout: PathBuf,
    tagged: String,
    says: Mutex<Says>,
}

impl Odd {
    /// Has the image with this tag, under every name.
    pub(crate) async fn start(layout: &Layout, tag: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            layout: layout.path().to_owned(),
            tagged: layout.digest(tag).expect("a tag").to_owned(),
            says: Mutex::new(Says::Truth),
        });
        let app = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move {
            // It runs for ever.
            drop(axum::serve(listener, app).await);
        });
        Self {
            address,
            shared,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn says(&self, what: Says) {
        *self.shared.says.lock() = what;
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let says = shared.says.lock().clone();
    let (path, head) = (request.uri().path().to_owned(), request.method() == Method::HEAD);
    let wrong = matches!(says, Says::WrongBlobs);
    match says {
        Says::Nothing => std::future::pending().await,
        Says::This(status, headers, body) => {
            let mut answer = Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(*name, *value);
            }
            let body = if head { Body::empty() } else { Body::from(body) };
            answer.body(body).expect("an answer")
        }
        Says::Truth | Says::WrongBlobs => shared.truth(&path, head, wrong),
    }
}

impl Shared {
    fn truth(&self, path: &str, head: bool, wrong: bool) -> Response {
        let (before, last) = path.rsplit_once('/').unwrap_or_default();
        let manifest = before.ends_with("/manifests");
        if !manifest && !before.ends_with("/blobs") {
            return Response::new(Body::from("{}"));
        }
        let digest = if last.starts_with("sha256:") {
            last
        } else {
            &self.tagged
        };
        let hex = digest.trim_start_matches("sha256:");
        let Ok(mut bytes) = std::fs::read(self.layout.join("blobs/sha256").join(hex)) else {
            let mut answer = Response::new(Body::from(r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return answer;
        };
        let kind = manifest.then(|| serde_json::from_slice::<Value>(&bytes).unwrap_or_default());
        let kind = kind.and_then(|read| Some(read["mediaType"].as_str()?.to_owned()));
        if wrong && !manifest && bytes.len() > LARGE {
            bytes[LARGE] ^= 1;
        }
        let answer = Response::builder()
            .header(
                "content-type",
                kind.as_deref().unwrap_or("application/octet-stream"),
            )
            .header("content-length", bytes.len())
            .header("docker-content-digest", digest);
        let body = if head { Bytes::new() } else { Bytes::from(bytes) };
        answer.body(Body::from(body)).expect("an answer")
    }
}
