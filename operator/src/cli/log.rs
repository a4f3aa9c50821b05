//! The operator's own log.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    // Other crates' chatter is not wanted at any level. What a watch is refused, the operator tells itself, once.
    let filter = EnvFilter::new(format!(
        "warn,kube_runtime::watcher=error,{}={level}",
        env!("CARGO_CRATE_NAME")
    ));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Fails only where a log is there already, as in tests.
    let _ = match format {
        Format::Json => subscriber.json().flatten_event(true).try_init(),
        Format::Text => subscriber.try_init(),
    };
}
