//! The mirror's logs and traces.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// Logs and traces.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Observability {
    /// `error`, `warn`, `info` or `debug`.
    #[serde(default)]
    pub log_level: LogLevel,

    /// `json` or `text`.
    #[serde(default)]
    pub log_format: LogFormat,

    /// `Enabled` (a log line for each request of a client) or `Disabled`.
    #[serde(default)]
    pub access_log: AccessLog,

    /// The collector that takes the servers' traces, OTLP over HTTP, such as `http://collector.monitoring:4318`:
    /// `http://` or `https://`, host, and optionally a port and a path. Absent: no traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = rules::collector_url())]
    pub otlp_endpoint: Option<String>,
}

/// The log level.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures that need an action.
    Error,
    /// Conditions that may need an action soon.
    Warn,
    /// One line a request, and what changes.
    #[default]
    Info,
    /// Every decision.
    Debug,
}

/// The access log: a line for each request of a client.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// One line a request, from level `info` on.
    #[default]
    Enabled,
    /// No such lines.
    Disabled,
}

/// The format of log lines.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}
