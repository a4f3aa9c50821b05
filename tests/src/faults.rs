//! A connection to the API server that fails on demand: it dies after a number of writes, loses its watches, or holds a
//! write.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use parking_lot::{Mutex, MutexGuard};
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::{BoxError, Layer, Service};

/// The faults of a connection; clones share their state.
#[derive(Debug, Clone)]
pub struct Faults(Arc<State>);

#[derive(Debug)]
struct State {
    /// Writes that may still begin.
    writes: AtomicUsize,
    begun: AtomicUsize,
    dead: CancellationToken,
    /// Cut with every watch; then there is another one.
    watches: Mutex<CancellationToken>,
    gone: AtomicBool,
    answered_gone: AtomicUsize,
    held: Mutex<Option<Held>>,
}

/// The writes to a path that are not let through for now.
#[derive(Debug)]
struct Held {
    path: String,
    waiting: CancellationToken,
    released: CancellationToken,
}

impl Default for Faults {
    fn default() -> Self {
        Self::after(usize::MAX)
    }
}

impl Faults {
    /// Returns faults that end the connection before the write after these: that write, and all requests after it, get
    /// no answer.
    pub fn after(writes: usize) -> Self {
        Self(Arc::new(State {
            writes: AtomicUsize::new(writes),
            begun: AtomicUsize::new(0),
            dead: CancellationToken::new(),
            watches: Mutex::default(),
            gone: AtomicBool::new(false),
            answered_gone: AtomicUsize::new(0),
            held: Mutex::default(),
        }))
    }

    /// Holds the next write to a path that ends like this; completes once one waits, and gives what lets it through.
    pub async fn hold(&self, path: &str) -> DropGuard {
        let (waiting, released) = (CancellationToken::new(), CancellationToken::new());
        *self.held() = Some(Held {
            path: path.to_owned(),
            waiting: waiting.clone(),
            released: released.clone(),
        });
        waiting.cancelled().await;
        released.drop_guard()
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.held.lock()
    }

    /// Returns the token that this write waits for, if the test holds it back.
    fn released(&self, request: &Request<Body>) -> Option<CancellationToken> {
        let held = self
            .held()
            .take_if(|held| !request.method().is_safe() && request.uri().path().ends_with(&held.path))?;
        held.waiting.cancel();
        Some(held.released)
    }

    /// Creates a client with these faults.
    pub fn client(&self, config: Config) -> kube::Result<Client> {
        Ok(ClientBuilder::try_from(config)?.with_layer(self).build())
    }

    /// Completes once the connection is dead.
    pub async fn died(&self) {
        self.0.dead.cancelled().await;
    }

    /// Returns true if the connection is dead.
    pub fn is_dead(&self) -> bool {
        self.0.dead.is_cancelled()
    }

    /// Writes that got through so far.
    pub fn writes(&self) -> usize {
        self.0.begun.load(Ordering::SeqCst)
    }

    /// Cuts every watch. While they are `gone`, each new one fails because its resource version is too old (410).
    pub fn cut_watches(&self, gone: bool) {
        self.0.gone.store(gone, Ordering::SeqCst);
        let mut watches = self.0.watches.lock();
        std::mem::take(&mut *watches).cancel();
    }

    /// Returns the number of watches that failed with 410.
    pub fn answered_gone(&self) -> usize {
        self.0.answered_gone.load(Ordering::SeqCst)
    }

    fn may_write(&self) -> bool {
        let taken = self
            .0
            .writes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match taken {
            Ok(_) => {
                self.0.begun.fetch_add(1, Ordering::SeqCst);
            }
            Err(_) => self.0.dead.cancel(),
        }
        taken.is_ok()
    }

    fn watch(&self) -> CancellationToken {
        let watches = self.0.watches.lock();
        watches.clone()
    }
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty {
            faults: self.clone(),
            inner,
        }
    }
}

/// A service that suffers faults.
#[derive(Debug, Clone)]
pub struct Faulty<S> {
    faults: Faults,
    inner: S,
}

type Bytes = UnsyncBoxBody<bytes::Bytes, BoxError>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Bytes>, BoxError>> + Send>>;

impl<S, B> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Bytes>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let faults = self.faults.clone();
        if faults.is_dead() || !request.method().is_safe() && !faults.may_write() {
            return Box::pin(std::future::pending());
        }
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        if watches && faults.0.gone.load(Ordering::SeqCst) {
            faults.0.answered_gone.fetch_add(1, Ordering::SeqCst);
            return Box::pin(async { Ok(gone()) });
        }
        let cut = faults.watch();
        let released = faults.released(&request);
        // Nothing is sent before it is polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Some(released) = released {
                released.cancelled().await;
            }
            let answer = answer.await.map_err(Into::into)?;
            // The dead hear nothing.
            if faults.is_dead() {
                std::future::pending::<()>().await;
            }
            Ok(answer.map(|body| {
                if watches {
                    until(body, cut)
                } else {
                    body.map_err(Into::into).boxed_unsync()
                }
            }))
        })
    }
}

fn until<B>(body: B, cut: CancellationToken) -> Bytes
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let chunks = body.into_data_stream().take_until(cut.cancelled_owned());
    let frames = chunks.map(|chunk| chunk.map(http_body::Frame::data).map_err(Into::into));
    StreamBody::new(frames).boxed_unsync()
}

/// Returns the answer of an API server whose history does not reach back that far.
fn gone() -> Response<Bytes> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    let body = Full::from(status.to_string()).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::GONE;
    response
}
