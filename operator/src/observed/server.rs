//! A Pod that runs a server, and what the server last said of itself.

use std::net::IpAddr;

use crds::status::UpstreamState;
use mirror::{
    admin,
    config::host::canonical,
    credentials::{CredentialState, Report as CredentialReport},
};

/// What an upstream's words may take in a status.
const WORDS: usize = 256;

/// A Pod that runs a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The Pod's name.
    pub pod: String,
    /// The Pod's own identity: another Pod of this name has said nothing yet.
    pub uid: String,
    /// Where it can be asked.
    pub address: IpAddr,
    /// What it said.
    pub answer: Answer,
}

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// It was not asked yet: what was known before stands.
    #[default]
    Unasked,
    /// It was asked several times and gave no answer.
    Silent,
    /// This.
    Given(Report),
}

/// What a server says of itself, without what moves by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The server's version.
    pub version: String,
    /// The configuration in force: the SHA-256 of the file, in hexadecimal.
    pub configuration: String,
    /// Why a later one was not taken; empty if it was.
    pub configuration_error: String,
    /// Its upstreams.
    pub upstreams: Vec<Upstream>,
    /// Nothing can be stored.
    pub full: bool,
}

/// What a server says of one of its upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name.
    pub host: String,
    /// Whether it answers.
    pub state: UpstreamState,
    /// How it stands with its credentials.
    pub credentials: CredentialReport,
}

impl Server {
    /// What it said, if it said anything.
    pub fn report(&self) -> Option<&Report> {
        match &self.answer {
            Answer::Given(report) => Some(report),
            Answer::Unasked | Answer::Silent => None,
        }
    }

    /// What it said of an upstream's credentials.
    pub fn credentials(&self, host: &str) -> Option<&CredentialReport> {
        Some(&self.report()?.upstream(host)?.credentials)
    }

    /// Whether it uses this version of an upstream's credentials, and the upstream takes it.
    pub fn has_proven(&self, host: &str, version: u64) -> bool {
        self.credentials(host).is_some_and(|credentials| {
            credentials.state == CredentialState::Active && credentials.version_loaded == Some(version)
        })
    }
}

impl Report {
    /// Returns the report on the upstream that a spec calls `host`. The server reports its canonical name.
    pub fn upstream(&self, host: &str) -> Option<&Upstream> {
        let host = canonical(host).ok()?;
        self.upstreams
            .iter()
            .find(|upstream| upstream.host == host.as_str())
    }
}

impl From<admin::Status> for Report {
    fn from(status: admin::Status) -> Self {
        Self {
            version: cut(status.version),
            configuration: cut(status.configuration_version),
            configuration_error: cut(status.configuration_error),
            upstreams: status.upstreams.into_iter().map(Upstream::from).collect(),
            full: status.cache.full,
        }
    }
}

impl From<admin::UpstreamStatus> for Upstream {
    fn from(upstream: admin::UpstreamStatus) -> Self {
        let mut credentials = upstream.credentials;
        // What keeps an upstream from a verdict is worded differently each time, and would never rest.
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

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(WORDS));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_moves_by_itself_is_no_part_of_a_report() {
        let one = Report::from(status(CredentialState::Pending, "429, for 37 s", 1));
        assert_eq!(
            one,
            Report::from(status(CredentialState::Pending, "429, for 36 s", 2))
        );
        assert_eq!(one.upstream("quay.io").unwrap().state, UpstreamState::RateLimited);
    }

    #[test]
    fn words_of_an_upstream_are_bounded() {
        let report = Report::from(status(CredentialState::Rejected, &"ä".repeat(5000), 1));
        assert_eq!(report.upstreams[0].credentials.message.len(), WORDS);
    }

    #[test]
    fn only_a_version_that_the_upstream_took_is_proven() {
        let server = |state| Server {
            pod: "hub-0".to_owned(),
            uid: "u".to_owned(),
            address: IpAddr::from([127, 0, 0, 1]),
            answer: Answer::Given(status(state, "", 0).into()),
        };
        assert!(server(CredentialState::Active).has_proven("quay.io", 3));
        assert!(server(CredentialState::Active).has_proven("quay.io:443", 3));
        assert!(!server(CredentialState::Active).has_proven("quay.io", 4));
        assert!(!server(CredentialState::Pending).has_proven("quay.io", 3));
        assert!(!server(CredentialState::Active).has_proven("docker.io", 3));
    }
}
