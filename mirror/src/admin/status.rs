//! `/status`: what a server says of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::credentials::Report;

/// The status report of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The server's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The configuration file in force: the SHA-256 of its bytes in hexadecimal; empty without a file.
    pub configuration_version: String,
    /// Why the last configuration was not taken; empty if it was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub configuration_error: String,
    /// The reason why no client can log in (`auth.htpasswd`); empty if clients can log in, or need not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub users_error: String,
    /// `true` if the server stops once its requests have ended.
    pub draining: bool,
    /// The upstreams, the default one first.
    pub upstreams: Vec<UpstreamStatus>,
    /// The other replicas of the mirror.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerStatus>,
    /// The cache.
    pub cache: CacheStatus,
    /// The traffic of the last 24 hours; absent without the page (`admin.page`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_day: Option<TrafficStatus>,
    /// The clients that pulled in the last 24 hours, by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientStatus>,
    /// The bucket behind the cache, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketStatus>,
}

/// The traffic of a period.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficStatus {
    /// The length of the period: less than a day after a start.
    pub seconds: u64,
    /// Requests for manifests and blobs without a download of their own.
    pub hits: u64,
    /// Requests for manifests and blobs that an upstream answered.
    pub misses: u64,
    /// Bytes of content that clients received.
    pub served_bytes: u64,
    /// Bytes that upstreams sent.
    pub upstream_bytes: u64,
}

/// A client of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// The address of its connections.
    pub address: IpAddr,
    /// The time of its last pull from each upstream, to a minute.
    pub last_pulls: BTreeMap<String, Timestamp>,
}

impl ClientStatus {
    /// Returns the address with the time of its last pull from any upstream.
    pub fn last_pull(&self) -> Option<(IpAddr, Timestamp)> {
        let last = self.last_pulls.values().max()?;
        Some((self.address, *last))
    }
}

/// Another replica of the mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The address of its peer port.
    pub address: String,
    /// Its random id; empty until it answered.
    pub id: String,
    /// `serving`, or the reason why it is not asked: `unknown`, `starting`, `draining`, `suspect`, `unreachable`, `refused`, `incompatible`,
    /// `otherUpstreams` or `excluded`.
    pub state: String,
    /// The cause of the state `refused`: `clock`, `secret` or `tls`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// The time since which it has this state (RFC 3339).
    pub since: String,
}

/// One upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamStatus {
    /// Its name.
    pub host: String,
    /// `Reachable`, `Unreachable`, `RateLimited` or `Unknown`.
    pub state: String,
    /// The remaining requests of its rate limit for the credential in use, as last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_remaining: Option<i64>,
    /// The requests that its rate limit allows in its window, as last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<i64>,
    /// The time at which its rate limit is reset (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_reset: Option<String>,
    /// The last error of a request to it; absent if there was none since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The time of that error (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_time: Option<String>,
    /// The time of the next request to it (RFC 3339), while it is down or limits the rate of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<String>,
    /// Its credential.
    pub credentials: Report,
}

/// The cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    /// Bytes that it takes.
    pub bytes: u64,
    /// Bytes that it may take, where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Pieces of content.
    pub blobs: u64,
    /// The oldest last use of a piece of content (RFC 3339); absent in an empty cache. Eviction begins there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_use: Option<String>,
    /// `true` if nothing can be stored even after eviction; pulls continue without the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
}

/// The bucket behind the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketStatus {
    /// `Reachable`, `Unreachable`, `Denied`, `NotFound` or `Unknown`.
    pub state: String,
    /// The last error of a request; empty if the last one was answered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Pieces of content that mirrors uploaded, in the shards that this server owns; absent without `maxsize`, and while
    /// it reads them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// The size of these pieces in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The oldest last use of a piece of this content (RFC 3339); absent without content. Eviction begins there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_use: Option<String>,
    /// The objects that wait for their upload.
    pub pending_uploads: u64,
    /// The last failure of an upload of this server, until one succeeds; empty while nothing waits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub upload_error: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::CredentialState;

    /// The status document has the field names that operators read.
    #[test]
    fn status_document_has_operator_field_names() {
        let status = Status {
            version: "1.2.3".into(),
            uptime_seconds: 5,
            configuration_version: "abc".into(),
            upstreams: vec![UpstreamStatus {
                host: "docker.io".into(),
                state: "Reachable".into(),
                rate_limit_remaining: Some(98),
                rate_limit: Some(100),
                rate_limit_reset: Some("2026-01-01T00:00:00Z".into()),
                last_error: Some("upstream is unavailable: it answered 502".into()),
                last_error_time: Some("2025-12-31T23:00:00Z".into()),
                next_try: Some("2026-01-01T00:00:00Z".into()),
                credentials: Report {
                    state: CredentialState::Rejected,
                    version_loaded: Some(1),
                    version_seen: Some(2),
                    message: "401".into(),
                },
            }],
            ..Status::default()
        };
        let json = serde_json::to_value(&status).unwrap();
        let expected = serde_json::json!({
            "version": "1.2.3", "uptimeSeconds": 5, "configurationVersion": "abc", "draining": false,
            "upstreams": [{"host": "docker.io", "state": "Reachable", "rateLimitRemaining": 98, "rateLimit": 100,
                "rateLimitReset": "2026-01-01T00:00:00Z", "lastError": "upstream is unavailable: it answered 502",
                "lastErrorTime": "2025-12-31T23:00:00Z", "nextTry": "2026-01-01T00:00:00Z", "credentials":
                {"state": "Rejected", "versionLoaded": 1, "versionSeen": 2, "message": "401"}}],
            "cache": {"bytes": 0, "blobs": 0},
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }
}
