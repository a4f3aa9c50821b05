//! Traces: a span for each request to the server and to an upstream, sent to the collector that the environment names
//! (OTLP over HTTP, `OTEL_EXPORTER_OTLP_ENDPOINT`).
//!
//! Modules create spans with `tracing` and `TARGET`. Without a collector that target is disabled, and a span costs
//! one check of a flag. A collector that is slow, hangs or is gone costs spans, never time or memory.

mod collector;
mod queue;

use std::env;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{TraceContextExt, TraceId, TracerProvider};
use opentelemetry_otlp::{
    ExporterBuildError, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, Protocol,
    SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use collector::Collector;
use queue::Queue;

/// The target of all spans: the log leaves them out by it, and traces leave out all else.
pub(crate) const TARGET: &str = "span";
/// The service name, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` set another one.
const SERVICE: &str = "registry-mirror";
/// The time limit for sending the last spans at the end of the process.
const FLUSH: Duration = Duration::from_secs(5);

/// Why there are no traces although the environment wants some.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The variables name something that the server cannot do.
    #[error(
        "{0}; OTEL_EXPORTER_OTLP_ENDPOINT wants the URL of a collector that takes OTLP over HTTP, such as http://collector:4318"
    )]
    Exporter(#[from] ExporterBuildError),
    /// The HTTP client for the collector can't be made.
    #[error(transparent)]
    Client(#[from] reqwest::Error),
    /// The TLS settings of that client can't be made.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// The way of spans to the collector.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Traces as the environment wants them; `None` where it names no collector. Needs a runtime.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        if !is_wanted(|name| env::var(name).ok()) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(Collector::new(Handle::current())?)
            .build()?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(Queue::to(exporter))
            .build();
        Ok(Some(Self { provider }))
    }

    /// Returns the `tracing` layer that exports spans.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }

    /// Sends what is left, for at most five seconds.
    pub async fn end(self) {
        // A failure here has no remedy; the queue has logged lost spans.
        let _ = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH)).await;
    }
}

/// The names are OpenTelemetry's (its specification, "Environment Variable Specification").
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name| variable(name).is_some_and(|value| !value.trim().is_empty());
    let says = |name, what: &str| variable(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(what));
    let off = says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none");
    !off && (set(OTEL_EXPORTER_OTLP_ENDPOINT) || set(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT))
}

/// Returns the resource that identifies this server in spans.
fn resource() -> Resource {
    // The name of the Pod, which distinguishes the servers of one mirror.
    let instance = env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let resource = Resource::builder_empty()
        .with_service_name(SERVICE)
        .with_attributes(instance.map(|name| KeyValue::new("service.instance.id", name)))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// Returns `true` if the environment names a collector for spans.
pub(crate) fn are_exported() -> bool {
    is_wanted(|name| env::var(name).ok())
}

/// Returns a span of work that may outlive its request: part of the trace of the request, but not of its time. `span`
/// must be created without a parent.
pub(crate) fn detached(span: Span) -> Span {
    if !span.is_disabled() {
        // Fails only for spans that began already.
        let _ = span.set_parent(Span::current().context());
    }
    span
}

/// Returns the trace of a span that a collector gets; `None` without a collector, and for traces that are not sampled.
pub(crate) fn sampled_trace(span: &Span) -> Option<TraceId> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    (context.is_valid() && context.is_sampled()).then(|| context.trace_id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    /// The OTEL variables of the environment decide if the server exports traces.
    #[test_case(&[] => false; "nothing set")]
    #[test_case(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")] => false; "set to nothing")]
    #[test_case(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")] => true; "a collector")]
    #[test_case(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318/v1/traces")] => true; "a collector of traces")]
    #[test_case(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), ("OTEL_SDK_DISABLED", "true")] => false; "disabled")]
    #[test_case(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), ("OTEL_TRACES_EXPORTER", "none")] => false; "no exporter")]
    fn environment_enables_traces(set: &[(&str, &str)]) -> bool {
        is_wanted(|name| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }
}
