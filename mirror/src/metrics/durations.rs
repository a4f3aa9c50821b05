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
pub(super) struct DurationHistogram {
    /// Counters without a lock.
    counters: Arc<HistogramBuckets>,
    /// The same observations with the trace of the last one in each bucket, where traces are exported.
    exemplars: Option<HistogramWithExemplars<TraceLabels>>,
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
        Self {
            counters: Arc::default(),
            exemplars: None,
        }
    }

    /// Creates a histogram that keeps traces.
    pub(super) fn with_exemplars() -> Self {
        let exemplars = HistogramWithExemplars::new(BOUNDS.into_iter().map(seconds));
        Self {
            exemplars: Some(exemplars),
            ..Self::counters()
        }
    }

    /// Adds a duration, and the trace that the collector has of it.
    pub(super) fn observe(&self, took: Duration, trace: Option<TraceId>) {
        self.counters.add(took);
        if let Some(exemplars) = &self.exemplars {
            let labels = trace.map(|trace| TraceLabels {
                trace_id: trace.to_string(),
            });
            exemplars.observe(took.as_secs_f64(), labels, None);
        }
    }

    /// Returns the number of observations.
    pub(super) fn count(&self) -> u64 {
        self.counters.all().map(|(_, count)| count).sum()
    }

    /// Returns the upper bound of each bucket in seconds, and the observations that are not above it.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.counters.all().scan(0_u64, |sum, (bound, count)| {
            *sum = sum.saturating_add(count);
            Some((bound, *sum))
        })
    }
}

impl HistogramBuckets {
    /// Returns the upper bound of each bucket in seconds, and its observations.
    fn all(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.into_iter().map(seconds).chain([f64::INFINITY]);
        bounds.zip(self.buckets.iter().map(|count| count.load(Ordering::Relaxed)))
    }

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
        if let Some(exemplars) = &self.exemplars {
            return exemplars.encode(encoder);
        }
        let sum = Duration::from_nanos(self.counters.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        let buckets: Vec<_> = self.counters.all().collect();
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
        assert!(histogram.exemplars.is_none());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| histogram.observe(Duration::ZERO, None)));
            }
        });
        assert_eq!(histogram.count(), 4_000);
    }
}
