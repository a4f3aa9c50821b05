//! The log: one line an event on stderr, JSON or text, with Distribution's names for time, level and message.

mod escape;
mod line;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::Log;
use crate::config::log::Level;
use crate::traces::Traces;
pub use escape::is_hidden;
pub(crate) use escape::shorten;
use line::Line;

/// The target of the lines that tell of requests.
const ACCESS: &str = "access";

/// So many lines wait for a reader that is slow. More are lost: no request is held up for a log.
const WAITING: usize = 8_192;

/// Writes what waits when it is dropped, for a second at most.
#[derive(Debug)]
#[must_use]
pub struct Rest {
    _written_on_drop: WorkerGuard,
}

/// Changes the level of a log that is being written.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

/// Sends this process' events to stderr and its spans to `traces` from now on.
///
/// # Errors
/// There is a log already.
pub fn start(log: &Log, traces: Option<&Traces>) -> Result<(LevelHandle, Rest), SetGlobalDefaultError> {
    let (writer, rest) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING)
        .thread_name("log")
        .finish(std::io::stderr());
    let (filter, handle) = reload::Layer::new(filter(log));
    let lines = fmt::layer()
        .event_format(Line::new(log))
        .with_writer(writer)
        .with_filter(filter);
    tracing::subscriber::set_global_default(Registry::default().with(lines).with(traces.map(Traces::layer)))?;
    Ok((
        LevelHandle(handle),
        Rest {
            _written_on_drop: rest,
        },
    ))
}

impl LevelHandle {
    /// Takes the level of another configuration; the format stays.
    pub fn set(&self, log: &Log) {
        // Fails only where the log is gone, and then nothing is written anyway.
        let _ = self.0.reload(filter(log));
    }
}

/// Returns the filter of events: those of this server by the configured level, those of other crates from warnings on,
/// unless the level is higher. Access log lines have a switch of their own.
fn filter(log: &Log) -> Targets {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let access = if log.access {
        LevelFilter::INFO
    } else {
        LevelFilter::OFF
    };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level)
        .with_target(ACCESS, access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use test_case::test_case;
    use tracing::Level as Of;

    fn log(level: Level, access: bool) -> Log {
        Log {
            level,
            format: crate::config::log::Format::Text,
            fields: BTreeMap::new(),
            access,
        }
    }

    #[test_case(Level::Info, "mirror::pull", Of::INFO => true)]
    #[test_case(Level::Info, "mirror::pull", Of::DEBUG => false)]
    #[test_case(Level::Debug, "mirror", Of::DEBUG => true)]
    #[test_case(Level::Debug, "h2::codec", Of::DEBUG => false; "other crates stay quiet")]
    #[test_case(Level::Debug, "rustls", Of::WARN => true)]
    #[test_case(Level::Error, "rustls", Of::WARN => false)]
    #[test_case(Level::Debug, crate::traces::TARGET, Of::INFO => false; "spans cost nothing without a collector")]
    fn levels_pass_by_target(level: Level, target: &str, of: Of) -> bool {
        filter(&log(level, true)).would_enable(target, &of)
    }

    /// The lines of the access log have a switch of their own.
    #[test]
    fn access_lines_have_their_own_switch() {
        assert!(filter(&log(Level::Error, true)).would_enable(ACCESS, &Of::INFO));
        assert!(!filter(&log(Level::Debug, false)).would_enable(ACCESS, &Of::INFO));
    }
}
