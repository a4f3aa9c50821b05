//! `log`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Present;
use crate::config::log::Level;
use crate::config::overlay::section;

section! {
    /// How requests and events are logged.
    Log {
        /// A line for each request.
        "accesslog" => access_log: AccessLog,
        /// The least important level that is written; `info` if absent.
        "level" => level: Option<Level>,
        /// `text` (if absent), `json` or `logstash` (JSON too).
        "formatter" => formatter: Option<String>,
        /// Put into every line.
        "fields" => fields: BTreeMap<String, Value>,
        /// Without effect.
        "hooks" => hooks: Present,
        /// Without effect.
        "reportcaller" => report_caller: Present,
    }
}

section! {
    /// A line for each request.
    AccessLog {
        /// No such lines.
        "disabled" => disabled: bool,
    }
}
