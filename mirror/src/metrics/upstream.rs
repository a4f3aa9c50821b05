//! The metrics of one upstream: its series are found once, and not for each request.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use opentelemetry::trace::TraceId;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::durations::DurationHistogram;
use super::labels::{
    CodeLabels, CredentialLabels, DurationLabels, ErrorLabels, Kind, KindLabels, Outcome, RateLimitLabels,
    RequestLabels, Source, SourceLabels, TokenLabels, TokenResult, UpstreamLabels,
};
use super::totals::Totals;
use crate::name::Host;

/// The names of the failures of a request without a response.
const ERRORS: [&str; 3] = ["timeout", "connect", "cut"];
const KINDS: usize = Kind::ALL.len();
const OUTCOMES: usize = Outcome::ALL.len();

type Durations<L> = Family<L, DurationHistogram, fn() -> DurationHistogram>;

/// The families that have series for each upstream.
#[derive(Clone, Debug)]
pub(super) struct MetricsSet {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) request_duration: Durations<DurationLabels>,
    pub(super) first_byte: Durations<DurationLabels>,
    pub(super) served: Family<SourceLabels, Counter>,
    pub(super) received: Family<KindLabels, Counter>,
    pub(super) responses: Family<CodeLabels, Counter>,
    pub(super) errors: Family<ErrorLabels, Counter>,
    pub(super) upstream_duration: Durations<UpstreamLabels>,
    pub(super) tokens: Family<TokenLabels, Counter>,
    pub(super) up: Family<UpstreamLabels, Gauge>,
    pub(super) rate_limit: Family<RateLimitLabels, Gauge>,
    pub(super) rate_limit_reset: Family<UpstreamLabels, Gauge>,
    pub(super) credentials: Family<CredentialLabels, Gauge>,
}

impl MetricsSet {
    /// Creates families whose histograms keep traces, or do not.
    pub(super) fn new(has_exemplars: bool) -> Self {
        let histogram = if has_exemplars {
            DurationHistogram::with_exemplars
        } else {
            DurationHistogram::counters
        };
        Self {
            requests: Family::default(),
            request_duration: Family::new_with_constructor(histogram),
            first_byte: Family::new_with_constructor(histogram),
            served: Family::default(),
            received: Family::default(),
            responses: Family::default(),
            errors: Family::default(),
            upstream_duration: Family::new_with_constructor(histogram),
            tokens: Family::default(),
            up: Family::default(),
            rate_limit: Family::default(),
            rate_limit_reset: Family::default(),
            credentials: Family::default(),
        }
    }
}

/// A request of a client that ended.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord {
    /// The endpoint.
    pub kind: Kind,
    /// The status of the response.
    pub code: StatusCode,
    /// The source of the response.
    pub outcome: Outcome,
    /// The origin of bytes that the cache did not have.
    pub origin: Source,
    /// The time from the request to the end of the response.
    pub took: Duration,
    /// The time from the request to the first byte of the response.
    pub first_byte: Duration,
    /// The bytes of the body that were sent.
    pub bytes: u64,
    /// The trace that the collector has of the request.
    pub trace: Option<TraceId>,
}

impl RequestRecord {
    /// Returns the source of the bytes; `None` for errors and answers without content.
    fn source(&self) -> Option<Source> {
        match self.outcome {
            Outcome::Hit | Outcome::Stale => Some(Source::Cache),
            Outcome::Coalesced if self.origin == Source::Upstream => Some(Source::Coalesced),
            Outcome::Coalesced | Outcome::Miss | Outcome::PassThrough => Some(self.origin),
            Outcome::Redirect | Outcome::None => None,
        }
    }
}

/// The state of an upstream that its gauges report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSnapshot {
    /// `false` while the upstream does not answer.
    pub up: bool,
    /// The requests that the rate limit allows in its window.
    pub rate_limit: Option<i64>,
    /// The remaining requests of the rate limit.
    pub remaining: Option<i64>,
    /// The time at which the rate limit is reset, in seconds since 1970.
    pub reset: Option<i64>,
    /// The state of the credential.
    pub credential: &'static str,
}

/// The series of one kind of request and one outcome.
#[derive(Debug)]
struct Ended {
    /// Requests that were answered with 200; other codes are rare.
    answered: OnceLock<Counter>,
    took: DurationHistogram,
    first_byte: DurationHistogram,
}

/// The metrics of one upstream, or of requests that concern none.
#[derive(Debug)]
pub struct UpstreamMetrics {
    upstream: String,
    families: MetricsSet,
    /// The requests by kind and outcome.
    ended: [[OnceLock<Ended>; OUTCOMES]; KINDS],
    /// Responses with a status from 500 on.
    failed: AtomicU64,
    served: [OnceLock<Counter>; Source::ALL.len()],
    received: [OnceLock<Counter>; KINDS],
    duration: OnceLock<DurationHistogram>,
}

impl UpstreamMetrics {
    /// Creates the metrics of an upstream; an empty name is that of requests without one.
    pub(super) fn new(upstream: &str, families: MetricsSet) -> Self {
        Self {
            upstream: upstream.to_owned(),
            families,
            ended: Default::default(),
            failed: AtomicU64::new(0),
            served: Default::default(),
            received: Default::default(),
            duration: OnceLock::new(),
        }
    }

    /// Returns `true` for the metrics of this upstream.
    pub(super) fn is_of(&self, host: &Host) -> bool {
        self.upstream == host.as_str()
    }

    /// Initializes the counters with 0, so that `rate()` sees the first event.
    pub(super) fn initialize(&self) {
        use Outcome::{Coalesced, Hit, Miss, PassThrough, Stale};
        let upstream = || self.upstream.clone();
        for kind in [Kind::Manifest, Kind::Blob] {
            for outcome in [Hit, Miss, Stale, Coalesced, PassThrough] {
                let (upstream, code) = (upstream(), 200);
                drop(self.families.requests.get_or_create(&RequestLabels {
                    upstream,
                    kind,
                    code,
                    outcome,
                }));
            }
        }
        for source in Source::ALL {
            self.served(*source);
        }
        for kind in [
            Kind::Manifest,
            Kind::Blob,
            Kind::Tags,
            Kind::Referrers,
            Kind::Other,
        ] {
            self.received(kind);
        }
        for code in [200, 429] {
            self.families.responses.get_or_create_owned(&CodeLabels {
                upstream: upstream(),
                code,
            });
        }
        for error in ERRORS {
            self.families.errors.get_or_create_owned(&ErrorLabels {
                upstream: upstream(),
                error,
            });
        }
        for result in TokenResult::ALL {
            let (upstream, result) = (upstream(), *result);
            self.families
                .tokens
                .get_or_create_owned(&TokenLabels { upstream, result });
        }
    }

    /// Counts a request of a client.
    pub(super) fn ended(&self, request: &RequestRecord) {
        let place = &self.ended[request.kind as usize][request.outcome as usize];
        let series = place.get_or_init(|| self.find(request));
        if request.code == StatusCode::OK {
            series.answered.get_or_init(|| self.requests(request)).inc();
        } else {
            self.requests(request).inc();
        }
        if request.code.is_server_error() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        series.took.observe(request.took, request.trace);
        series.first_byte.observe(request.first_byte, request.trace);
        if let Some(source) = request.source() {
            self.served(source).inc_by(request.bytes);
        }
    }

    fn find(&self, request: &RequestRecord) -> Ended {
        let (upstream, kind, outcome) = (self.upstream.clone(), request.kind, request.outcome);
        let labels = DurationLabels {
            upstream,
            kind,
            outcome,
        };
        Ended {
            answered: OnceLock::new(),
            took: self.families.request_duration.get_or_create_owned(&labels),
            first_byte: self.families.first_byte.get_or_create_owned(&labels),
        }
    }

    /// Returns the counter of requests with this status.
    fn requests(&self, request: &RequestRecord) -> Counter {
        self.families.requests.get_or_create_owned(&RequestLabels {
            upstream: self.upstream.clone(),
            kind: request.kind,
            code: request.code.as_u16(),
            outcome: request.outcome,
        })
    }

    /// Returns the name of the upstream, and its traffic since the start.
    pub(super) fn totals(&self) -> (&str, Totals) {
        let sum = |counters: &[OnceLock<Counter>]| {
            let counts = counters.iter().filter_map(OnceLock::get).map(Counter::get);
            counts.fold(0, u64::saturating_add)
        };
        let mut totals = Totals {
            errors: self.failed.load(Ordering::Relaxed),
            served: sum(&self.served),
            received: sum(&self.received),
            ..Totals::default()
        };
        for (kind, outcomes) in Kind::ALL.iter().zip(&self.ended) {
            for (outcome, ended) in Outcome::ALL.iter().zip(outcomes) {
                if let Some(ended) = ended.get() {
                    ended.add_to(&mut totals, *kind, *outcome);
                }
            }
        }
        (&self.upstream, totals)
    }

    fn served(&self, source: Source) -> &Counter {
        let find = || {
            let upstream = self.upstream.clone();
            self.families
                .served
                .get_or_create_owned(&SourceLabels { upstream, source })
        };
        self.served[source as usize].get_or_init(find)
    }

    /// Returns the counter of the bytes that the upstream sent for this kind of content.
    pub(crate) fn received(&self, kind: Kind) -> Counter {
        let find = || {
            let upstream = self.upstream.clone();
            self.families
                .received
                .get_or_create_owned(&KindLabels { upstream, kind })
        };
        self.received[kind as usize].get_or_init(find).clone()
    }

    /// Counts a response of the upstream whose header took this time, with the trace that the collector has of it.
    pub fn response(&self, code: StatusCode, took: Duration, trace: Option<TraceId>) {
        let (upstream, code) = (self.upstream.clone(), code.as_u16());
        self.families
            .responses
            .get_or_create(&CodeLabels { upstream, code })
            .inc();
        self.observe(took, trace);
    }

    /// Counts a request to the upstream without a response: `timeout`, `connect` or `cut`.
    pub(crate) fn error(&self, error: &'static str, took: Duration, trace: Option<TraceId>) {
        let upstream = self.upstream.clone();
        self.families
            .errors
            .get_or_create(&ErrorLabels { upstream, error })
            .inc();
        self.observe(took, trace);
    }

    fn observe(&self, took: Duration, trace: Option<TraceId>) {
        let find = || {
            let upstream = self.upstream.clone();
            self.families
                .upstream_duration
                .get_or_create_owned(&UpstreamLabels { upstream })
        };
        self.duration.get_or_init(find).observe(took, trace);
    }

    /// Counts a token request.
    pub(crate) fn token(&self, result: TokenResult) {
        let upstream = self.upstream.clone();
        self.families
            .tokens
            .get_or_create(&TokenLabels { upstream, result })
            .inc();
    }

    /// Sets the gauges of the upstream; `states` are all states of a credential.
    pub(super) fn set(&self, gauges: &UpstreamSnapshot, states: &[&'static str]) {
        let labels = UpstreamLabels {
            upstream: self.upstream.clone(),
        };
        self.families.up.get_or_create(&labels).set(gauges.up.into());
        if let Some(reset) = gauges.reset {
            self.families.rate_limit_reset.get_or_create(&labels).set(reset);
        }
        for (value, number) in [("limit", gauges.rate_limit), ("remaining", gauges.remaining)] {
            let upstream = self.upstream.clone();
            if let Some(number) = number {
                self.families
                    .rate_limit
                    .get_or_create(&RateLimitLabels { upstream, value })
                    .set(number);
            }
        }
        for state in states {
            let upstream = self.upstream.clone();
            let gauge = self
                .families
                .credentials
                .get_or_create_owned(&CredentialLabels { upstream, state });
            gauge.set((*state == gauges.credential).into());
        }
    }
}

impl Ended {
    /// Adds the requests to totals.
    fn add_to(&self, totals: &mut Totals, kind: Kind, outcome: Outcome) {
        use Outcome::{Coalesced, Hit, Miss, None, PassThrough, Redirect, Stale};
        if matches!(kind, Kind::Manifest | Kind::Blob) {
            match outcome {
                Hit | Stale | Coalesced | Redirect => totals.hits += self.took.count(),
                Miss | PassThrough => totals.misses += self.took.count(),
                None => {}
            }
        }
        if outcome != None {
            for (bound, count) in self.first_byte.cumulative() {
                totals.add_to_bucket(bound, count);
            }
        }
    }
}

impl MetricsSet {
    /// Forgets the gauges of all upstreams, so that those that a reload removed disappear.
    pub(super) fn clear_gauges(&self) {
        self.up.clear();
        self.rate_limit.clear();
        self.rate_limit_reset.clear();
        self.credentials.clear();
    }
}
