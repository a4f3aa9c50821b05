//! Failed requests in the log: a line for each, and one with a count for many that are alike.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::Level;

use super::Service;
use super::connection::ConnectionMismatch;
use crate::name::Host;
use crate::tls;

/// Lines of one kind within [`WINDOW`]; more are counted.
const LINES: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);
/// Kinds that are counted at once. There are a few for each upstream.
const KINDS: usize = 1_024;

/// A request that failed, as the log shows it.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) level: Level,
    pub(super) kind: Kind,
    /// A sentence without secrets, as the client gets it too.
    pub(super) reason: String,
    /// The repository of the request, as far as it is known.
    pub(super) repository: Option<String>,
    /// The tag or the digest.
    pub(super) reference: Option<String>,
    pub(super) user: Option<Box<str>>,
    /// The request's id.
    pub(super) id: HeaderValue,
}

/// A group of failures that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) upstream: Option<Host>,
    pub(super) status: u16,
    /// The code that the client gets; `None` for an answer that was cut.
    pub(super) code: Option<&'static str>,
    /// A word for all reasons that differ in details only.
    pub(super) class: &'static str,
}

/// The failures of late, by kind. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct FailureLog(Arc<Mutex<HashMap<Kind, Window>>>);

/// The failures of one kind since the first of them.
#[derive(Debug)]
struct Window {
    ends: Instant,
    count: u64,
}

/// The way that a failure is logged.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Line,
    /// The first without a line: at the end of the window a line tells how many there were.
    FirstCounted(Instant),
    Counted,
}

impl FailureLog {
    /// Writes the failure to the log, at once or as one of many.
    pub(super) fn log(&self, failed: Failed) {
        match self.count(&failed.kind, Instant::now()) {
            Verdict::Line => failed.write(None),
            Verdict::Counted => {}
            Verdict::FirstCounted(end) => {
                let failures = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(end).await;
                    let repeated = failures.take(&failed.kind);
                    failed.write(Some(repeated));
                });
            }
        }
    }

    fn count(&self, kind: &Kind, now: Instant) -> Verdict {
        let mut windows = self.0.lock();
        if windows.len() >= KINDS {
            windows.retain(|_, window| window.ends > now || window.count > LINES);
        }
        if windows.len() >= KINDS && !windows.contains_key(kind) {
            return Verdict::Counted;
        }
        let fresh = || Window {
            ends: now + WINDOW,
            count: 0,
        };
        let window = windows.entry(kind.clone()).or_insert_with(fresh);
        // One with more than its lines ends when it is taken.
        if window.ends <= now && window.count <= LINES {
            *window = fresh();
        }
        window.count += 1;
        match window.count.checked_sub(LINES) {
            None | Some(0) => Verdict::Line,
            Some(1) => Verdict::FirstCounted(window.ends),
            Some(_) => Verdict::Counted,
        }
    }

    /// Ends a window and returns how many failures in it had no line.
    fn take(&self, kind: &Kind) -> u64 {
        let window = self.0.lock().remove(kind);
        window.map_or(0, |window| window.count.saturating_sub(LINES))
    }
}

/// Writes an event of a level that is not known before.
macro_rules! event {
    ($level:expr, $($fields:tt)*) => {
        match $level {
            Level::WARN => tracing::warn!($($fields)*),
            Level::INFO => tracing::info!($($fields)*),
            _ => tracing::debug!($($fields)*),
        }
    };
}

impl Failed {
    fn write(&self, repeated: Option<u64>) {
        let kind = &self.kind;
        event!(
            self.level,
            upstream = kind.upstream.as_ref().map(Host::as_str),
            status = kind.status,
            code = kind.code,
            reason = self.reason,
            repository = self.repository.as_deref(),
            reference = self.reference.as_deref(),
            user = self.user.as_deref(),
            id = self.id.to_str().ok(),
            repeated,
            "request failed"
        );
    }
}

impl Service {
    /// Returns `true` if the client gets a response: the peer port says nothing to a client without TLS.
    pub(super) fn answers(&self, mismatch: ConnectionMismatch) -> bool {
        self.app.fleet.is_none() || mismatch == ConnectionMismatch::TlsToHttp
    }

    /// Logs a connection of a client that speaks another protocol than its port serves.
    pub(super) fn log_mismatch(&self, mismatch: ConnectionMismatch, peer: &str) {
        let reason = format!("{mismatch}; its address is {peer}");
        self.log_connection(Level::WARN, StatusCode::BAD_REQUEST, "protocol", reason);
    }

    /// Logs the end of a connection by an error: a request of HTTP/1.1 that the parser refused, or any other.
    pub(super) fn log_connection_error(&self, error: &(dyn Error + 'static), peer: &str) {
        let parsed = error.downcast_ref::<hyper::Error>();
        let Some(error) = parsed.filter(|error| error.is_parse()) else {
            tracing::debug!(%error, "a connection failed");
            return;
        };
        let status = if error.is_parse_too_large() {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        } else {
            StatusCode::BAD_REQUEST
        };
        let reason = format!("the request of the client {peer} can't be parsed: {error}");
        self.log_connection(Level::INFO, status, "unparsed", reason);
    }

    /// Logs a TLS handshake that failed: because of the client's certificate, or for any other reason.
    pub(super) fn log_handshake_error(&self, error: &io::Error, peer: &str) {
        if !tls::is_refused_certificate(error) {
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        let reason = format!("the certificate of the client {peer} was refused: {error}");
        self.log_connection(
            Level::INFO,
            StatusCode::UNAUTHORIZED,
            "client_certificate",
            reason,
        );
    }

    fn log_connection(&self, level: Level, status: StatusCode, class: &'static str, reason: String) {
        self.app.failures.log(Failed {
            level,
            kind: Kind {
                upstream: None,
                status: status.as_u16(),
                code: Some("UNSUPPORTED"),
                class,
            },
            reason,
            repository: None,
            reference: None,
            user: None,
            id: HeaderValue::from_static(""),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(number: usize) -> Kind {
        Kind {
            upstream: format!("{number}.test").parse().ok(),
            status: 503,
            code: Some("TOOMANYREQUESTS"),
            class: "unavailable",
        }
    }

    /// After some lines, failures of one kind are counted and not logged.
    #[test]
    fn similar_failures_are_counted_after_lines() {
        let (failures, now) = (FailureLog::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(failures.count(&kind(1), now), Verdict::Line);
        }
        assert_eq!(failures.count(&kind(1), now), Verdict::FirstCounted(now + WINDOW));
        assert_eq!(failures.count(&kind(1), now), Verdict::Counted);
        assert_eq!(failures.count(&kind(2), now), Verdict::Line, "of another kind");
        assert_eq!(
            failures.count(&kind(1), now + 2 * WINDOW),
            Verdict::Counted,
            "not taken yet"
        );
        assert_eq!(failures.take(&kind(1)), 3);
        assert_eq!(failures.count(&kind(1), now), Verdict::Line);
    }

    /// A window in which no failure was counted ends by itself.
    #[test]
    fn failure_window_without_count_ends() {
        let (failures, now) = (FailureLog::default(), Instant::now());
        for round in 0..3 {
            for _ in 0..LINES {
                assert_eq!(failures.count(&kind(1), now + round * WINDOW), Verdict::Line);
            }
        }
    }

    #[test]
    fn kinds_take_bounded_memory() {
        let (failures, now) = (FailureLog::default(), Instant::now());
        for number in 0..3 * KINDS {
            failures.count(&kind(number), now);
        }
        assert_eq!(failures.0.lock().len(), KINDS);
        assert_eq!(failures.count(&kind(9 * KINDS), now + WINDOW), Verdict::Line);
        assert_eq!(failures.0.lock().len(), 1);
    }
}
