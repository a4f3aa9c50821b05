//! The last error of an upstream, which its status reports.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::error::Error;
use crate::clock::Clock;

/// The longest message that is kept, in bytes.
const MAX_MESSAGE: usize = 1 << 10;

/// An error of an upstream, and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// The problem.
    pub message: String,
    /// The time of the error.
    pub at: Timestamp,
}

/// The record of the last error. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct ErrorRecord {
    clock: Clock,
    last: Arc<Mutex<Option<LastError>>>,
}

impl ErrorRecord {
    pub(super) fn new(clock: Clock) -> Self {
        let last = Arc::default();
        Self { clock, last }
    }

    /// Records an error. Content that the upstream does not have is no error of the upstream.
    pub(super) fn record(&self, error: &Error) {
        if matches!(error, Error::NotFound { .. }) {
            return;
        }
        let mut message = error.to_string();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        *self.last.lock() = Some(LastError {
            message,
            at: self.clock.now(),
        });
    }

    /// Returns the time at the end of a pause that begins now.
    pub(super) fn time_after(&self, pause: Duration) -> Timestamp {
        let now = self.clock.now();
        now.checked_add(pause).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn last(&self) -> Option<LastError> {
        self.last.lock().clone()
    }
}
