//! `health`.

use std::collections::BTreeMap;

use crate::config::duration::GoDuration;
use crate::config::overlay::section;

section! {
    /// What `/debug/health` looks at.
    Health {
        /// Files that must not exist.
        "file" ("FILECHECKERS") => files: Vec<FileChecker>,
        /// URLs that must answer.
        "http" ("HTTPCHECKERS") => http: Vec<HttpChecker>,
        /// Ports that must be open.
        "tcp" ("TCPCHECKERS") => tcp: Vec<TcpChecker>,
        /// The cache directory can be read.
        "storagedriver" => storage: StorageChecker,
    }
}

section! {
    /// The cache directory can be read.
    StorageChecker {
        /// Whether this is looked at.
        "enabled" => enabled: bool,
        /// From one look to the next; 10 s if absent.
        "interval" => interval: Option<GoDuration>,
        /// Failures in a row before it counts as failed; 1 if absent.
        "threshold" => threshold: Option<u32>,
    }
}

section! {
    /// A file whose existence takes the server out of service.
    FileChecker {
        /// The file.
        "file" => file: String,
        /// From one look to the next; 10 s if absent.
        "interval" => interval: Option<GoDuration>,
        /// Failures in a row before it counts as failed; 1 if absent.
        "threshold" => threshold: Option<u32>,
    }
}

section! {
    /// A URL that must answer HEAD.
    HttpChecker {
        /// The URL.
        "uri" => uri: String,
        /// Sent along.
        "headers" => headers: BTreeMap<String, Vec<String>>,
        /// What it must answer; 200 if absent.
        "statuscode" => status_code: Option<u16>,
        /// Within this time; 5 s if absent.
        "timeout" => timeout: Option<GoDuration>,
        /// From one look to the next; 10 s if absent.
        "interval" => interval: Option<GoDuration>,
        /// Failures in a row before it counts as failed; 1 if absent.
        "threshold" => threshold: Option<u32>,
    }
}

section! {
    /// A port that must be open.
    TcpChecker {
        /// `host:port`.
        "addr" => addr: String,
        /// Within this time; 5 s if absent.
        "timeout" => timeout: Option<GoDuration>,
        /// From one look to the next; 10 s if absent.
        "interval" => interval: Option<GoDuration>,
        /// Failures in a row before it counts as failed; 1 if absent.
        "threshold" => threshold: Option<u32>,
    }
}
