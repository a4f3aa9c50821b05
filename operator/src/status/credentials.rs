//! Reports on credentials, without any value of them: the content of their Secrets, and the verdict of upstreams.

use crds::{
    conditions::{ConditionType, Reason, Truth},
    status::CredentialsStatus,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use mirror::credentials::CredentialState;

use super::{Outcome, conditions::ConditionUpdate};
use crate::{
    desired::{Desired, IssuedCredentials},
    observed::{Observed, PollResult, Server},
    validate::{Accepted, credentials::Problem},
};

/// The state of an upstream's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamCredentials {
    /// The host of the upstream.
    pub host: String,
    /// The Secret.
    pub secret: String,
    /// The issued version.
    pub version: u64,
    /// The fault of the Secret.
    pub problem: Option<Problem>,
    /// Servers have the credentials of an earlier Secret.
    pub kept: bool,
    /// The verdict.
    pub verdict: Verdict,
    /// The time of the last rotation, if there are last good credentials.
    pub rotated: Option<Timestamp>,
}

/// The verdict of the servers and the upstream on a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No server runs.
    NoServer,
    /// A server was not polled yet.
    Unasked,
    /// This number of this number of servers use it; the others have not read it, or do not respond.
    Loading(usize, usize),
    /// The upstream rejects it with this message.
    Rejected(String),
    /// The upstream gives no verdict.
    Unverified,
    /// All servers use it.
    Accepted,
}

impl UpstreamCredentials {
    fn new(
        host: &str,
        secret: &str,
        problem: Option<Problem>,
        issued: &IssuedCredentials,
        servers: &[Server],
    ) -> Self {
        Self {
            host: host.to_owned(),
            secret: secret.to_owned(),
            version: issued.version,
            problem,
            kept: issued.kept.iter().any(|kept| kept == host),
            verdict: Verdict::from_reports(host, issued.version, servers),
            rotated: issued.rotated.get(host).copied(),
        }
    }

    /// Returns whether no accepted credentials are in use: content that is not cached can't be pulled.
    pub fn is_stuck(&self) -> bool {
        let rejected = matches!(self.verdict, Verdict::Rejected(_));
        self.rotated.is_none() && (self.problem.is_some() && !self.kept || rejected)
    }

    fn update(&self) -> (Truth, Reason, String) {
        let Self { host, secret, .. } = self;
        let meanwhile = if self.is_stuck() {
            "pulls of content that is not cached fail"
        } else {
            "the previous credentials stay in use"
        };
        if let Some(problem) = &self.problem {
            let message = format!("{host}: {}; until then {meanwhile}", problem.message);
            return (Truth::False, problem.reason, message);
        }
        match &self.verdict {
            Verdict::Rejected(answer) => (
                Truth::False,
                Reason::UpstreamRejected,
                format!(
                    "{host}: credentials of Secret {secret} rejected by the upstream: {answer}; correct the Secret, until then \
                     {meanwhile}"
                ),
            ),
            Verdict::Loading(loaded, servers) => (
                Truth::Unknown,
                Reason::Loading,
                format!("{host}: {loaded} of {servers} replicas use the credentials of Secret {secret}"),
            ),
            Verdict::Unverified => (
                Truth::Unknown,
                Reason::Unverified,
                format!(
                    "{host}: credentials of Secret {secret} not verified, because the upstream is down or limits requests; \
                     servers retry"
                ),
            ),
            Verdict::NoServer | Verdict::Unasked => (
                Truth::Unknown,
                Reason::Unverified,
                format!("{host}: no replica has tried the credentials of Secret {secret} yet"),
            ),
            Verdict::Accepted => (
                Truth::True,
                Reason::CredentialsAccepted,
                format!(
                    "{host}: all replicas use the credentials of Secret {secret}, and the upstream accepts them"
                ),
            ),
        }
    }
}

impl Verdict {
    fn from_reports(host: &str, version: u64, servers: &[Server]) -> Self {
        if servers.is_empty() {
            return Self::NoServer;
        }
        let seen = |server: &Server| {
            let credentials = server.credentials(host)?;
            (credentials.version_seen == Some(version)).then(|| credentials.clone())
        };
        let reports: Vec<_> = servers.iter().filter_map(seen).collect();
        if let Some(rejected) = reports
            .iter()
            .find(|report| report.state == CredentialState::Rejected)
        {
            return Self::Rejected(rejected.message.clone());
        }
        if servers.iter().any(|server| server.poll == PollResult::NotPolled) {
            return Self::Unasked;
        }
        let all = |state| reports.iter().all(|report| report.state == state);
        match loaded(host, version, servers) {
            loaded if loaded == servers.len() && all(CredentialState::Active) => Self::Accepted,
            _ if reports.len() == servers.len()
                && reports.iter().any(|r| r.state == CredentialState::Pending) =>
            {
                Self::Unverified
            }
            loaded => Self::Loading(loaded, servers.len()),
        }
    }
}

/// Returns the number of servers that use a version.
fn loaded(host: &str, version: u64, servers: &[Server]) -> usize {
    let uses = |server: &&Server| {
        server
            .credentials(host)
            .is_some_and(|credentials| credentials.version_loaded == Some(version))
    };
    servers.iter().filter(uses).count()
}

/// Returns the credentials of an accepted spec, in its order.
pub(super) fn upstream_credentials(
    accepted: &Accepted<'_>,
    desired: &Desired,
    observed: &Observed,
) -> Vec<UpstreamCredentials> {
    let with = accepted
        .upstreams
        .iter()
        .filter_map(|u| Some((&u.spec.host, u.credentials.as_ref()?)));
    with.map(|(host, credentials)| {
        let problem = credentials.found.as_ref().err().cloned();
        UpstreamCredentials::new(
            host,
            credentials.secret,
            problem,
            &desired.issued,
            &observed.servers,
        )
    })
    .collect()
}

/// Returns the status of an upstream's credentials.
pub(super) fn status(
    now: &UpstreamCredentials,
    observed: &Observed,
    before: Option<&CredentialsStatus>,
) -> CredentialsStatus {
    let version = super::version(now);
    let before = before.filter(|before| before.version == version && before.secret == now.secret);
    let loaded = loaded(&now.host, now.version, &observed.servers);
    CredentialsStatus {
        secret: now.secret.clone(),
        version,
        loaded_replicas: match (observed.has_unpolled(), before) {
            (true, Some(before)) => before.loaded_replicas,
            _ => i32::try_from(loaded).ok(),
        },
        last_rotation_time: now.rotated.map(Time),
    }
}

/// Returns `CredentialsValid`: the worst state of any upstream, with the messages of all in that state.
pub(super) fn condition(
    outcome: &Outcome,
    observed: &Observed,
    before: &[Condition],
) -> Option<ConditionUpdate> {
    let kind = ConditionType::CredentialsValid;
    let Outcome::Acted(acted) = outcome else {
        return None;
    };
    let is_reported = before.iter().any(|before| before.type_ == kind.as_str());
    let updates: Vec<_> = acted
        .credentials
        .iter()
        .map(UpstreamCredentials::update)
        .collect();
    let any = |truth| updates.iter().any(|(said, ..)| *said == truth);
    if !any(Truth::False) && observed.has_unpolled() && is_reported && !acted.has_new_credentials {
        return None;
    }
    let worst = [Truth::False, Truth::Unknown, Truth::True]
        .into_iter()
        .find(|truth| any(*truth))?;
    let mut worst_of = updates.iter().filter(|(truth, ..)| *truth == worst);
    let reason = worst_of
        .clone()
        .map(|(_, reason, _)| *reason)
        .min_by_key(|reason| *reason != Reason::Loading)?;
    let messages: Vec<_> = worst_of.by_ref().map(|(.., message)| message.as_str()).collect();
    Some(ConditionUpdate::new(kind, worst, reason, messages.join(". ")))
}
