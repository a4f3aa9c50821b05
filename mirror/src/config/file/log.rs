//! `log`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::IgnoredKey;
use crate::config::log::Level;
use crate::config::overlay::section;

section! {
    /// The settings of the log.
    Log {
        /// A line for each request.
        "accesslog" => access_log: AccessLog,
        /// The least important level that is written.
        "level" => level: Option<Level>,
        /// The format of a line: `text`, `json`, or `logstash` for JSON with Logstash's names.
        "formatter" => formatter: Option<String>,
        /// Fields that are put into every line.
        "fields" => fields: BTreeMap<String, Value>,
        /// Mails that are sent for lines of some levels.
        "hooks" => hooks: IgnoredKey,
        /// The place in the source that a line comes from.
        "reportcaller" => report_caller: IgnoredKey,
    }
}

section! {
    /// A line for each request.
    AccessLog {
        /// Disables the line for each request.
        "disabled" => disabled: bool,
    }
}
