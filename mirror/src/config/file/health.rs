//! `health`.

use std::collections::BTreeMap;

use crate::config::duration::GoDuration;
use crate::config::overlay::section;

section! {
    /// The health checks that `/debug/health` reports.
    Health {
        /// Files that must not exist.
        "file" ("FILECHECKERS") => files: Vec<FileChecker>,
        /// URLs that must answer.
        "http" ("HTTPCHECKERS") => http: Vec<HttpChecker>,
        /// Ports that must be open.
        "tcp" ("TCPCHECKERS") => tcp: Vec<TcpChecker>,
        /// A check that the cache directory can be read.
        "storagedriver" => storage: StorageChecker,
    }
}

section! {
    /// The cache directory can be read.
    StorageChecker {
        /// Enables the check of the cache directory.
        "enabled" => enabled: bool,
        /// The time from one check to the next.
        "interval" => interval: Option<GoDuration>,
        /// The failures in a row until the check counts as failed.
        "threshold" => threshold: Option<u32>,
    }
}

section! {
    /// A file whose existence takes the server out of service.
    FileChecker {
        /// A file that takes the server out of service while it exists.
        "file" => file: String,
        /// The time from one check to the next.
        "interval" => interval: Option<GoDuration>,
        /// The failures in a row until the check counts as failed.
        "threshold" => threshold: Option<u32>,
    }
}

section! {
    /// A URL that must answer HEAD.
    HttpChecker {
        /// A URL that must answer to HEAD.
        "uri" => uri: String,
        /// Headers that are sent along.
        "headers" => headers: BTreeMap<String, Vec<String>>,
        /// The status that is expected.
        "statuscode" => status_code: Option<u16>,
        /// The time in which the answer has to come; 0 is the default.
        "timeout" => timeout: Option<GoDuration>,
        /// The time from one check to the next.
        "interval" => interval: Option<GoDuration>,
        /// The failures in a row until the check counts as failed.
        "threshold" => threshold: Option<u32>,
    }
}

section! {
    /// A port that must be open.
    TcpChecker {
        /// A port that must be open, `host:port`.
        "addr" => addr: String,
        /// The time in which the connection has to open; 0 is the default.
        "timeout" => timeout: Option<GoDuration>,
        /// The time from one check to the next.
        "interval" => interval: Option<GoDuration>,
        /// The failures in a row until the check counts as failed.
        "threshold" => threshold: Option<u32>,
    }
}
