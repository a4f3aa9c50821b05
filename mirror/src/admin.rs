//! The admin port: is it alive, is it ready, how is it doing.

mod connections;
mod content;
mod history;
mod numbers;
mod page;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::Semaphore;

use crate::metrics::{Exposition, Totals};
use crate::request_host::PageHosts;
use crate::store::ImageRequest;
pub use connections::serve;
pub use content::{ContentReport, ContentRequest, FillStatus, ImageStatus};
pub use history::{History, HistoryReport, SAMPLE_INTERVAL};
pub use numbers::{bytes, hit_ratio, percent, saved_bytes, signed_bytes};
use page::PageContent;
pub use page::{REFRESH_SECONDS, STYLE};
pub use status::{
    BucketStatus, CacheStatus, ClientStatus, PeerStatus, Status, TrafficStatus, UpstreamStatus,
};

/// The most requests to the admin port that read the state of the disk at a time.
const MAX_READERS: usize = 8;

/// The headers of the page: it runs no script, is part of no other page, and is not kept.
pub const PAGE_HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The state of a server that the admin port reports.
pub trait AdminState: Send + Sync + 'static {
    /// Returns `Ok` if load balancers may route clients to this server.
    ///
    /// # Errors
    /// The reason why not.
    fn ready(&self) -> Result<(), String>;

    /// Returns the names by which browsers open the pages.
    fn page_hosts(&self) -> PageHosts;

    /// Returns the configured checks that fail, by name, with the reason.
    fn unhealthy(&self) -> BTreeMap<String, String>;

    /// Returns the counters in the `OpenMetrics` text format.
    fn metrics(&self) -> String;

    /// Returns the status report, without counters and secrets.
    fn status(&self) -> Status;

    /// Returns the downloads into the cache that run.
    fn fills(&self) -> Vec<FillStatus>;

    /// Returns the traffic of each upstream since the start, by its name.
    fn traffic(&self) -> BTreeMap<String, Totals>;

    /// Returns the report on the last 24 hours.
    fn history(&self) -> HistoryReport;

    /// Returns the cached images.
    fn content(&self, query: ImageRequest) -> impl Future<Output = Result<ContentReport, String>> + Send;
}

/// Creates the service. `metrics` is the path of the counters; `None`: no counters. `page` adds the page and its reports.
pub fn service<S: AdminState>(subject: Arc<S>, metrics: Option<&str>, page: bool) -> Router {
    let mut router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready::<S>))
        .route("/debug/health", get(health::<S>));
    // None of those, and no pattern: configuration is refused where it is.
    if let Some(path) = metrics {
        router = router.route(path, get(counters::<S>));
    }
    let mut pages = Router::new().route("/status", get(status::<S>));
    if page {
        pages = pages
            .route("/", get(overview::<S>))
            .route("/status/content", get(content::<S>))
            .route("/status/fills", get(fills::<S>))
            .route("/status/history", get(history::<S>));
    }
    let guard = middleware::from_fn_with_state(Arc::clone(&subject), check_host::<S>);
    router.merge(pages.route_layer(guard)).with_state(subject)
}

/// Refuses requests for a page that name another host than one of the pages. Probes and metrics have no such check.
async fn check_host<S: AdminState>(State(subject): State<Arc<S>>, request: Request, next: Next) -> Response {
    if subject.page_hosts().admit(request.headers(), request.uri()) {
        return next.run(request).await;
    }
    misdirected("admin.hosts (in a cluster: --page-host of the operator)")
}

/// Returns the response to a request for a page by a name that is no host of the pages; `setting` has these names.
pub fn misdirected(setting: &str) -> Response {
    let message = format!(
        "the name in this request is no host of the pages: use an IP address or localhost, or add the name to {setting}\n"
    );
    (StatusCode::MISDIRECTED_REQUEST, message).into_response()
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

async fn history<S: AdminState>(State(subject): State<Arc<S>>) -> Json<HistoryReport> {
    Json(subject.history())
}

async fn fills<S: AdminState>(State(subject): State<Arc<S>>) -> Json<Vec<FillStatus>> {
    Json(subject.fills())
}

async fn content<S: AdminState>(
    State(subject): State<Arc<S>>,
    Query(parameters): Query<ContentRequest>,
) -> Response {
    match parameters.query() {
        Err(reason) => (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
        Ok(query) => match subject.content(query).await {
            Ok(report) => Json(report).into_response(),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
        },
    }
}

/// Answers with the page. The browser runs no script of it, and loads it again by itself unless `refresh=off`.
async fn overview<S: AdminState>(
    State(subject): State<Arc<S>>,
    Query(parameters): Query<ContentRequest>,
    RawQuery(query): RawQuery,
) -> Response {
    let content = match parameters.query() {
        Ok(query) => subject.content(query).await,
        Err(reason) => Err(reason),
    };
    let render = move |subject: &S| {
        page::render(&PageContent {
            status: subject.status(),
            not_ready: subject.ready().err(),
            upstreams: subject.traffic(),
            history: subject.history(),
            fills: subject.fills(),
            content,
            parameters,
        })
    };
    let page = match read(subject, render).await {
        Ok(page) => page,
        Err(stopping) => return stopping.into_response(),
    };
    let mut response = ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response();
    let headers = response.headers_mut();
    for (name, value) in PAGE_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.extend(refresh_header(query.as_deref()));
    response
}

/// Returns the header by which a browser loads a page again, unless its query has `refresh=off`.
pub fn refresh_header(query: Option<&str>) -> Option<(HeaderName, HeaderValue)> {
    let mut pairs = query.unwrap_or_default().split('&');
    let is_off = pairs.any(|pair| pair == "refresh=off");
    (!is_off).then(|| (header::REFRESH, HeaderValue::from_static(REFRESH_SECONDS)))
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

        fn page_hosts(&self) -> PageHosts {
            PageHosts::new(["mirror.example.com".to_owned()]).unwrap()
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

        fn fills(&self) -> Vec<FillStatus> {
            Vec::new()
        }

        fn traffic(&self) -> BTreeMap<String, Totals> {
            BTreeMap::new()
        }

        fn history(&self) -> HistoryReport {
            History::default().report(&Totals::default())
        }

        async fn content(&self, query: ImageRequest) -> Result<ContentReport, String> {
            Ok(ContentReport {
                total: query.limit,
                ..ContentReport::default()
            })
        }
    }

    async fn get(subject: Fake, metrics: Option<&str>, path: &str) -> (u16, String) {
        let service = service(Arc::new(subject), metrics, metrics.is_some());
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
    struct Hanging(parking_lot::Mutex<std::sync::mpsc::Receiver<()>>);

    impl AdminState for Hanging {
        fn fills(&self) -> Vec<FillStatus> {
            Vec::new()
        }

        fn traffic(&self) -> BTreeMap<String, Totals> {
            BTreeMap::new()
        }

        fn history(&self) -> HistoryReport {
            History::default().report(&Totals::default())
        }

        async fn content(&self, _: ImageRequest) -> Result<ContentReport, String> {
            Ok(ContentReport::default())
        }

        fn ready(&self) -> Result<(), String> {
            let _ = self.0.lock().recv();
            Ok(())
        }

        fn page_hosts(&self) -> PageHosts {
            PageHosts::default()
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
        let service = service(Arc::new(Hanging(hangs.into())), None, false);
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

    /// Pages are answered by the names of the setting and by no other name; probes and metrics by every name.
    #[tokio::test]
    async fn rebound_name_reads_no_page() {
        let service = service(Arc::new(Fake(Ok(()))), Some("/metrics"), true);
        let code = async |path: &str, host: &str| {
            let request = axum::http::Request::get(path).header(header::HOST, host);
            let request = request.body(Body::empty()).unwrap();
            service.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        for path in [
            "/",
            "/status",
            "/status/content",
            "/status/fills",
            "/status/history",
        ] {
            assert_eq!(code(path, "evil.example:5001").await, 421, "{path}");
            assert_eq!(code(path, "mirror.example.com").await, 200, "{path}");
            assert_eq!(code(path, "127.0.0.1:5001").await, 200, "{path}");
        }
        for path in ["/livez", "/readyz", "/debug/health", "/metrics"] {
            assert_eq!(code(path, "scraped.example:5001").await, 200, "{path}");
        }
    }

    /// The page and its reports are there only if they are on, and a malformed query is refused.
    #[tokio::test]
    async fn page_is_served_unless_turned_off() {
        for (path, code) in [
            ("/", 200),
            ("/?sort=nothing", 200),
            ("/status/history", 200),
            ("/status/fills", 200),
            ("/status/content?sort=name&n=7&q=x", 200),
            ("/status/content?sort=nothing", 400),
            ("/status/content?n=many", 400),
        ] {
            assert_eq!(get(Fake(Ok(())), Some("/metrics"), path).await.0, code, "{path}");
            assert_eq!(get(Fake(Ok(())), None, path).await.0, 404, "{path}");
        }
        let (_, body) = get(bad(), Some("/metrics"), "/").await;
        assert!(body.contains("not ready") && body.contains("draining"), "{body}");
    }
}
