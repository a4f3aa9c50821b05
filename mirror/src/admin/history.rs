//! The last 24 hours in numbers: sums of the metrics, a sample for each minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{TrafficStatus, numbers};
use crate::metrics::Totals;

/// The time between two samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_mins(1);
/// The most samples: those of 24 hours.
const MAX_SAMPLES: usize = 24 * 60 + 1;
/// The periods of a report.
const PERIODS: [Duration; 2] = [Duration::from_hours(1), Duration::from_hours(24)];

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
            hit_ratio: numbers::hit_ratio(change.hits, change.misses),
            served_bytes: change.served,
            upstream_bytes: change.received,
            saved_bytes: numbers::saved_bytes(change.served, change.received),
            p99_seconds: change.p99(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// A restarted server continues the history: the gap without samples has no traffic, and the new totals are added.
    #[test]
    fn history_continues_after_a_restart() {
        let hour = Duration::from_hours(1);
        let totals = Totals {
            hits: 7,
            misses: 1,
            served: 100,
            received: 30,
            ..Totals::default()
        };
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
}
