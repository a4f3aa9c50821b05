//! The counters of the answers that are given most, found without hashing their labels for each.

use std::sync::OnceLock;

use http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::labels::{Kind, Outcome};

/// One more than the last; a label that is added behind it is counted as unusual, no worse.
const KINDS: usize = Kind::Other as usize + 1;
const OUTCOMES: usize = Outcome::None as usize + 1;

/// The counters of one kind of response. The first response of its kind starts a series.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) count: Counter,
    pub(super) seconds: Histogram,
}

/// `GET` answered with 200, by kind and outcome.
#[derive(Debug, Default)]
pub(super) struct Usual([[OnceLock<Answers>; OUTCOMES]; KINDS]);

impl Usual {
    /// Returns the slot of a common kind of response.
    pub(super) fn place(
        &self,
        method: &Method,
        kind: Kind,
        code: StatusCode,
        outcome: Outcome,
    ) -> Option<&OnceLock<Answers>> {
        let usual = *method == Method::GET && code == StatusCode::OK;
        self.0.get(kind as usize)?.get(outcome as usize).filter(|_| usual)
    }
}
