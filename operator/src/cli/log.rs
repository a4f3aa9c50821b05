//! The log of the operator.

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal},
};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// The log level.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Level {
    /// Failures that need an action.
    Error,
    /// Conditions that may need an action soon.
    Warn,
    /// Changes.
    Info,
    /// Every decision.
    Debug,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Sends the events of this process to stderr. Text has ANSI colours on a terminal only.
pub(super) fn start(level: Level, format: LogFormat) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(has_colours(io::stderr().is_terminal(), |name| env::var_os(name)));
    let registry = tracing_subscriber::registry().with(filter(level));
    // Fails only if a log is installed already, as in tests.
    let _ = match format {
        LogFormat::Json => registry
            .with(lines.json().flatten_event(true).with_span_list(false))
            .try_init(),
        LogFormat::Text => registry.with(lines).try_init(),
    };
}

/// Decides on ANSI colours from the kind of stderr and the environment: a non-empty `NO_COLOR` (no-color.org) and the
/// `TERM` of a terminal without colours turn them off.
fn has_colours(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let no_color = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = variable("TERM").is_some_and(|term| term == "dumb");
    is_terminal && !no_color && !is_dumb
}

/// Returns the filter: events of the operator at the level, and warnings of other crates at most.
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
        // The operator logs failures of watches itself, once.
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
    fn targets_are_filtered_by_level(level: Level, target: &str, of: Of) -> bool {
        filter(level).would_enable(target, &of)
    }

    /// The log has colours only on a terminal.
    #[test_case(true, &[] => true; "a terminal")]
    #[test_case(false, &[] => false; "a pipe")]
    #[test_case(true, &[("NO_COLOR", "1")] => false; "colours are not wanted")]
    #[test_case(true, &[("NO_COLOR", "")] => true; "an empty variable")]
    #[test_case(true, &[("TERM", "dumb")] => false; "a terminal without colours")]
    #[test_case(true, &[("TERM", "xterm")] => true; "a terminal with colours")]
    fn colours_need_a_terminal(is_terminal: bool, variables: &[(&str, &str)]) -> bool {
        let variable = |name: &str| {
            let mut variables = variables.iter();
            variables
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.into())
        };
        has_colours(is_terminal, variable)
    }
}
