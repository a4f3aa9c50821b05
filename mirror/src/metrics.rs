//! The metrics of the server (`/metrics` on the admin port).
//!
//! The server creates one [`Metrics`] at start; its clones share the counters. docs/reference/metrics.md lists all.

mod durations;
mod exposition;
mod labels;
mod process;
mod totals;
mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use exposition::Exposition;
use labels::{BuildLabels, EvictionLabels, FillFailureLabels, FillLabels, ReloadLabels};
pub use labels::{EvictionReason, FillResult, Kind, Outcome, Source, TokenResult};
pub use process::ProcessCollector;
pub use totals::Totals;
use upstream::MetricsSet;
pub use upstream::{RequestRecord, UpstreamMetrics, UpstreamSnapshot};

use crate::name::Host;

/// The labels of a series that exists only at times.
type NoLabels = [(&'static str, &'static str); 0];

/// The buckets of the age of evicted content in seconds: from a minute to twelve weeks.
const AGES: [f64; 11] = [
    60.0,
    600.0,
    3_600.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    604_800.0,
    1_209_600.0,
    2_419_200.0,
    7_257_600.0,
];

/// The metrics of the process; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    families: MetricsSet,
    upstreams: Arc<ArcSwap<Vec<Arc<UpstreamMetrics>>>>,
    /// The metrics of requests that concern no upstream.
    no_upstream: Arc<UpstreamMetrics>,
    fills: Family<FillLabels, Gauge>,
    fills_stored: Counter,
    fill_failures: Family<FillFailureLabels, Counter>,
    evictions: Evictions,
    eviction_age: Histogram,
    bucket_evictions: Evictions,
    reloads: Family<ReloadLabels, Counter>,
    certificate_not_after: Family<NoLabels, Gauge>,
    last_reload_successful: Gauge,
    /// Held while gauges are set and all are encoded.
    scrape: Arc<Mutex<()>>,
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

/// The blobs and bytes that left a store, by the reason.
#[derive(Clone, Debug, Default)]
struct Evictions {
    blobs: Family<EvictionLabels, Counter>,
    bytes: Family<EvictionLabels, Counter>,
}

impl Evictions {
    fn add(&self, reason: EvictionReason, blobs: u64, bytes: u64) {
        let labels = EvictionLabels { reason };
        self.blobs.get_or_create(&labels).inc_by(blobs);
        self.bytes.get_or_create(&labels).inc_by(bytes);
    }
}

/// The values of the gauges that are read for each scrape.
#[derive(Clone, Debug, Default)]
pub struct MetricsSnapshot {
    /// The end of the validity of the serving certificate, in seconds since 1970.
    pub certificate_not_after: Option<i64>,
    /// `false` if the last configuration was refused.
    pub is_configured: bool,
    /// The state of each upstream.
    pub upstreams: Vec<(Host, UpstreamSnapshot)>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates metrics whose counters are 0.
    pub fn new() -> Self {
        Self::with_exemplars(false)
    }

    /// Creates metrics like [`Metrics::new`]; with exemplars, each bucket of a duration names the trace of its last
    /// observation, which costs a lock for each.
    pub fn with_exemplars(has_exemplars: bool) -> Self {
        let families = MetricsSet::new(has_exemplars);
        let no_upstream = UpstreamMetrics::new("", families.clone());
        let fills = Family::<FillLabels, Gauge>::default();
        let mut metrics = Self {
            registry: Arc::default(),
            families,
            upstreams: Arc::default(),
            no_upstream: Arc::new(no_upstream),
            fills_stored: Counter::default(),
            fill_failures: Family::default(),
            evictions: Evictions::default(),
            eviction_age: Histogram::new(AGES),
            bucket_evictions: Evictions::default(),
            reloads: Family::default(),
            certificate_not_after: Family::default(),
            last_reload_successful: Gauge::default(),
            scrape: Arc::default(),
            fills_active: fills.get_or_create_owned(&FillLabels { state: "active" }),
            fills,
            requests_active: Gauge::default(),
            cache_bytes: Gauge::default(),
            cache_limit_bytes: Gauge::default(),
            cache_blobs: Gauge::default(),
        };
        metrics.initialize();
        metrics.registry = Arc::new(metrics.registry());
        metrics
    }

    /// Initializes the counters with 0, so that `rate()` sees the first event.
    fn initialize(&self) {
        self.last_reload_successful.set(1);
        for reason in FillResult::ALL {
            if *reason != FillResult::Stored {
                let labels = FillFailureLabels { reason: *reason };
                self.fill_failures.get_or_create_owned(&labels);
            }
        }
        for reason in EvictionReason::ALL {
            self.evictions.add(*reason, 0, 0);
        }
        for reason in [EvictionReason::Expired, EvictionReason::Room] {
            self.bucket_evictions.add(reason, 0, 0);
        }
        for result in ["accepted", "refused"] {
            self.reloads.get_or_create_owned(&ReloadLabels { result });
        }
    }

    #[rustfmt::skip]
    fn registry(&self) -> Registry {
        let mut all = Registry::default();
        all.register_collector(Box::new(ProcessCollector::default()));
        let r = all.sub_registry_with_prefix("registry_mirror");
        let f = &self.families;
        r.register("build", "Version of the server", Info::new(BuildLabels { version: env!("CARGO_PKG_VERSION") }));
        r.register("requests", "Requests of clients that were answered", f.requests.clone());
        r.register("request_duration_seconds", "Time from a request to the end of its response", f.request_duration.clone());
        r.register("first_byte_seconds", "Time from a request to the first byte of its response", f.first_byte.clone());
        r.register("requests_active", "Requests of clients that are being answered", self.requests_active.clone());
        r.register("served_bytes", "Bytes of content that clients received, by its source", f.served.clone());
        r.register("upstream_bytes", "Bytes of bodies that the server received from upstreams", f.received.clone());
        r.register("upstream_requests", "Responses of upstreams, by status", f.responses.clone());
        r.register("upstream_errors", "Requests to upstreams without a response, by the failure", f.errors.clone());
        r.register("upstream_request_duration_seconds", "Time from a request to an upstream to the header of its response", f.upstream_duration.clone());
        r.register("upstream_up", "0 while the upstream does not answer, else 1", f.up.clone());
        r.register("upstream_rate_limit", "Rate limit as the upstream last reported it: the limit, and the remaining requests", f.rate_limit.clone());
        r.register("upstream_rate_limit_reset_timestamp_seconds", "Time at which the upstream's rate limit is reset, in seconds since 1970", f.rate_limit_reset.clone());
        r.register("token_fetches", "Requests to token servers, by the result", f.tokens.clone());
        r.register("credential_state", "1 for the state of the upstream's credential, 0 for the other states", f.credentials.clone());
        r.register("fills", "Downloads into the cache that run", self.fills.clone());
        r.register("fills_stored", "Downloads into the cache that were verified and stored", self.fills_stored.clone());
        r.register("fill_failures", "Downloads into the cache that stored nothing, by the reason", self.fill_failures.clone());
        r.register("evictions", "Blobs that left the cache, by the reason", self.evictions.blobs.clone());
        r.register("evicted_bytes", "Bytes of content that left the cache, by the reason", self.evictions.bytes.clone());
        r.register("eviction_age_seconds", "Time since the last use of content that was evicted for room", self.eviction_age.clone());
        r.register("bucket_evictions", "Blobs that left the bucket, by the reason", self.bucket_evictions.blobs.clone());
        r.register("bucket_evicted_bytes", "Bytes of content that left the bucket, by the reason", self.bucket_evictions.bytes.clone());
        r.register("cache_bytes", "Bytes that the cache takes", self.cache_bytes.clone());
        r.register("cache_limit_bytes", "Bytes that the cache may take; 0 without a limit", self.cache_limit_bytes.clone());
        r.register("cache_blobs", "Blobs and manifests in the cache", self.cache_blobs.clone());
        r.register("certificate_not_after_timestamp_seconds", "End of the validity of the serving certificate, in seconds since 1970", self.certificate_not_after.clone());
        r.register("config_last_reload_successful", "1 if the last configuration is in use, 0 if it was refused", self.last_reload_successful.clone());
        r.register("reloads", "Configurations that were loaded at run time, by the result", self.reloads.clone());
        all
    }

    /// Returns the metrics of an upstream, whose counters are 0 if it is new.
    pub fn add_upstream(&self, host: &Host) -> Arc<UpstreamMetrics> {
        let find = |all: &[Arc<UpstreamMetrics>]| all.iter().find(|metrics| metrics.is_of(host)).cloned();
        let added = Arc::new(UpstreamMetrics::new(host.as_str(), self.families.clone()));
        let before = self.upstreams.rcu(|all| match find(all) {
            Some(_) => Arc::clone(all),
            None => Arc::new(all.iter().chain([&added]).cloned().collect()),
        });
        find(&before).unwrap_or_else(|| {
            added.initialize();
            added
        })
    }

    /// Counts a request for content of this upstream when it ended, or its client left.
    pub fn request(&self, upstream: Option<&Host>, request: &RequestRecord) {
        let all = self.upstreams.load();
        let known = upstream.and_then(|host| all.iter().find(|metrics| metrics.is_of(host)));
        known.unwrap_or(&self.no_upstream).ended(request);
    }

    /// Returns the traffic since the start: that of all requests, and that of each upstream by its name.
    pub fn totals(&self) -> (Totals, BTreeMap<String, Totals>) {
        let all = self.upstreams.load();
        let upstreams: BTreeMap<_, _> = all
            .iter()
            .map(|metrics| metrics.totals())
            .map(|(name, totals)| (name.to_owned(), totals))
            .collect();
        let (_, others) = self.no_upstream.totals();
        let sum = upstreams.values().fold(others, |sum, totals| sum.plus(totals));
        (sum, upstreams)
    }

    /// Counts a fill that ended.
    pub fn fill(&self, result: FillResult) {
        if result == FillResult::Stored {
            self.fills_stored.inc();
        } else {
            self.fill_failures
                .get_or_create(&FillFailureLabels { reason: result })
                .inc();
        }
    }

    /// Counts content of so many bytes that left the cache, `unused` after its last use.
    pub fn evicted(&self, reason: EvictionReason, bytes: u64, unused: Duration) {
        self.evictions.add(reason, 1, bytes);
        if reason == EvictionReason::Room {
            self.eviction_age.observe(unused.as_secs_f64());
        }
    }

    /// Counts content of so many bytes that left the bucket.
    pub fn evicted_from_bucket(&self, reason: EvictionReason, bytes: u64) {
        self.bucket_evictions.add(reason, 1, bytes);
    }

    /// Counts a reload, accepted or refused.
    pub fn reload(&self, accepted: bool) {
        let result = if accepted { "accepted" } else { "refused" };
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
    }

    /// Sets the gauges and encodes all metrics in the `OpenMetrics` text format. `states` are all states of a credential.
    ///
    /// # Errors
    /// Only if a formatter fails, which writing to a `String` does not.
    pub fn scrape(
        &self,
        gauges: &MetricsSnapshot,
        states: &[&'static str],
    ) -> Result<String, std::fmt::Error> {
        let _one = self.scrape.lock();
        self.last_reload_successful.set(gauges.is_configured.into());
        self.certificate_not_after.clear();
        if let Some(end) = gauges.certificate_not_after {
            self.certificate_not_after.get_or_create(&[]).set(end);
        }
        self.families.clear_gauges();
        for (host, gauges) in &gauges.upstreams {
            self.add_upstream(host).set(gauges, states);
        }
        self.encode()
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
    use http::StatusCode;

    fn host(name: &str) -> Host {
        name.parse().unwrap()
    }

    fn ended(outcome: Outcome, bytes: u64) -> RequestRecord {
        RequestRecord {
            kind: Kind::Blob,
            code: StatusCode::OK,
            outcome,
            origin: Source::Upstream,
            took: Duration::from_secs(400),
            first_byte: Duration::from_millis(3),
            bytes,
            trace: None,
        }
    }

    #[track_caller]
    fn assert_contains(metrics: &Metrics, lines: &[&str]) {
        let text = metrics.encode().unwrap();
        for line in lines {
            let line = format!("registry_mirror_{line}\n");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    /// A request is counted by upstream, code and outcome, and both of its times are kept.
    #[test]
    fn request_is_counted_with_its_times() {
        let (metrics, quay) = (Metrics::new(), host("quay.io"));
        metrics.add_upstream(&quay);
        metrics.clone().request(Some(&quay), &ended(Outcome::Hit, 10));
        let labels = r#"upstream="quay.io",kind="blob""#;
        let lines = [
            format!("requests_total{{{labels},code=\"200\",outcome=\"hit\"}} 1"),
            format!("request_duration_seconds_bucket{{le=\"600.0\",{labels},outcome=\"hit\"}} 1"),
            format!("request_duration_seconds_bucket{{le=\"180.0\",{labels},outcome=\"hit\"}} 0"),
            format!("first_byte_seconds_bucket{{le=\"0.005\",{labels},outcome=\"hit\"}} 1"),
        ];
        assert_contains(&metrics, &lines.each_ref().map(String::as_str));
    }

    /// Bytes are counted by their source; those of errors and of `/v2/` are not counted.
    #[test]
    fn served_bytes_have_sources() {
        let (metrics, quay) = (Metrics::new(), host("quay.io"));
        metrics.add_upstream(&quay);
        for (outcome, bytes) in [
            (Outcome::Hit, 1),
            (Outcome::Stale, 2),
            (Outcome::Coalesced, 4),
            (Outcome::Miss, 8),
            (Outcome::PassThrough, 16),
            (Outcome::None, 32),
        ] {
            metrics.request(Some(&quay), &ended(outcome, bytes));
        }
        for (origin, bytes) in [(Source::Peer, 100), (Source::Bucket, 200)] {
            for outcome in [
                Outcome::Hit,
                Outcome::Miss,
                Outcome::Coalesced,
                Outcome::PassThrough,
            ] {
                let request = RequestRecord {
                    origin,
                    ..ended(outcome, bytes)
                };
                metrics.request(Some(&quay), &request);
            }
        }
        metrics.request(None, &ended(Outcome::None, 64));
        for (source, bytes) in [
            ("cache", 303),
            ("coalesced", 4),
            ("upstream", 24),
            ("peer", 300),
            ("bucket", 600),
        ] {
            let line = format!(r#"served_bytes_total{{upstream="quay.io",source="{source}"}} {bytes}"#);
            assert_contains(&metrics, &[&line]);
        }
        assert_eq!(
            metrics.encode().unwrap().matches("served_bytes_total{").count(),
            5
        );
    }

    /// The totals are those of the encoded series: content by outcome, all errors, and the bytes of both sides.
    #[test]
    fn totals_are_summed_by_upstream() {
        let (metrics, quay) = (Metrics::with_exemplars(true), host("quay.io"));
        let upstream = metrics.add_upstream(&quay);
        metrics.add_upstream(&host("docker.io"));
        upstream.received(Kind::Blob).inc_by(30);
        let count = |upstream, kind, code, outcome, first_byte| {
            let request = RequestRecord {
                kind,
                code: StatusCode::from_u16(code).unwrap(),
                first_byte,
                ..ended(outcome, 10)
            };
            metrics.request(upstream, &request);
        };
        let (fast, slow) = (Duration::from_millis(90), Duration::from_secs(9));
        for _ in 0..97 {
            count(Some(&quay), Kind::Blob, 206, Outcome::Hit, fast);
        }
        count(Some(&quay), Kind::Blob, 307, Outcome::Redirect, fast);
        count(Some(&quay), Kind::Manifest, 200, Outcome::Coalesced, slow);
        count(
            Some(&quay),
            Kind::Manifest,
            200,
            Outcome::Miss,
            Duration::from_hours(1),
        );
        count(Some(&quay), Kind::Tags, 200, Outcome::Miss, fast);
        count(None, Kind::Blob, 503, Outcome::None, fast);
        let (all, upstreams) = metrics.totals();
        assert_eq!((all.hits, all.misses, all.errors), (99, 1, 1));
        assert_eq!((all.served, all.received, all.p99()), (1_000, 30, Some(10.0)));
        assert_eq!(upstreams["docker.io"], Totals::default());
        let quay = &upstreams["quay.io"];
        assert_eq!((quay.hits, quay.misses, quay.errors), (99, 1, 0));
    }

    /// Clients create no series: hosts that are no upstreams share one.
    #[test]
    fn unknown_hosts_share_one_series() {
        let metrics = Metrics::new();
        for name in ["a.test", "b.test"] {
            metrics.request(Some(&host(name)), &ended(Outcome::None, 0));
        }
        let line = r#"requests_total{upstream="",kind="blob",code="200",outcome="none"} 2"#;
        assert_contains(&metrics, &[line]);
        assert_eq!(metrics.encode().unwrap().matches("requests_total{").count(), 1);
    }

    /// Exactly one state of a credential is set, and gauges of an upstream that is no longer configured disappear.
    #[test]
    fn gauges_follow_the_upstreams() {
        let metrics = Metrics::new();
        let gauges = |credential, remaining| UpstreamSnapshot {
            up: false,
            rate_limit: Some(100),
            remaining,
            reset: Some(60),
            credential,
        };
        let scrape = |upstreams: &[(&str, UpstreamSnapshot)]| {
            let upstreams = upstreams
                .iter()
                .map(|(name, gauges)| (host(name), gauges.clone()));
            let gauges = MetricsSnapshot {
                upstreams: upstreams.collect(),
                ..MetricsSnapshot::default()
            };
            metrics.scrape(&gauges, &["active", "pending"]).unwrap()
        };
        scrape(&[
            ("quay.io", gauges("active", Some(7))),
            ("docker.io", gauges("pending", Some(7))),
        ]);
        let text = scrape(&[("docker.io", gauges("active", None))]);
        assert_contains(
            &metrics,
            &[
                r#"credential_state{upstream="docker.io",state="active"} 1"#,
                r#"credential_state{upstream="docker.io",state="pending"} 0"#,
                r#"upstream_up{upstream="docker.io"} 0"#,
                r#"upstream_rate_limit{upstream="docker.io",value="limit"} 100"#,
                r#"upstream_rate_limit_reset_timestamp_seconds{upstream="docker.io"} 60"#,
                "config_last_reload_successful 0",
            ],
        );
        assert!(!text.contains(r#"value="remaining""#), "{text}");
        assert!(!text.contains(r#"upstream_up{upstream="quay.io"}"#), "{text}");
        assert!(!text.contains("certificate"), "{text}");
    }

    /// Counters of a new upstream are 0, so that `rate()` sees the first event.
    #[test]
    fn counters_start_at_zero() {
        let metrics = Metrics::new();
        metrics.add_upstream(&host("quay.io"));
        metrics
            .add_upstream(&host("quay.io"))
            .response(StatusCode::OK, Duration::ZERO, None);
        assert_contains(
            &metrics,
            &[
                r#"requests_total{upstream="quay.io",kind="manifest",code="200",outcome="miss"} 0"#,
                r#"upstream_requests_total{upstream="quay.io",code="200"} 1"#,
                r#"upstream_requests_total{upstream="quay.io",code="429"} 0"#,
                r#"upstream_errors_total{upstream="quay.io",error="timeout"} 0"#,
                r#"upstream_bytes_total{upstream="quay.io",kind="blob"} 0"#,
                r#"token_fetches_total{upstream="quay.io",result="failed"} 0"#,
                r#"fill_failures_total{reason="mismatch"} 0"#,
                r#"evicted_bytes_total{reason="room"} 0"#,
                r#"reloads_total{result="refused"} 0"#,
                r#"fills{state="active"} 0"#,
                "fills_stored_total 0",
            ],
        );
    }

    /// Evicted content is counted with its bytes; its age is kept only where it went for room.
    #[test]
    fn evictions_have_bytes_and_ages() {
        let metrics = Metrics::new();
        metrics.evicted(EvictionReason::Room, 10, Duration::from_hours(2));
        metrics.evicted(EvictionReason::Expired, 20, Duration::from_hours(2));
        metrics.fill(FillResult::Stored);
        metrics.fill(FillResult::NoRoom);
        assert_contains(
            &metrics,
            &[
                r#"evictions_total{reason="expired"} 1"#,
                r#"evicted_bytes_total{reason="room"} 10"#,
                "eviction_age_seconds_count 1",
                r#"eviction_age_seconds_bucket{le="3600.0"} 0"#,
                r#"eviction_age_seconds_bucket{le="21600.0"} 1"#,
                "fills_stored_total 1",
                r#"fill_failures_total{reason="noroom"} 1"#,
            ],
        );
    }
}
