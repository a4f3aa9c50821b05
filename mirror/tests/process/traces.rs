//! The spans that a collector receives; no request waits for a collector.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::hub::{Fault, Hub};
use crate::server::Server;
use crate::{LIMIT, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// Batches that no collector takes.
const AT_ONCE: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "20");

/// A collector that takes OTLP over HTTP.
#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    hangs: bool,
}

impl Collector {
    async fn start(hangs: bool) -> (Self, String) {
        Self::start_at("127.0.0.1:0".parse().unwrap(), hangs).await
    }

    async fn start_at(address: SocketAddr, hangs: bool) -> (Self, String) {
        let collector = Self {
            hangs,
            ..Self::default()
        };
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    fn batches(&self) -> Vec<ResourceSpans> {
        let requests = self.requests.lock();
        let decoded = requests
            .iter()
            .map(|(_, body)| ExportTraceServiceRequest::decode(body.clone()).unwrap());
        decoded.flat_map(|request| request.resource_spans).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let batches = self.batches().into_iter();
        batches
            .flat_map(|batch| batch.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect()
    }

    fn has(&self, name: &str) -> bool {
        self.spans().iter().any(|span| span.name == name)
    }

    /// The span of this name and this path.
    fn span(&self, name: &str, path: &str) -> Span {
        let spans = self.spans();
        let found = spans
            .iter()
            .find(|span| span.name == name && text(&span.attributes, "url.path").as_deref() == Some(path));
        found
            .unwrap_or_else(|| panic!("{name} {path} in {spans:#?}"))
            .clone()
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    collector.requests.lock().push((headers, body));
    if collector.hangs {
        std::future::pending::<()>().await;
    }
    StatusCode::OK
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    let AnyValue { value } = found.value.clone()?;
    value
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text),
        other => panic!("{key} is {other:?}"),
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(number) => Some(number),
        other => panic!("{key} is {other:?}"),
    }
}

/// Returns true if a span is below another one.
fn leads_to(spans: &[Span], span: &Span, ancestor: &Span) -> bool {
    let parent = spans.iter().find(|other| other.span_id == span.parent_span_id);
    parent.is_some_and(|parent| parent.span_id == ancestor.span_id || leads_to(spans, parent, ancestor))
}

async fn traced(hub: &Hub, environment: &[(&str, &str)]) -> (tempfile::TempDir, Server) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start_in(&home.path().join("cache"), hub, "", environment).await;
    (home, server)
}

fn traceparent() -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_and_upstream_spans_share_trace_without_secrets() {
    let (hub, (collector, endpoint)) = (Hub::start().await, Collector::start(false).await);
    hub.redirect_blobs(true);
    let digest = hub.push_blob("library/app", b"a layer");
    let (_home, server) = traced(&hub, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), AT_ONCE]).await;
    let path = format!("/v2/library/app/blobs/{digest}");
    let answer = server
        .get(
            &format!("{path}?token=hunter2"),
            &format!("{}authorization: Basic hunter2\r\n", traceparent()),
        )
        .await
        .unwrap();
    assert_eq!(answer.digest().await.unwrap(), digest);
    let name = "GET /v2/{name}/blobs/{digest}";
    until("the spans", || collector.has(name) && collector.has("fill")).await;

    let (spans, request) = (collector.spans(), collector.span(name, &path));
    assert_eq!(hex::encode(&request.parent_span_id), PARENT);
    assert_eq!(request.kind(), SpanKind::Server);
    let of = &request.attributes;
    assert_eq!(number(of, "http.response.status_code"), Some(200));
    assert_eq!(number(of, "http.response.body.size"), Some(7));
    assert_eq!(
        text(of, "http.route").as_deref(),
        Some("/v2/{name}/blobs/{digest}")
    );
    assert_eq!(text(of, "http.request.method").as_deref(), Some("GET"));
    assert_eq!(text(of, "url.scheme").as_deref(), Some("http"));
    assert_eq!(text(of, "client.address").as_deref(), Some("127.0.0.1"));
    assert_eq!(text(of, "registry_mirror.outcome").as_deref(), Some("miss"));

    let asked: Vec<_> = spans
        .iter()
        .filter(|span| span.kind() == SpanKind::Client)
        .collect();
    for url in [hub.url(), hub.storage_url()] {
        let found = asked.iter().find(|span| {
            text(&span.attributes, "url.full")
                .unwrap()
                .starts_with(url.as_str())
        });
        let asked = found.unwrap_or_else(|| panic!("a question to {url} in {spans:#?}"));
        assert!(leads_to(&spans, asked, &request), "{spans:#?}");
        assert!(number(&asked.attributes, "http.response.status_code").is_some());
    }
    assert!(spans.iter().all(|span| hex::encode(&span.trace_id) == TRACE));
    let batches = collector.batches();
    let service = &batches[0].resource.as_ref().unwrap().attributes;
    assert_eq!(text(service, "service.name").as_deref(), Some("registry-mirror"));
    for (_, body) in collector.requests.lock().iter() {
        let body = String::from_utf8_lossy(body);
        assert!(!body.contains("hunter2") && !body.contains("sig="), "{body}");
    }
    for seen in hub.seen("* ") {
        assert_eq!(seen.header("traceparent"), None, "upstreams don't hear of traces");
    }
}

/// The spans of failures have the error status, and those of refusals do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_spans_are_errors_and_refusals_are_not() {
    let (hub, (collector, endpoint)) = (Hub::start().await, Collector::start(false).await);
    hub.always("* broken", Fault::status(500));
    let (_home, server) = traced(&hub, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), AT_ONCE]).await;
    let (broken, absent) = ("/v2/library/broken/manifests/1", "/v2/library/absent/manifests/1");
    for path in [broken, absent] {
        server.get(path, "").await.unwrap();
    }
    let name = "GET /v2/{name}/manifests/{reference}";
    let received = || collector.spans().iter().filter(|span| span.name == name).count();
    until("both spans", || received() == 2).await;
    let status = |path| {
        let span = collector.span(name, path);
        (
            number(&span.attributes, "http.response.status_code"),
            span.status.map_or(SpanStatus::Unset, |status| status.code()),
        )
    };
    assert_eq!(status(broken), (Some(503), SpanStatus::Error));
    assert_eq!(status(absent), (Some(404), SpanStatus::Unset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_configures_traces() {
    let (hub, (collector, endpoint)) = (Hub::start().await, Collector::start(false).await);
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=other,service.namespace=team-a",
        ),
        ("OTEL_SERVICE_NAME", "pulls"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        AT_ONCE,
    ];
    let (_home, server) = traced(&hub, &environment).await;
    server.get("/v2/", "").await.unwrap();
    server.get("/v2/_catalog", &traceparent()).await.unwrap();
    until("the span that the client wants", || {
        collector.has("GET /v2/_catalog")
    })
    .await;
    assert!(
        !collector.has("GET /v2/"),
        "the collector gets no span of this request"
    );
    let batches = collector.batches();
    let service = &batches[0].resource.as_ref().unwrap().attributes;
    assert_eq!(text(service, "service.name").as_deref(), Some("pulls"));
    assert_eq!(text(service, "service.namespace").as_deref(), Some("team-a"));
    assert_eq!(collector.requests.lock()[0].0["x-key"], "abc");
}

/// The server sends the queued spans at its shutdown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_spans_are_sent_at_shutdown() {
    let (hub, (collector, endpoint)) = (Hub::start().await, Collector::start(false).await);
    let seldom = ("OTEL_BSP_SCHEDULE_DELAY", "3600000");
    let (_home, server) = traced(&hub, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), seldom]).await;
    server.get("/v2/", "").await.unwrap();
    assert!(server.end().await.success());
    assert!(collector.has("GET /v2/"));
}

/// Asks so often on one connection.
async fn ask(server: &Server, times: usize) {
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    for _ in 0..times {
        stream
            .write_all(b"GET /v2/ HTTP/1.1\r\nhost: m\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n{}") {
            let read = tokio::time::timeout(LIMIT, stream.read_buf(&mut answer)).await;
            assert!(read.unwrap().unwrap() > 0);
        }
    }
}

/// A collector that hangs delays no request and no shutdown, and costs no memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_collector_delays_nothing() {
    let (hub, (collector, endpoint)) = (Hub::start().await, Collector::start(true).await);
    let (_home, server) = traced(&hub, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), AT_ONCE]).await;
    ask(&server, 3_000).await;
    until("the collector's part", || !collector.spans().is_empty()).await;
    let before = server.memory();
    ask(&server, 6_000).await;
    let growth = server.memory().saturating_sub(before);
    assert!(
        growth < 4 << 20,
        "{growth} bytes for 6,000 spans that no collector takes"
    );
    until("word of what is lost", || server.said("spans are lost") > 0).await;
    assert_eq!(server.said("spans are lost"), 1, "it is said once");
    assert!(server.end().await.success());
}

/// The server finds a collector that starts later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_collector_is_found() {
    let hub = Hub::start().await;
    let place = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let endpoint = format!("http://{place}");
    let short = ("OTEL_EXPORTER_OTLP_TIMEOUT", "500");
    let (_home, server) = traced(
        &hub,
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), AT_ONCE, short],
    )
    .await;
    server.get("/v2/", "").await.unwrap();
    until("word of what is lost", || server.said("spans are lost") == 1).await;
    let (collector, _) = Collector::start_at(place, false).await;
    let again = async {
        while collector.spans().is_empty() {
            server.get("/v2/", "").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, again)
        .await
        .expect("it is asked again");
    until("word of it", || server.said("takes spans again") == 1).await;
}

/// The histograms of durations have the trace of a request as an exemplar, in `OpenMetrics` and not in the text format; a
/// server without a collector has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durations_have_traces_as_exemplars() {
    let (hub, (_collector, endpoint)) = (Hub::start().await, Collector::start(false).await);
    let digest = hub.push_blob("library/app", b"a layer");
    let path = format!("/v2/library/app/blobs/{digest}");
    for environment in [
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), AT_ONCE][..],
        &[],
    ] {
        let (_home, server) = traced(&hub, environment).await;
        let answer = server.get(&path, &traceparent()).await.unwrap();
        assert_eq!(answer.digest().await.unwrap(), digest);
        let scrape = async |accept: &str| {
            let answer = reqwest::Client::builder().no_proxy().build().unwrap();
            let request = answer.get(format!("http://{}/metrics", server.admin));
            let answer = request.header(http::header::ACCEPT, accept).send().await.unwrap();
            answer.text().await.unwrap()
        };
        let count = "registry_mirror_request_duration_seconds_count{upstream=";
        let mut open = String::new();
        let begun = std::time::Instant::now();
        while !open.contains(count) {
            assert!(begun.elapsed() < LIMIT, "{open}");
            open = scrape("application/openmetrics-text").await;
        }
        let exemplar = format!(" # {{trace_id=\"{TRACE}\"}} ");
        for family in ["request_duration", "first_byte", "upstream_request_duration"] {
            let prefix = format!("registry_mirror_{family}_seconds_bucket");
            let mut lines = open.lines().filter(|line| line.starts_with(&prefix));
            assert_eq!(
                lines.any(|line| line.contains(&exemplar)),
                !environment.is_empty(),
                "{family}: {open}"
            );
        }
        let text = scrape("text/plain").await;
        assert!(text.contains(count) && !text.contains("trace_id"), "{text}");
    }
}
