//! The HTTP server for probes, metrics and the pages of the mirrors.

mod page;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use mirror::metrics::Exposition;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The state that the endpoints report.
#[derive(Clone, Default)]
pub struct Health {
    ready: Arc<AtomicBool>,
    /// The metrics at `/metrics`.
    pub metrics: Arc<Metrics>,
}

impl Health {
    /// Reports that every watch has listed once, so that mirrors are reconciled.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }
}

/// Returns the router of `GET /livez`, `/readyz`, `/metrics`, and the pages `/` and `/mirrors/NAMESPACE/NAME`.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/", get(page::list))
        .route("/mirrors/{namespace}/{name}", get(page::detail))
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not every watch has listed yet")
    }
}

/// Answers with the metrics in the format that the scraper accepts. They are collected on a thread that may block, as the
/// collector of the process reads files.
async fn metrics(State(health): State<Health>, headers: HeaderMap) -> Response {
    let format = Exposition::negotiate(&headers);
    let collect = move || health.metrics.render().map(|metrics| format.convert(metrics));
    match tokio::task::spawn_blocking(collect).await {
        Ok(Ok(metrics)) => ([(header::CONTENT_TYPE, format.content_type())], metrics).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Serves until `shutdown`.
///
/// # Errors
/// Those of the listener.
pub async fn serve(listener: TcpListener, health: Health, shutdown: CancellationToken) -> io::Result<()> {
    axum::serve(listener, router(health))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::Request,
    };
    use tower::ServiceExt;

    use super::*;

    async fn get(health: &Health, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(health.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// The operator is alive ahead of being ready.
    #[tokio::test]
    async fn operator_is_alive_until_ready() {
        let health = Health::default();
        assert_eq!(get(&health, "/livez").await.0, StatusCode::OK);
        assert_eq!(get(&health, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_ready();
        assert_eq!(get(&health, "/readyz").await.0, StatusCode::OK);
    }

    /// The page lists no mirror before the watches have listed, and an unknown one has no page.
    #[tokio::test]
    async fn page_lists_mirrors() {
        let (status, text) = get(&Health::default(), "/").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("0 mirrors"), "{text}");
        assert_eq!(
            get(&Health::default(), "/mirrors/a/b").await.0,
            StatusCode::NOT_FOUND
        );
    }

    #[tokio::test]
    async fn metrics_are_in_the_text_format() {
        let (status, text) = get(&Health::default(), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            text.contains("# TYPE registry_mirror_operator_reconciles_total counter"),
            "{text}"
        );
    }
}
