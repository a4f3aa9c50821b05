//! What is logged, and how (`log`).

use std::collections::BTreeMap;

/// The log's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written.
    pub level: Level,
    /// One JSON object a line, or text.
    pub format: Format,
    /// Put into every line.
    pub fields: BTreeMap<String, String>,
    /// Whether each request gets a line.
    pub access: bool,
}

/// How important a line is, by Distribution's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Only what failed.
    Error,
    /// Also what may need a look.
    Warn,
    /// Also what happens.
    #[default]
    Info,
    /// Also why.
    Debug,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}
