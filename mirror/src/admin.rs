//! The admin port: is it alive, is it ready, how is it doing.

mod connections;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::Semaphore;

use crate::metrics::Exposition;
pub use connections::serve;
pub use status::{CacheStatus, ClientStatus, PeerStatus, Status, UpstreamStatus};

/// The most requests to the admin port that read the state of the disk at a time.
const MAX_READERS: usize = 8;

/// The state of a server that the admin port reports.
pub trait AdminState: Send + Sync + 'static {
    /// Returns `Ok` if load balancers may route clients to this server.
    ///
    /// # Errors
    /// The reason why not.
    fn ready(&self) -> Result<(), String>;

    /// Returns the configured checks that fail, by name, with the reason.
    fn unhealthy(&self) -> BTreeMap<String, String>;

    /// Returns the counters in the `OpenMetrics` text format.
    fn metrics(&self) -> String;

    /// Returns the status report, without counters and secrets.
    fn status(&self) -> Status;
}

/// Creates the service. `metrics` is the path of the counters; `None`: no counters.
pub fn service<S: AdminState>(subject: Arc<S>, metrics: Option<&str>) -> Router {
    let mut router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready::<S>))
        .route("/debug/health", get(health::<S>))
        .route("/status", get(status::<S>));
    // None of those, and no pattern: configuration is refused where it is.
    if let Some(path) = metrics {
        router = router.route(path, get(counters::<S>));
    }
    router.with_state(subject)
}

/// Reads the state on a thread that may block, since it asks the disk: a disk that hangs must not keep `/livez` from its
/// answer. A few readers at a time, as probes come again and again.
async fn read<S: AdminState, T: Send + 'static>(
    subject: Arc<S>,
    read: impl FnOnce(&S) -> T + Send + 'static,
) -> Result<T, StatusCode> {
    static READERS: Semaphore = Semaphore::const_new(MAX_READERS);
    let stopping = StatusCode::SERVICE_UNAVAILABLE;
    let permit = READERS.acquire().await.map_err(|_| stopping)?;
    let work = move || {
        // Until the disk answered, also where the client left.
        let _permit = permit;
        read(&subject)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| stopping)
}

async fn ready<S: AdminState>(State(subject): State<Arc<S>>) -> Response {
    match read(subject, S::ready).await {
        Ok(Ok(())) => "ok\n".into_response(),
        Ok(Err(reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
        Err(stopping) => stopping.into_response(),
    }
}

/// Answers as Distribution does: 503 with the checks that fail, else 200 with an empty object.
async fn health<S: AdminState>(State(subject): State<Arc<S>>) -> Response {
    let failing = subject.unhealthy();
    let code = if failing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(failing)).into_response()
}

/// Answers with the metrics in the format that the scraper accepts.
async fn counters<S: AdminState>(State(subject): State<Arc<S>>, headers: HeaderMap) -> Response {
    let format = Exposition::negotiate(&headers);
    match read(subject, move |subject| format.convert(subject.metrics())).await {
        Ok(metrics) => ([(header::CONTENT_TYPE, format.content_type())], metrics).into_response(),
        Err(stopping) => stopping.into_response(),
    }
}

async fn status<S: AdminState>(State(subject): State<Arc<S>>) -> Result<Json<Status>, StatusCode> {
    read(subject, S::status).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    struct Fake(Result<(), String>);

    impl AdminState for Fake {
        fn ready(&self) -> Result<(), String> {
            self.0.clone()
        }

        fn unhealthy(&self) -> BTreeMap<String, String> {
            let failing = self.0.clone().err();
            failing
                .into_iter()
                .map(|reason| ("storage".to_owned(), reason))
                .collect()
        }

        fn metrics(&self) -> String {
            "a 1\n# EOF\n".to_owned()
        }

        fn status(&self) -> Status {
            Status {
                version: "1".to_owned(),
                ..Status::default()
            }
        }
    }

    async fn get(subject: Fake, metrics: Option<&str>, path: &str) -> (u16, String) {
        let service = service(Arc::new(subject), metrics);
        let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    fn bad() -> Fake {
        Fake(Err("draining".to_owned()))
    }

    /// A subject whose disk hangs until the test ends.
    struct Hanging(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

    impl AdminState for Hanging {
        fn ready(&self) -> Result<(), String> {
            let _ = self.0.lock().unwrap().recv();
            Ok(())
        }

        fn unhealthy(&self) -> BTreeMap<String, String> {
            BTreeMap::new()
        }

        fn metrics(&self) -> String {
            String::new()
        }

        fn status(&self) -> Status {
            Status::default()
        }
    }

    /// The liveness endpoint answers while the disk hangs, on the thread that would wait for it.
    #[tokio::test]
    async fn livez_answers_while_the_disk_hangs() {
        let (end, hangs) = std::sync::mpsc::channel();
        let service = service(Arc::new(Hanging(hangs.into())), None);
        let request = |path: &str| axum::http::Request::get(path).body(Body::empty()).unwrap();
        let waits = tokio::spawn(service.clone().oneshot(request("/readyz")));
        tokio::task::yield_now().await;
        let alive = service.oneshot(request("/livez")).await.unwrap();
        assert_eq!(alive.status(), StatusCode::OK);
        drop(end);
        assert_eq!(waits.await.unwrap().unwrap().status(), StatusCode::OK);
    }

    /// The liveness endpoint succeeds while the readiness endpoint fails.
    #[tokio::test]
    async fn livez_passes_while_not_ready() {
        assert_eq!(get(bad(), None, "/livez").await.0, 200);
        assert_eq!(get(bad(), None, "/readyz").await, (503, "draining\n".to_owned()));
        assert_eq!(get(Fake(Ok(())), None, "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn health_names_the_checks_that_fail() {
        assert_eq!(
            get(Fake(Ok(())), None, "/debug/health").await,
            (200, "{}".to_owned())
        );
        let (code, body) = get(bad(), None, "/debug/health").await;
        assert_eq!((code, body.as_str()), (503, r#"{"storage":"draining"}"#));
    }

    /// The metrics are served at the configured path, and nowhere if none is configured.
    #[tokio::test]
    async fn metrics_are_served_at_configured_path() {
        assert_eq!(get(bad(), Some("/m"), "/m").await, (200, "a 1\n".to_owned()));
        assert_eq!(get(bad(), None, "/metrics").await.0, 404);
    }

    #[tokio::test]
    async fn status_is_json() {
        let (code, body) = get(bad(), None, "/status").await;
        let status: Status = serde_json::from_str(&body).unwrap();
        assert_eq!((code, status.version.as_str()), (200, "1"));
    }
}
