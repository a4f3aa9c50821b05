//! The operator's own log.

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// How much is logged.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Level {
    /// What needs someone to act.
    Error,
    /// What may need it soon.
    Warn,
    /// What is changed.
    Info,
    /// Every decision.
    Debug,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Sends this process' events to stderr.
pub(super) fn start(level: Level, format: Format) {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter(level));
    // Fails only where a log is there already, as in tests.
    let _ = match format {
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        Format::Text => registry.with(lines).try_init(),
    };
}

/// Our own events by the level; of other crates only what is at least a warning, unless less is wanted.
fn filter(level: Level) -> Targets {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let others = level.min(LevelFilter::WARN);
    Targets::new()
        .with_default(others)
        // What a watch is refused, the operator tells itself, once.
        .with_target("kube_runtime::watcher", LevelFilter::ERROR)
        // It warns of an answer that can't be read with all of the answer: a Secret's values, if it is one.
        .with_target("kube_client::client", LevelFilter::ERROR)
        .with_target("kube_client::client::tls", others)
        .with_target(env!("CARGO_CRATE_NAME"), level)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;
    use tracing::Level as Of;

    use super::*;

    #[test_case(Level::Debug, "operator::apply", Of::DEBUG => true)]
    #[test_case(Level::Info, "operator::apply", Of::DEBUG => false)]
    #[test_case(Level::Debug, "hyper", Of::WARN => true; "a warning of another crate")]
    #[test_case(Level::Debug, "hyper", Of::INFO => false; "the chatter of another crate")]
    #[test_case(Level::Error, "hyper", Of::WARN => false; "a warning where errors only are wanted")]
    #[test_case(Level::Debug, "kube_client::client", Of::WARN => false; "an answer in full")]
    #[test_case(Level::Debug, "kube_client::client::builder", Of::ERROR => true; "a request that failed")]
    #[test_case(Level::Debug, "kube_client::client::tls", Of::WARN => true; "authorities that can't be read")]
    fn what_is_logged(level: Level, target: &str, of: Of) -> bool {
        filter(level).would_enable(target, &of)
    }
}
