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
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use mirror::{admin, metrics::Exposition, request_host::PageHosts};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The state that the endpoints report.
#[derive(Clone, Default)]
pub struct Health {
    ready: Arc<AtomicBool>,
    /// The metrics at `/metrics`.
    pub metrics: Arc<Metrics>,
    page_hosts: Arc<PageHosts>,
}

impl Health {
    /// Creates the state of an operator whose pages browsers open by these names.
    pub fn new(page_hosts: PageHosts) -> Self {
        Self {
            page_hosts: Arc::new(page_hosts),
            ..Self::default()
        }
    }

    /// Reports that every watch has listed once, so that mirrors are reconciled.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }
}

/// Returns the router of `GET /livez`, `/readyz`, `/metrics`, and the pages `/` and `/mirrors/NAMESPACE/NAME`.
pub fn router(health: Health) -> Router {
    let pages = Router::new()
        .route("/", get(page::list))
        .route("/mirrors/{namespace}/{name}", get(page::detail))
        .route_layer(middleware::from_fn_with_state(health.clone(), check_host));
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(pages)
        .with_state(health)
}

/// Refuses requests for a page that name another host than one of the pages.
async fn check_host(State(health): State<Health>, request: Request, next: Next) -> Response {
    if health.page_hosts.admit(request.headers(), request.uri()) {
        return next.run(request).await;
    }
    admin::misdirected("--page-host of the operator (extraArgs of the chart)")
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

    /// Pages are answered by the names of the setting and by no other name; probes and metrics by every name.
    #[tokio::test]
    async fn rebound_name_reads_no_page_of_the_operator() {
        let hosts = PageHosts::new(["mirrors.example.com".to_owned()]).unwrap();
        let health = Health::new(hosts);
        let code = async |path: &str, host: &str| {
            let request = Request::get(path).header(header::HOST, host);
            let request = request.body(Body::empty()).unwrap();
            let response = router(health.clone()).oneshot(request).await.unwrap();
            response.status().as_u16()
        };
        assert_eq!(code("/", "evil.example").await, 421);
        assert_eq!(code("/mirrors/a/b", "evil.example").await, 421);
        assert_eq!(code("/", "mirrors.example.com").await, 200);
        assert_eq!(code("/", "localhost:8080").await, 200);
        assert_eq!(code("/livez", "evil.example").await, 200);
        assert_eq!(code("/metrics", "evil.example").await, 200);
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
