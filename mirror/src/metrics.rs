//! The metrics of the server (`/metrics` on the admin port).
//!
//! The server creates one [`Metrics`] at start; its clones share the counters.

mod labels;
mod usual;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use labels::{
    CredentialLabels, EvictionLabels, FillLabels, HostLabels, ReloadLabels, RequestLabels, SecondsLabels,
    SourceLabels, TokenLabels, UpstreamLabels,
};
pub use labels::{EvictionReason, FillResult, Kind, Outcome, Source, TokenResult};

use crate::name::Host;
use usual::{Answers, Usual};

/// From half a millisecond to half a minute.
const SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0,
];

/// The process' counters; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    usual: Arc<Usual>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<SecondsLabels, Histogram, fn() -> Histogram>,
    bytes: Family<SourceLabels, Counter>,
    /// All of them: every answer counts in one.
    from_cache: Counter,
    from_upstream: Counter,
    from_peer: Counter,
    fills: Family<FillLabels, Counter>,
    evictions: Family<EvictionLabels, Counter>,
    upstream: Family<UpstreamLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    rate_limit: Family<HostLabels, Gauge>,
    reloads: Family<ReloadLabels, Counter>,
    credentials: Family<CredentialLabels, Gauge>,
    /// Fills that run now.
    pub fills_active: Gauge,
    /// Requests that are being answered now.
    pub requests_active: Gauge,
    /// Bytes that the cache takes.
    pub cache_bytes: Gauge,
    /// Bytes that the cache may take; zero without a limit.
    pub cache_limit_bytes: Gauge,
    /// Blobs in the cache.
    pub cache_blobs: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// Counters that stand at zero.
    pub fn new() -> Self {
        let bytes = Family::<SourceLabels, Counter>::default();
        let from = |source| bytes.get_or_create_owned(&SourceLabels { source });
        let mut metrics = Self {
            from_cache: from(Source::Cache),
            from_upstream: from(Source::Upstream),
            from_peer: from(Source::Peer),
            registry: Arc::default(),
            usual: Arc::default(),
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            bytes,
            fills: Family::default(),
            evictions: Family::default(),
            upstream: Family::default(),
            tokens: Family::default(),
            rate_limit: Family::default(),
            reloads: Family::default(),
            credentials: Family::default(),
            fills_active: Gauge::default(),
            requests_active: Gauge::default(),
            cache_bytes: Gauge::default(),
            cache_limit_bytes: Gauge::default(),
            cache_blobs: Gauge::default(),
        };
        metrics.registry = Arc::new(metrics.registry());
        metrics
    }

    #[rustfmt::skip]
    fn registry(&self) -> Registry {
        let mut r = Registry::with_prefix("registry_mirror");
        r.register("requests", "Requests answered", self.requests.clone());
        r.register("request_duration_seconds", "Time to the end of the response", self.seconds.clone());
        r.register("requests_active", "Requests being answered", self.requests_active.clone());
        r.register("served_bytes", "Bytes of bodies sent to clients, by where they came from", self.bytes.clone());
        r.register("fills", "Downloads into the cache that ended", self.fills.clone());
        r.register("fills_active", "Downloads into the cache that run", self.fills_active.clone());
        r.register("evictions", "Blobs that left the cache", self.evictions.clone());
        r.register("cache_bytes", "Bytes that the cache takes", self.cache_bytes.clone());
        r.register("cache_limit_bytes", "Bytes that the cache may take; 0: no limit", self.cache_limit_bytes.clone());
        r.register("cache_blobs", "Blobs in the cache", self.cache_blobs.clone());
        r.register("upstream_requests", "Requests to upstreams, by the status of the answer or what went wrong", self.upstream.clone());
        r.register("upstream_rate_limit_remaining", "What the upstream last said is left", self.rate_limit.clone());
        r.register("token_fetches", "Requests to token servers", self.tokens.clone());
        r.register("reloads", "Configurations loaded while running", self.reloads.clone());
        r.register("credential_state", "1 for the state that an upstream's credential is in", self.credentials.clone());
        r
    }

    /// Counts a request when it ended, or its client left.
    pub fn request(&self, method: &Method, kind: Kind, code: StatusCode, outcome: Outcome, took: Duration) {
        let find = || Answers {
            count: self
                .requests
                .get_or_create_owned(&RequestLabels::new(method, kind, code, outcome)),
            seconds: self.seconds.get_or_create_owned(&SecondsLabels { kind, outcome }),
        };
        let observe = |answers: &Answers| {
            answers.count.inc();
            answers.seconds.observe(took.as_secs_f64());
        };
        match self.usual.place(method, kind, code, outcome) {
            Some(place) => observe(place.get_or_init(find)),
            None => observe(&find()),
        }
    }

    /// Counts bytes of a body that a client received.
    pub fn served(&self, source: Source, bytes: u64) {
        match source {
            Source::Cache => self.from_cache.inc_by(bytes),
            Source::Upstream => self.from_upstream.inc_by(bytes),
            Source::Peer => self.from_peer.inc_by(bytes),
        };
    }

    /// Counts a fill that ended.
    pub fn fill(&self, result: FillResult) {
        self.fills.get_or_create(&FillLabels { result }).inc();
    }

    /// Counts blobs that left the cache.
    pub fn evicted(&self, reason: EvictionReason, blobs: u64) {
        self.evictions
            .get_or_create(&EvictionLabels { reason })
            .inc_by(blobs);
    }

    /// Counts a response of an upstream.
    pub fn upstream_answer(&self, host: &Host, code: StatusCode) {
        self.upstream
            .get_or_create(&UpstreamLabels::answer(host, code))
            .inc();
    }

    /// Counts a failed request to an upstream: `timeout`, `connect`, `tls`, `cut`.
    pub fn upstream_failure(&self, host: &Host, what: &'static str) {
        self.upstream
            .get_or_create(&UpstreamLabels::failure(host, what))
            .inc();
    }

    /// Records the remaining requests of the rate limit of an upstream.
    pub fn rate_limit_remaining(&self, host: &Host, left: i64) {
        self.rate_limit.get_or_create(&HostLabels::new(host)).set(left);
    }

    /// Counts a token request.
    pub fn token(&self, host: &Host, result: TokenResult) {
        self.tokens.get_or_create(&TokenLabels::new(host, result)).inc();
    }

    /// Counts a reload, accepted or refused.
    pub fn reload(&self, accepted: bool) {
        self.reloads.get_or_create(&ReloadLabels::new(accepted)).inc();
    }

    /// Sets the state of an upstream's credential, one of `states`.
    pub fn credential(&self, host: &Host, now: &'static str, states: &[&'static str]) {
        for state in states {
            let labels = CredentialLabels::new(host, state);
            self.credentials
                .get_or_create(&labels)
                .set((*state == now).into());
        }
    }

    /// Encodes all metrics in the `OpenMetrics` text format.
    ///
    /// # Errors
    /// Only if a formatter fails, which writing to a `String` does not.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request is counted by code and outcome, and its time is kept.
    #[test]
    fn request_is_counted_with_its_time() {
        let metrics = Metrics::new();
        let took = Duration::from_millis(3);
        metrics
            .clone()
            .request(&Method::GET, Kind::Blob, StatusCode::OK, Outcome::Hit, took);
        let text = metrics.encode().unwrap();
        let line = r#"registry_mirror_requests_total{method="GET",kind="blob",code="200",outcome="hit"} 1"#;
        assert!(text.contains(line), "{text}");
        let line =
            r#"registry_mirror_request_duration_seconds_bucket{le="0.005",kind="blob",outcome="hit"} 1"#;
        assert!(text.contains(line), "{text}");
    }

    /// Methods that clients invent cannot create new series.
    #[test]
    fn unknown_methods_share_one_series() {
        let metrics = Metrics::new();
        for method in ["BREW", "STEEP"] {
            let method = method.parse().unwrap();
            let (kind, outcome) = (Kind::Other, Outcome::None);
            metrics.request(
                &method,
                kind,
                StatusCode::METHOD_NOT_ALLOWED,
                outcome,
                Duration::ZERO,
            );
        }
        assert!(metrics.encode().unwrap().contains(r#"method="other""#));
        assert_eq!(metrics.encode().unwrap().matches("requests_total{").count(), 1);
    }

    /// Exactly one state of a credential is set in the metrics.
    #[test]
    fn one_credential_state_is_set() {
        let (metrics, host) = (Metrics::new(), "docker.io".parse().unwrap());
        metrics.credential(&host, "pending", &["active", "pending"]);
        metrics.credential(&host, "active", &["active", "pending"]);
        let text = metrics.encode().unwrap();
        assert!(text.contains(r#"{host="docker.io",state="active"} 1"#), "{text}");
        assert!(text.contains(r#"{host="docker.io",state="pending"} 0"#), "{text}");
    }

    /// Every counter is exported under the prefix.
    #[test]
    fn counters_are_exported_with_prefix() {
        let (metrics, host) = (Metrics::new(), "quay.io".parse().unwrap());
        metrics.served(Source::Cache, 10);
        metrics.fill(FillResult::Stored);
        metrics.evicted(EvictionReason::Expired, 2);
        metrics.upstream_answer(&host, StatusCode::TOO_MANY_REQUESTS);
        metrics.upstream_failure(&host, "timeout");
        metrics.rate_limit_remaining(&host, 7);
        metrics.token(&host, TokenResult::Fetched);
        metrics.reload(true);
        let text = metrics.encode().unwrap();
        for line in [
            r#"registry_mirror_served_bytes_total{source="cache"} 10"#,
            r#"registry_mirror_fills_total{result="stored"} 1"#,
            r#"registry_mirror_evictions_total{reason="expired"} 2"#,
            r#"registry_mirror_upstream_requests_total{host="quay.io",code="429"} 1"#,
            r#"registry_mirror_upstream_requests_total{host="quay.io",code="timeout"} 1"#,
            r#"registry_mirror_upstream_rate_limit_remaining{host="quay.io"} 7"#,
            r#"registry_mirror_token_fetches_total{host="quay.io",result="fetched"} 1"#,
            r#"registry_mirror_reloads_total{result="accepted"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
