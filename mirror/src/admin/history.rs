//! The last 24 hours in numbers: sums of the metrics, a sample for each minute.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The time between two samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_mins(1);
/// The most samples: those of 24 hours.
const MAX_SAMPLES: usize = 24 * 60 + 1;
/// The periods of a report.
const PERIODS: [Duration; 2] = [Duration::from_hours(1), Duration::from_hours(24)];

/// Sums over all series of one server, or of one upstream, since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Requests for manifests and blobs without a download of their own.
    pub hits: u64,
    /// Requests for manifests and blobs that the upstream answered.
    pub misses: u64,
    /// Responses with a status from 500 on.
    pub errors: u64,
    /// Bytes of content that clients received.
    pub served: u64,
    /// Bytes that upstreams sent.
    pub received: u64,
    /// Responses by the time to their first byte: upper bounds in seconds, and the responses within them.
    buckets: Vec<(f64, u64)>,
}

/// Samples of the totals; bounded.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<(Instant, Totals)>>);

/// The report at `/status/history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryReport {
    /// The last hour and the last 24 hours, or less after a start.
    pub periods: Vec<Period>,
    /// The changes between two samples, the oldest first.
    pub samples: Vec<Sample>,
}

/// The sums of a period.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Period {
    /// The length of the period.
    pub seconds: u64,
    /// Requests for manifests and blobs without a download of their own.
    pub hits: u64,
    /// Requests for manifests and blobs that an upstream answered.
    pub misses: u64,
    /// Responses with a status from 500 on.
    pub errors: u64,
    /// The part of hits, from 0 to 1; absent without requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
    /// Bytes of content that clients received.
    pub served_bytes: u64,
    /// Bytes that upstreams sent.
    pub upstream_bytes: u64,
    /// Served bytes less bytes of upstreams; negative where content was downloaded that no client took.
    pub saved_bytes: i64,
    /// The time in which 99 % of the responses with content had their first byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_seconds: Option<f64>,
}

/// The change between two samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// The time since the later sample.
    pub seconds_ago: u64,
    /// Hits.
    pub hits: u64,
    /// Misses.
    pub misses: u64,
    /// Bytes of content that clients received.
    pub served_bytes: u64,
    /// Bytes that upstreams sent.
    pub upstream_bytes: u64,
}

impl Totals {
    /// Sums the series of metrics in the text format; those of each upstream by its name, too.
    pub fn parse(metrics: &str) -> (Self, BTreeMap<String, Self>) {
        let (mut all, mut upstreams) = (Self::default(), BTreeMap::<String, Self>::new());
        for line in metrics
            .lines()
            .filter_map(|line| line.strip_prefix("registry_mirror_"))
        {
            let Some((series, value)) = crate::metrics::without_exemplar(line).rsplit_once(' ') else {
                continue;
            };
            let Ok(value) = value.parse::<u64>() else { continue };
            all.add(series, value);
            if let Some(upstream) = label(series, "upstream") {
                upstreams
                    .entry(upstream.to_owned())
                    .or_default()
                    .add(series, value);
            }
        }
        upstreams.remove("");
        (all, upstreams)
    }

    fn add(&mut self, series: &str, value: u64) {
        let Some((family, _)) = series.split_once('{') else {
            return;
        };
        match family {
            "requests_total" => {
                let is_content = matches!(label(series, "kind"), Some("manifest" | "blob"));
                match label(series, "outcome") {
                    Some("hit" | "stale" | "coalesced") if is_content => self.hits += value,
                    Some("miss" | "passthrough") if is_content => self.misses += value,
                    _ if label(series, "code").is_some_and(|code| code.starts_with('5')) => {
                        self.errors += value;
                    }
                    _ => {}
                }
            }
            "served_bytes_total" => self.served += value,
            "upstream_bytes_total" => self.received += value,
            "first_byte_seconds_bucket" if label(series, "outcome") != Some("none") => {
                self.add_bucket(series, value);
            }
            _ => {}
        }
    }

    fn add_bucket(&mut self, series: &str, value: u64) {
        let bound = match label(series, "le") {
            Some("+Inf") => f64::INFINITY,
            Some(bound) => bound.parse().unwrap_or(f64::INFINITY),
            None => return,
        };
        match self
            .buckets
            .binary_search_by(|(known, _)| known.total_cmp(&bound))
        {
            Ok(place) => self.buckets[place].1 += value,
            Err(place) => self.buckets.insert(place, (bound, value)),
        }
    }

    /// Returns the growth since earlier totals.
    fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| {
            let found = before
                .buckets
                .iter()
                .find(|(known, _)| known.total_cmp(&bound).is_eq());
            found.map_or(0, |(_, count)| *count)
        };
        let bucket = |(bound, count): &(f64, u64)| (*bound, count.saturating_sub(earlier(*bound)));
        Self {
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            errors: self.errors.saturating_sub(before.errors),
            served: self.served.saturating_sub(before.served),
            received: self.received.saturating_sub(before.received),
            buckets: self.buckets.iter().map(bucket).collect(),
        }
    }

    /// Returns the part of hits; `None` without requests.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let requests = self.hits + self.misses;
        (requests > 0).then(|| self.hits as f64 / requests as f64)
    }

    /// Returns the bytes that the cache saved.
    pub fn saved(&self) -> i64 {
        self.served
            .cast_signed()
            .saturating_sub(self.received.cast_signed())
    }

    /// Returns the upper bound of the bucket in which the 99th of 100 responses lies; `None` without responses, or
    /// beyond the last bound.
    fn p99(&self) -> Option<f64> {
        let (_, count) = self.buckets.last().filter(|(_, count)| *count > 0)?;
        let rank = count - count / 100;
        let bucket = self.buckets.iter().find(|(_, count)| *count >= rank);
        bucket.map(|(bound, _)| *bound).filter(|bound| bound.is_finite())
    }
}

/// Returns the value of a label. No value of a label holds a quote.
fn label<'a>(series: &'a str, name: &str) -> Option<&'a str> {
    let (_, labels) = series.split_once('{')?;
    labels.split(',').find_map(|label| {
        let (found, value) = label.split_once('=')?;
        (found == name).then(|| value.trim_matches(['"', '}']))
    })
}

impl History {
    /// Adds a sample; beyond those of 24 hours the oldest goes.
    pub fn add(&self, totals: Totals) {
        let mut samples = self.0.lock();
        if samples.len() >= MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back((Instant::now(), totals));
    }

    /// Returns the report up to the present totals.
    pub fn report(&self, now: &Totals) -> HistoryReport {
        let samples = self.0.lock();
        let pairs = samples.iter().zip(samples.iter().skip(1));
        let changes = pairs.map(|((_, before), (at, after))| {
            let change = after.since(before);
            Sample {
                seconds_ago: at.elapsed().as_secs(),
                hits: change.hits,
                misses: change.misses,
                served_bytes: change.served,
                upstream_bytes: change.received,
            }
        });
        HistoryReport {
            samples: changes.collect(),
            periods: PERIODS.map(|length| period(&samples, now, length)).into(),
        }
    }
}

/// Returns the sums since the last sample that is as old as the period, or since the oldest one.
fn period(samples: &VecDeque<(Instant, Totals)>, now: &Totals, length: Duration) -> Period {
    let is_older = |sample: &&(Instant, Totals)| sample.0.elapsed() >= length;
    let start = samples.iter().rev().find(is_older).or_else(|| samples.front());
    let zero = Totals::default();
    let change = now.since(start.map_or(&zero, |(_, totals)| totals));
    Period {
        seconds: start.map_or(0, |(at, _)| at.elapsed().as_secs()),
        hits: change.hits,
        misses: change.misses,
        errors: change.errors,
        hit_ratio: change.hit_ratio(),
        served_bytes: change.served,
        upstream_bytes: change.received,
        saved_bytes: change.saved(),
        p99_seconds: change.p99(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"
registry_mirror_requests_total{upstream="quay.io",kind="blob",code="200",outcome="hit"} 3
registry_mirror_requests_total{upstream="quay.io",kind="blob",code="200",outcome="miss"} 1
registry_mirror_requests_total{upstream="docker.io",kind="manifest",code="200",outcome="coalesced"} 4
registry_mirror_requests_total{upstream="docker.io",kind="tags",code="200",outcome="miss"} 9
registry_mirror_requests_total{upstream="",kind="blob",code="503",outcome="none"} 2
registry_mirror_served_bytes_total{upstream="quay.io",source="cache"} 100
registry_mirror_upstream_bytes_total{upstream="quay.io",kind="blob"} 30
registry_mirror_first_byte_seconds_bucket{le="0.1",upstream="quay.io",kind="blob",outcome="hit"} 98 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.02
registry_mirror_first_byte_seconds_bucket{le="10.0",upstream="quay.io",kind="blob",outcome="hit"} 99
registry_mirror_first_byte_seconds_bucket{le="+Inf",upstream="quay.io",kind="blob",outcome="hit"} 100
registry_mirror_first_byte_seconds_bucket{le="+Inf",upstream="",kind="other",outcome="none"} 7
"#;

    /// The series are summed for the server and for each upstream.
    #[test]
    fn totals_are_summed_by_upstream() {
        let (all, upstreams) = Totals::parse(METRICS);
        assert_eq!((all.hits, all.misses, all.errors), (7, 1, 2));
        assert_eq!((all.served, all.received, all.saved()), (100, 30, 70));
        assert_eq!((all.hit_ratio(), all.p99()), (Some(0.875), Some(10.0)));
        let quay = &upstreams["quay.io"];
        assert_eq!((quay.hits, quay.misses, quay.saved()), (3, 1, 70));
        assert_eq!(upstreams.keys().collect::<Vec<_>>(), ["docker.io", "quay.io"]);
    }

    /// A period counts what came after its first sample; samples are bounded.
    #[test]
    fn period_counts_since_its_first_sample() {
        let history = History::default();
        assert_eq!(history.report(&Totals::default()).periods[0].hit_ratio, None);
        let totals = |hits| Totals {
            hits,
            ..Totals::default()
        };
        for hits in 0..2 * MAX_SAMPLES as u64 {
            history.add(totals(hits));
        }
        let report = history.report(&totals(2 * MAX_SAMPLES as u64 + 9));
        assert_eq!(report.samples.len(), MAX_SAMPLES - 1);
        assert!(report.samples.iter().all(|sample| sample.hits == 1));
        assert_eq!(report.periods[1].hits, MAX_SAMPLES as u64 + 9);
    }

    /// No text makes the parser panic.
    #[test]
    fn odd_metrics_are_skipped() {
        for text in [
            "registry_mirror_",
            "registry_mirror_requests_total{ 1",
            "registry_mirror_x{a=\"} 1",
            "\n {",
        ] {
            assert_eq!(Totals::parse(text).0, Totals::default(), "{text}");
        }
    }
}
