//! The last 24 hours in numbers: sums of the metrics, a sample for each minute.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{TrafficStatus, numbers};

/// The time between two samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_mins(1);
/// The most samples: those of 24 hours.
const MAX_SAMPLES: usize = 24 * 60 + 1;
/// The most buckets of totals that are read.
const MAX_BUCKETS: usize = 64;
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
pub struct History(Mutex<Samples>);

#[derive(Debug, Default)]
struct Samples {
    /// The totals of earlier starts, which those of this one are added to.
    before: Totals,
    list: VecDeque<(Instant, Totals)>,
}

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
                    Some("hit" | "stale" | "coalesced" | "redirect") if is_content => self.hits += value,
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
        self.add_to_bucket(bound, value);
    }

    fn add_to_bucket(&mut self, bound: f64, value: u64) {
        let found = self
            .buckets
            .binary_search_by(|(known, _)| known.total_cmp(&bound));
        match found {
            Ok(place) => self.buckets[place].1 = self.buckets[place].1.saturating_add(value),
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

    /// Returns the sum with other totals.
    fn plus(&self, other: &Self) -> Self {
        let mut sum = Self {
            hits: self.hits.saturating_add(other.hits),
            misses: self.misses.saturating_add(other.misses),
            errors: self.errors.saturating_add(other.errors),
            served: self.served.saturating_add(other.served),
            received: self.received.saturating_add(other.received),
            buckets: self.buckets.clone(),
        };
        for (bound, count) in &other.buckets {
            sum.add_to_bucket(*bound, *count);
        }
        sum
    }

    fn is_zero(&self) -> bool {
        [self.hits, self.misses, self.errors, self.served, self.received] == [0; 5]
            && self.buckets.iter().all(|(_, count)| *count == 0)
    }

    /// Returns the totals as numbers of eight bytes each, the least significant first: the five sums, then the bound
    /// (IEEE 754) and the count of each bucket.
    fn to_bytes(&self) -> Vec<u8> {
        let sums = [self.hits, self.misses, self.errors, self.served, self.received];
        let buckets = self
            .buckets
            .iter()
            .flat_map(|(bound, count)| [bound.to_bits(), *count]);
        sums.into_iter()
            .chain(buckets)
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` for other bytes.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let words: Vec<_> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let ([hits, misses, errors, served, received], buckets) = words.split_first_chunk::<5>()?;
        let (buckets, []) = buckets.as_chunks::<2>() else {
            return None;
        };
        if buckets.len() > MAX_BUCKETS {
            return None;
        }
        let mut totals = Self {
            hits: *hits,
            misses: *misses,
            errors: *errors,
            served: *served,
            received: *received,
            buckets: Vec::new(),
        };
        for [bound, count] in buckets {
            totals.add_to_bucket(f64::from_bits(*bound), *count);
        }
        Some(totals)
    }

    /// Returns the part of hits; `None` without requests.
    pub fn hit_ratio(&self) -> Option<f64> {
        numbers::hit_ratio(self.hits, self.misses)
    }

    /// Returns the bytes that the cache saved.
    pub fn saved(&self) -> i64 {
        numbers::saved_bytes(self.served, self.received)
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
    /// Adds a sample; beyond those of 24 hours the oldest goes. Returns the bytes to keep for [`Self::restore`], unless the
    /// totals are those of the previous sample.
    pub fn add(&self, totals: &Totals) -> Option<Vec<u8>> {
        let samples = &mut *self.0.lock();
        let totals = samples.before.plus(totals);
        let last = samples.list.back().map_or(&samples.before, |(_, last)| last);
        let kept = (!totals.since(last).is_zero()).then(|| totals.to_bytes());
        samples.push(Instant::now(), totals);
        kept
    }

    /// Adds the samples that an earlier start kept, each with its age, the oldest first. Malformed ones are left out.
    pub fn restore(&self, kept: impl IntoIterator<Item = (Duration, Vec<u8>)>) {
        let kept = kept
            .into_iter()
            .filter_map(|(age, bytes)| Some((age, Totals::from_bytes(&bytes)?)));
        let mut kept: VecDeque<_> = kept.collect();
        let Some((oldest, _)) = kept.front() else { return };
        let samples = &mut *self.0.lock();
        // A sample for each minute, as a server without traffic keeps none; the first one is from before the oldest.
        let minutes = oldest.as_secs() / SAMPLE_INTERVAL.as_secs() + 1;
        let minutes = minutes.min(MAX_SAMPLES as u64);
        for minute in (0..=minutes).rev() {
            let age = Duration::from_secs(minute * SAMPLE_INTERVAL.as_secs());
            while let Some((_, totals)) = kept.pop_front_if(|(kept, _)| *kept >= age) {
                samples.before = totals;
            }
            if let Some(at) = Instant::now().checked_sub(age) {
                samples.push(at, samples.before.clone());
            }
        }
    }

    /// Returns the traffic of the last 24 hours up to the present totals; `None` before the first sample.
    pub fn last_day(&self, now: &Totals) -> Option<TrafficStatus> {
        let samples = self.0.lock();
        let [_, length] = PERIODS;
        let day = (!samples.list.is_empty()).then(|| samples.period(now, length))?;
        Some(TrafficStatus {
            seconds: day.seconds,
            hits: day.hits,
            misses: day.misses,
            served_bytes: day.served_bytes,
            upstream_bytes: day.upstream_bytes,
        })
    }

    /// Returns the report up to the present totals.
    pub fn report(&self, now: &Totals) -> HistoryReport {
        let samples = self.0.lock();
        let pairs = samples.list.iter().zip(samples.list.iter().skip(1));
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
            periods: PERIODS.map(|length| samples.period(now, length)).into(),
        }
    }
}

impl Samples {
    fn push(&mut self, at: Instant, totals: Totals) {
        if self.list.len() >= MAX_SAMPLES {
            self.list.pop_front();
        }
        self.list.push_back((at, totals));
    }

    /// Returns the sums since the last sample that is as old as the period, or since the oldest one.
    fn period(&self, now: &Totals, length: Duration) -> Period {
        let is_older = |sample: &&(Instant, Totals)| sample.0.elapsed() >= length;
        let start = self
            .list
            .iter()
            .rev()
            .find(is_older)
            .or_else(|| self.list.front());
        let zero = Totals::default();
        let now = self.before.plus(now);
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
        assert_eq!(history.last_day(&Totals::default()), None);
        let totals = |hits| Totals {
            hits,
            ..Totals::default()
        };
        for hits in 0..2 * MAX_SAMPLES as u64 {
            assert_eq!(history.add(&totals(hits)).is_some(), hits > 0);
        }
        let report = history.report(&totals(2 * MAX_SAMPLES as u64 + 9));
        let day = history.last_day(&totals(2 * MAX_SAMPLES as u64 + 9)).unwrap();
        assert_eq!(day.hits, report.periods[1].hits);
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

    /// A restarted server continues the history: the gap without samples has no traffic, and the new totals are added.
    #[test]
    fn history_continues_after_a_restart() {
        let (hour, totals) = (Duration::from_hours(1), Totals::parse(METRICS).0);
        let earlier = History::default();
        let first = earlier.add(&totals).unwrap();
        assert_eq!(earlier.add(&totals), None, "a sample without traffic is not kept");
        let second = earlier.add(&totals.plus(&totals)).unwrap();

        let history = History::default();
        let odd = vec![1; 7];
        history.restore([(hour * 3, first), (hour * 2, second), (hour, odd)]);
        let now = Totals {
            hits: 5,
            ..Totals::default()
        };
        let report = history.report(&now);
        let [last_hour, day] = report.periods.as_slice() else {
            panic!("{report:?}");
        };
        assert_eq!((last_hour.hits, last_hour.misses), (5, 0));
        assert!((3_600..3_700).contains(&last_hour.seconds), "{last_hour:?}");
        assert_eq!((day.hits, day.misses, day.saved_bytes), (14 + 5, 2, 140));
        assert!(report.samples.len() >= 180, "{}", report.samples.len());
        assert_eq!(history.last_day(&now).unwrap().hits, 19);
        assert!(history.add(&now).is_some());
    }

    proptest::proptest! {
        /// Kept totals are read as they were written, and no bytes make the reader panic.
        #[test]
        fn kept_totals_are_read_back(numbers: [u64; 5], counts: Vec<u32>, bytes: Vec<u8>) {
            let [hits, misses, errors, served, received] = numbers;
            let buckets = counts.iter().take(MAX_BUCKETS).enumerate();
            let buckets = buckets.map(|(bound, count)| (f64::from(u32::try_from(bound).unwrap()), u64::from(*count)));
            let buckets = buckets.collect();
            let totals = Totals { hits, misses, errors, served, received, buckets };
            proptest::prop_assert_eq!(Totals::from_bytes(&totals.to_bytes()), Some(totals));
            let _ = Totals::from_bytes(&bytes);
        }
    }
}
