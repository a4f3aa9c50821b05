//! Histograms of durations: atomic counters, or with a trace for each bucket where traces are exported.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::trace::TraceId;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::labels::TraceLabels;

/// The upper bounds of the buckets in microseconds: from a millisecond to ten minutes.
const BOUNDS: [u32; 14] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    100_000,
    250_000,
    1_000_000,
    2_500_000,
    10_000_000,
    30_000_000,
    60_000_000,
    180_000_000,
    600_000_000,
];

/// A histogram of durations. Clones share it.
#[derive(Clone, Debug)]
pub(super) enum DurationHistogram {
    /// Counters without a lock.
    Counters(Arc<HistogramBuckets>),
    /// Each bucket has the trace of its last observation.
    WithExemplars(HistogramWithExemplars<TraceLabels>),
}

/// The counters of a histogram.
#[derive(Debug, Default)]
pub(super) struct HistogramBuckets {
    /// The observations of each bucket alone; the last bucket has no bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl DurationHistogram {
    /// Creates a histogram that keeps no traces.
    pub(super) fn counters() -> Self {
        Self::Counters(Arc::default())
    }

    /// Creates a histogram that keeps traces.
    pub(super) fn with_exemplars() -> Self {
        Self::WithExemplars(HistogramWithExemplars::new(BOUNDS.into_iter().map(seconds)))
    }

    /// Adds a duration, and the trace that the collector has of it.
    pub(super) fn observe(&self, took: Duration, trace: Option<TraceId>) {
        match self {
            Self::Counters(counters) => counters.add(took),
            Self::WithExemplars(histogram) => {
                let labels = trace.map(|trace| TraceLabels {
                    trace_id: trace.to_string(),
                });
                histogram.observe(took.as_secs_f64(), labels, None);
            }
        }
    }
}

impl HistogramBuckets {
    fn add(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let is_within = |bound: &u32| nanoseconds <= u64::from(*bound) * 1_000;
        let bucket = BOUNDS.iter().position(is_within).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = match self {
            Self::Counters(counters) => counters,
            Self::WithExemplars(histogram) => return histogram.encode(encoder),
        };
        let sum = Duration::from_nanos(counters.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        let bounds = BOUNDS.into_iter().map(seconds).chain([f64::INFINITY]);
        let counts = counters.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

fn seconds(microseconds: u32) -> f64 {
    f64::from(microseconds) / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    fn encoded(histogram: DurationHistogram) -> String {
        let (mut registry, mut encoded) = (Registry::default(), String::new());
        for took in [
            Duration::ZERO,
            Duration::from_millis(1),
            Duration::from_micros(1_001),
            Duration::from_mins(1),
            Duration::from_secs(601),
        ] {
            histogram.observe(took, None);
        }
        registry.register("took", "Time", histogram);
        text::encode(&mut encoded, &registry).unwrap();
        // The sums differ in their last digits.
        let lines = encoded.lines().filter(|line| !line.starts_with("took_sum"));
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    /// Both kinds of histograms have the same buckets and counts.
    #[test]
    fn counters_are_encoded_as_histogram() {
        let counters = encoded(DurationHistogram::counters());
        assert_eq!(counters, encoded(DurationHistogram::with_exemplars()));
        assert!(counters.contains("took_bucket{le=\"0.001\"} 2\n"), "{counters}");
        assert!(counters.contains("took_bucket{le=\"+Inf\"} 5\n"), "{counters}");
    }

    /// Without traces, an observation takes no lock.
    #[test]
    fn observation_without_traces_takes_no_lock() {
        let histogram = DurationHistogram::counters();
        assert!(matches!(histogram, DurationHistogram::Counters(_)));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| histogram.observe(Duration::ZERO, None)));
            }
        });
        let DurationHistogram::Counters(counters) = &histogram else {
            unreachable!()
        };
        assert_eq!(counters.buckets[0].load(Ordering::Relaxed), 4_000);
    }
}
