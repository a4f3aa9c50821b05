//! The Pods that run servers, with their last reports.

use std::net::IpAddr;

use crds::status::{UpstreamState, is_server_version};
use mirror::{
    admin,
    config::host::canonical,
    credentials::{CredentialState, Report as CredentialReport},
    logging::is_hidden,
};

/// The maximum length of a text from a server, in bytes.
const MAX_TEXT: usize = 256;

/// A Pod that runs a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The name of the Pod.
    pub pod: String,
    /// The UID of the Pod: another Pod of this name has no report yet.
    pub uid: String,
    /// The IP address of the Pod.
    pub address: IpAddr,
    /// The result of polling it.
    pub poll: PollResult,
}

/// The result of polling a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PollResult {
    /// The server was not polled yet: its last known state counts.
    #[default]
    NotPolled,
    /// The server did not answer several times in a row.
    Unresponsive,
    /// The server reported this.
    Report(ServerReport),
}

/// The report of a server, without values that change all the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// The version of the server; empty if the server reports none.
    pub version: String,
    /// The SHA-256 of the configuration in force, in hexadecimal.
    pub configuration: String,
    /// The error of a later configuration that the server did not load; empty if there is none.
    pub configuration_error: String,
    /// The upstreams.
    pub upstreams: Vec<UpstreamReport>,
    /// The server can store no more content.
    pub full: bool,
    /// The bucket, if the server has one.
    pub bucket: Option<BucketReport>,
}

/// The report of a server on its bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketReport {
    /// The state; `None` before the first request was answered.
    pub state: Option<BucketState>,
    /// The error of the last request; empty if it was answered.
    pub message: String,
    /// The pieces of content that the server owns, rounded; `None` while it reads its ledger.
    pub objects: Option<i64>,
    /// Their size in bytes, rounded; `None` while the server reads its ledger.
    pub bytes: Option<i64>,
    /// The objects that wait for their upload, rounded.
    pub pending_uploads: i64,
}

/// The state of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketState {
    /// The last request was answered.
    Reachable,
    /// The store refused the credentials or the permission.
    Denied,
    /// The store has no such bucket.
    NotFound,
    /// The store did not answer, or with an error.
    Unreachable,
}

/// The report of a server on one of its upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamReport {
    /// The host.
    pub host: String,
    /// The reachability.
    pub state: UpstreamState,
    /// The state of its credentials.
    pub credentials: CredentialReport,
}

impl Server {
    /// Returns the report, if there is one.
    pub fn report(&self) -> Option<&ServerReport> {
        match &self.poll {
            PollResult::Report(report) => Some(report),
            PollResult::NotPolled | PollResult::Unresponsive => None,
        }
    }

    /// Returns the report on an upstream's credentials.
    pub fn credentials(&self, host: &str) -> Option<&CredentialReport> {
        Some(&self.report()?.upstream(host)?.credentials)
    }

    /// Returns whether the server uses this version of an upstream's credentials and the upstream accepts them.
    pub fn has_proven(&self, host: &str, version: u64) -> bool {
        self.credentials(host).is_some_and(|credentials| {
            credentials.state == CredentialState::Active && credentials.version_loaded == Some(version)
        })
    }
}

impl ServerReport {
    /// Returns the report on the upstream that a spec calls `host`. The server reports its canonical name.
    pub fn upstream(&self, host: &str) -> Option<&UpstreamReport> {
        let host = canonical(host).ok()?;
        self.upstreams
            .iter()
            .find(|upstream| upstream.host == host.as_str())
    }
}

impl From<admin::Status> for ServerReport {
    fn from(status: admin::Status) -> Self {
        Self {
            version: Some(status.version)
                .filter(|text| is_server_version(text))
                .unwrap_or_default(),
            configuration: cut(status.configuration_version),
            configuration_error: cut(status.configuration_error),
            upstreams: status.upstreams.into_iter().map(UpstreamReport::from).collect(),
            full: status.cache.full,
            bucket: status.bucket.map(BucketReport::from),
        }
    }
}

impl From<admin::BucketStatus> for BucketReport {
    fn from(bucket: admin::BucketStatus) -> Self {
        Self {
            state: match bucket.state.as_str() {
                "Reachable" => Some(BucketState::Reachable),
                "Denied" => Some(BucketState::Denied),
                "NotFound" => Some(BucketState::NotFound),
                "Unreachable" => Some(BucketState::Unreachable),
                _ => None,
            },
            message: cut(bucket.message),
            objects: bucket.objects.map(rounded),
            bytes: bucket.bytes.map(rounded),
            pending_uploads: rounded(bucket.pending_uploads),
        }
    }
}

/// Returns a number with two digits and zeros, rounded down: small changes are no new status.
fn rounded(number: u64) -> i64 {
    let mut unit = 1;
    while number / unit >= 100 {
        unit *= 10;
    }
    i64::try_from(number / unit * unit).unwrap_or(i64::MAX)
}

impl From<admin::UpstreamStatus> for UpstreamReport {
    fn from(upstream: admin::UpstreamStatus) -> Self {
        let mut credentials = upstream.credentials;
        // The message of a pending state changes all the time.
        credentials.message = match credentials.state {
            CredentialState::Pending => String::new(),
            _ => cut(credentials.message),
        };
        Self {
            host: cut(upstream.host),
            state: match upstream.state.as_str() {
                "Reachable" => UpstreamState::Reachable,
                "Unreachable" => UpstreamState::Unreachable,
                "RateLimited" => UpstreamState::RateLimited,
                _ => UpstreamState::Unknown,
            },
            credentials,
        }
    }
}

/// Returns a bounded text without characters that change how a terminal or a page shows others: conditions have it.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text.replace(
        |character| matches!(character, '\t' | '\n') || is_hidden(character),
        "?",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers keep two digits, so that small changes are no new status.
    #[test]
    fn numbers_keep_two_digits() {
        let rounded = [0, 9, 99, 100, 129, 1_999, 2 << 40].map(rounded);
        assert_eq!(rounded, [0, 9, 99, 100, 120, 1_900, 2_100_000_000_000]);
    }

    fn status(state: CredentialState, message: &str, uptime: u64) -> admin::Status {
        let credentials = CredentialReport {
            state,
            version_loaded: Some(3),
            version_seen: Some(3),
            message: message.to_owned(),
        };
        admin::Status {
            uptime_seconds: uptime,
            upstreams: vec![admin::UpstreamStatus {
                host: "quay.io".to_owned(),
                state: "RateLimited".to_owned(),
                credentials,
                ..admin::UpstreamStatus::default()
            }],
            ..admin::Status::default()
        }
    }

    #[test]
    fn report_has_no_changing_values() {
        let one = ServerReport::from(status(CredentialState::Pending, "429, for 37 s", 1));
        assert_eq!(
            one,
            ServerReport::from(status(CredentialState::Pending, "429, for 36 s", 2))
        );
        assert_eq!(one.upstream("quay.io").unwrap().state, UpstreamState::RateLimited);
    }

    /// A Pod reports no escape sequences of a terminal, and a version only if it is one.
    #[test]
    fn text_of_a_pod_is_harmless() {
        let hostile = "\u{1b}[31m1.2.3\n\u{202e}\u{61c}<script>";
        for version in [hostile, "1.2.3 4", "", &"1".repeat(65), "-1"] {
            let status = admin::Status {
                version: version.to_owned(),
                ..status(CredentialState::Rejected, hostile, 1)
            };
            let report = ServerReport::from(status);
            assert_eq!(report.version, "");
            let message = &report.upstreams[0].credentials.message;
            assert_eq!(message, "?[31m1.2.3???<script>");
        }
        let status = admin::Status {
            version: "1.2.3-rc.1+g0a".to_owned(),
            ..admin::Status::default()
        };
        assert_eq!(ServerReport::from(status).version, "1.2.3-rc.1+g0a");
    }

    #[test]
    fn text_of_an_upstream_is_bounded() {
        let report = ServerReport::from(status(CredentialState::Rejected, &"ä".repeat(5000), 1));
        assert_eq!(report.upstreams[0].credentials.message.len(), MAX_TEXT);
    }

    #[test]
    fn only_an_accepted_version_is_proven() {
        let server = |state| Server {
            pod: "hub-0".to_owned(),
            uid: "u".to_owned(),
            address: IpAddr::from([127, 0, 0, 1]),
            poll: PollResult::Report(status(state, "", 0).into()),
        };
        assert!(server(CredentialState::Active).has_proven("quay.io", 3));
        assert!(server(CredentialState::Active).has_proven("quay.io:443", 3));
        assert!(!server(CredentialState::Active).has_proven("quay.io", 4));
        assert!(!server(CredentialState::Pending).has_proven("quay.io", 3));
        assert!(!server(CredentialState::Active).has_proven("docker.io", 3));
    }
}
