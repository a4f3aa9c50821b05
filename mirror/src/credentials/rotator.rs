//! Rotates the credential of an upstream: that of the directory, or else that of the configuration.
//!
//! The rotator tries a candidate at the upstream before it replaces the credential in use. Without a credential in use
//! or a last good one, it uses the candidate at once and tries it nevertheless. It retries a rejected candidate at
//! growing intervals, because bad passwords lock accounts, and registries learn of new passwords late.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{CredentialEntry, CredentialSink, CredentialState, CredentialVerdict, Problem, Report, Snapshot};
use crate::config::Upstream;
use crate::credential::Credential;

/// The version of a last good credential.
const LAST_GOOD: u64 = 0;

/// The delays between trials of the same candidate; each trial doubles the delay.
#[derive(Clone, Copy, Debug)]
pub struct RetryIntervals {
    /// The delay after the first trial without a verdict.
    pub no_verdict: Duration,
    /// The maximum delay without a verdict.
    pub no_verdict_most: Duration,
    /// The delay after the first rejection.
    pub rejected: Duration,
    /// The maximum delay after rejections.
    pub rejected_most: Duration,
}

impl Default for RetryIntervals {
    fn default() -> Self {
        Self {
            no_verdict: Duration::from_secs(2),
            no_verdict_most: Duration::from_mins(1),
            rejected: Duration::from_mins(1),
            rejected_most: Duration::from_hours(1),
        }
    }
}

/// The state of a rotation: for `/status`, and for the next rotator after a reload.
#[derive(Clone, Debug, Default)]
pub struct RotationState {
    /// The report for `/status`.
    pub report: Report,
    /// The credential in use; `None`: the upstream rejects requests because there is none.
    pub active: Option<Credential>,
}

/// A rotator of the credential of one upstream.
pub struct CredentialRotator<T> {
    upstream: Upstream,
    target: Arc<T>,
    pace: RetryIntervals,
    rotation: watch::Sender<RotationState>,
    trial: Option<Trial>,
    offline: bool,
    /// The time of the last trial of a credential in use.
    tried: Option<Instant>,
}

/// A candidate that the upstream has not accepted yet.
struct Trial {
    candidate: Credential,
    /// `true` for a credential in use that was accepted before: a rejection is reported and does not end its use.
    proven: bool,
    due: Instant,
    wait: Duration,
}

impl<T: CredentialSink> CredentialRotator<T> {
    /// Creates a rotator that continues from the state in `rotation`.
    pub fn new(
        upstream: Upstream,
        target: Arc<T>,
        pace: RetryIntervals,
        rotation: watch::Sender<RotationState>,
    ) -> Self {
        Self {
            upstream,
            target,
            pace,
            rotation,
            trial: None,
            offline: false,
            tried: None,
        }
    }

    /// Sets offline operation, in which no candidate is tried (`proxy.cache.offline`).
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Follows the directory until the watch ends.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        if let Some(active) = self.active() {
            self.target.use_credential(active, self.loaded());
        }
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            self.apply_snapshot(&snapshot);
            let target = self.target.clone();
            loop {
                tokio::select! {
                    changed = snapshots.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    verdict = Self::verdict(&target, &mut self.trial), if !self.offline => self.judge(verdict),
                    () = target.refused(), if self.trial.is_none() => self.doubt(),
                }
            }
        }
    }

    /// Returns the credential in use. Anonymous access counts as none: the next credential is a first one.
    fn active(&self) -> Option<Credential> {
        let active = self.rotation.borrow().active.clone();
        active.filter(|active| *active != Credential::Anonymous)
    }

    fn loaded(&self) -> u64 {
        self.rotation.borrow().report.version_loaded.unwrap_or(LAST_GOOD)
    }

    /// Applies the content of the directory.
    fn apply_snapshot(&mut self, snapshot: &Snapshot) {
        if let Err(problem @ Problem::Unavailable(_)) = &snapshot.candidates {
            return self.keep(&problem.to_string());
        }
        let (entry, problem) = match &snapshot.candidates {
            Ok(entries) => (entries.find(&self.upstream), None),
            Err(problem) => (CredentialEntry::Absent, Some(problem)),
        };
        let version = Some(snapshot.version).filter(|version| *version > 0);
        self.rotation
            .send_modify(|rotation| rotation.report.version_seen = version);
        let last_good = match snapshot.last_good.find(&self.upstream) {
            CredentialEntry::Given(credential) => Some(credential),
            _ => None,
        };
        match (entry, problem) {
            (CredentialEntry::Given(candidate), _) => self.propose(candidate, last_good.as_ref(), version),
            (CredentialEntry::Malformed(reason), _) => {
                self.set_missing(CredentialState::Malformed, &reason, last_good);
            }
            (CredentialEntry::Empty, _) => {
                let reason = format!("the entry of {} has no credential", self.upstream.host);
                self.set_missing(CredentialState::Missing, &reason, last_good);
            }
            (CredentialEntry::Absent, Some(problem)) => {
                let state = match problem {
                    Problem::Missing => CredentialState::Missing,
                    _ => CredentialState::Malformed,
                };
                self.set_missing(state, &problem.to_string(), last_good);
            }
            (CredentialEntry::Absent, None) => self.go_without(last_good, version),
        }
    }

    /// Keeps what is in use, also no credential at all, while the directory cannot be read. Before it was ever read,
    /// requests wait for it.
    fn keep(&self, reason: &str) {
        let (state, is_loaded) = {
            let rotation = self.rotation.borrow();
            (rotation.report.state, rotation.active.is_some())
        };
        tracing::warn!(host = %self.upstream.host, reason, "credentials were not read");
        if is_loaded {
            return self.report(state, reason.to_owned());
        }
        if matches!(state, CredentialState::None | CredentialState::Pending) {
            self.target.suspend(reason.to_owned());
            self.report(CredentialState::Pending, reason.to_owned());
        }
    }

    /// Starts a trial of a candidate, unless it is in use already.
    fn propose(&mut self, candidate: Credential, last_good: Option<&Credential>, version: Option<u64>) {
        match (self.active(), last_good) {
            (None, Some(last_good)) => self.load(last_good.clone(), None),
            (None, None) => self.load(candidate.clone(), version),
            (Some(_), _) => {}
        }
        let proven =
            last_good == Some(&candidate) || self.rotation.borrow().report.state == CredentialState::Active;
        if proven && self.active().as_ref() == Some(&candidate) {
            self.trial = None;
            self.load(candidate, version);
            self.report(CredentialState::Active, String::new());
        } else if self
            .trial
            .as_ref()
            .is_none_or(|trial| trial.candidate != candidate)
        {
            let reason = if self.offline {
                "upstreams are not asked (proxy.cache.offline)"
            } else {
                "the upstream has not answered yet"
            };
            self.report(CredentialState::Pending, reason.to_owned());
            self.trial = Some(Trial {
                candidate,
                proven: false,
                due: Instant::now(),
                wait: Duration::ZERO,
            });
        }
    }

    /// Tries the credential in use again after the upstream refused a request: only a trial shows if the credential is
    /// the cause. Trials are rate-limited, because refusals for repositories may be many.
    fn doubt(&mut self) {
        let (now, pause) = (Instant::now(), self.pace.rejected);
        let is_active = self.rotation.borrow().report.state == CredentialState::Active;
        self.trial = self.active().filter(|_| is_active).map(|candidate| Trial {
            candidate,
            proven: true,
            due: self.tried.map_or(now, |tried| now.max(tried + pause)),
            wait: Duration::ZERO,
        });
    }

    /// Handles a missing candidate: keeps the credential in use, or else loads the last good one.
    fn set_missing(&mut self, state: CredentialState, reason: &str, last_good: Option<Credential>) {
        self.trial = None;
        match (self.active(), last_good) {
            (Some(_), _) => {}
            (None, Some(last_good)) => self.load(last_good, None),
            (None, None) => {
                self.target.refuse(reason.to_owned());
                self.forget();
            }
        }
        self.report(state, reason.to_owned());
    }

    /// Uses the credential of the configuration if the directory has none for this upstream, after a trial.
    fn go_without(&mut self, last_good: Option<Credential>, version: Option<u64>) {
        if last_good.is_some() {
            let reason = format!("config.json has no entry for {} any more", self.upstream.host);
            return self.set_missing(CredentialState::Missing, &reason, last_good);
        }
        match self.upstream.credential.clone() {
            Credential::Anonymous => {
                self.trial = None;
                self.load(Credential::Anonymous, version);
                self.report(CredentialState::None, String::new());
            }
            configured => self.propose(configured, None, version),
        }
    }

    /// Loads a credential. `version` is `None` for the last good one, whose version is unknown, and for that of the
    /// configuration.
    fn load(&self, credential: Credential, version: Option<u64>) {
        let held = self.rotation.borrow().active.as_ref() == Some(&credential);
        if !held {
            self.target
                .use_credential(credential.clone(), version.unwrap_or(LAST_GOOD));
        }
        self.rotation.send_modify(|rotation| {
            rotation.active = Some(credential);
            rotation.report.version_loaded = version;
        });
    }

    fn forget(&self) {
        self.rotation.send_modify(|rotation| {
            rotation.active = None;
            rotation.report.version_loaded = None;
        });
    }

    fn report(&self, state: CredentialState, message: String) {
        self.rotation.send_if_modified(|rotation| {
            let same = rotation.report.state == state && rotation.report.message == message;
            rotation.report.state = state;
            rotation.report.message = message;
            !same
        });
    }

    /// Waits for the next trial and returns its verdict; never resolves without a candidate.
    async fn verdict(target: &T, trial: &mut Option<Trial>) -> CredentialVerdict {
        let Some(trial) = trial else {
            return std::future::pending().await;
        };
        sleep_until(trial.due).await;
        // A trial that a change of the directory interrupts counts as one.
        trial.due = Instant::now() + trial.wait.max(Duration::from_secs(1));
        target.verify(&trial.candidate).await
    }

    fn judge(&mut self, verdict: CredentialVerdict) {
        if self.trial.as_ref().is_some_and(|trial| trial.proven) {
            self.tried = Some(Instant::now());
        }
        let (state, message, first, most) = match verdict {
            CredentialVerdict::Accepted => return self.accept(),
            CredentialVerdict::Rejected(reason) => (
                CredentialState::Rejected,
                reason,
                self.pace.rejected,
                self.pace.rejected_most,
            ),
            CredentialVerdict::NoVerdict(reason) => (
                CredentialState::Pending,
                reason,
                self.pace.no_verdict,
                self.pace.no_verdict_most,
            ),
        };
        let Some(trial) = &mut self.trial else {
            return;
        };
        trial.wait = (trial.wait * 2).clamp(first, most);
        trial.due = Instant::now() + trial.wait;
        if trial.proven && state == CredentialState::Pending {
            return;
        }
        let unproven = !trial.proven && self.rotation.borrow().active.as_ref() == Some(&trial.candidate);
        if state == CredentialState::Rejected && unproven {
            self.forget();
        }
        if state == CredentialState::Rejected && self.rotation.borrow().active.is_none() {
            self.target
                .refuse(format!("the upstream rejects the credential: {message}"));
        }
        self.report(state, message);
    }

    fn accept(&mut self) {
        if let Some(trial) = self.trial.take() {
            let version = self.rotation.borrow().report.version_seen;
            self.load(trial.candidate, version);
            self.report(CredentialState::Active, String::new());
        }
    }
}
