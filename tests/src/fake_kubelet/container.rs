//! One container: its process started, probed, restarted and stopped.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use tokio::sync::watch;

use super::invocation::{Invocation, Surroundings};
use super::pod::Shared;
use super::probe;
use super::sources::Problem;
use crate::process::{self, Daemon};

/// A second failure is retried after this long, later ones after twice as long each, at most [`MAX_BACK_OFF`].
/// (A real kubelet: 10 s and 5 min.)
const BACK_OFF: Duration = Duration::from_millis(500);
const MAX_BACK_OFF: Duration = Duration::from_secs(8);
/// The delay before the next try to create a container.
const RETRY: Duration = Duration::from_millis(300);

/// The state of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting { reason: &'static str, message: String },
    Running { since: Timestamp },
    Terminated(Ended),
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    /// Why it could not even start; empty otherwise.
    pub(super) message: String,
}

/// The part of a Pod's status that describes a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) phase: Phase,
    pub(super) last: Option<Ended>,
    pub(super) restarts: i32,
    pub(super) started: bool,
    pub(super) ready: bool,
}

impl Snapshot {
    pub(super) fn creating(message: String) -> Self {
        Self {
            phase: Phase::Waiting {
                reason: "ContainerCreating",
                message,
            },
            last: None,
            restarts: 0,
            started: false,
            ready: false,
        }
    }
}

/// The rule for restarts of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(super) fn from_text(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    fn restarts(self, ended: &Ended) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => ended.code != 0,
            Self::Never => false,
        }
    }
}

/// Runs one container for as long as its Pod lives.
pub(super) struct Supervisor {
    pub(super) pod: Arc<Shared>,
    pub(super) container: Container,
    pub(super) index: usize,
    /// The grace period, once the container is to stop.
    pub(super) stop: watch::Receiver<Option<Duration>>,
}

impl Supervisor {
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let ended = match self.invocation().await {
                Ok(invocation) => self.run_once(&invocation).await,
                Err((reason, problem)) => {
                    self.update(|s| {
                        s.phase = Phase::Waiting {
                            reason,
                            message: problem.to_string(),
                        }
                    });
                    if self.stopped_within(RETRY).await {
                        return;
                    }
                    continue;
                }
            };
            if self.stop.borrow().is_some() || !self.pod.restart_policy.restarts(&ended) {
                return;
            }
            if self.backed_off(failures, &ended).await {
                return;
            }
            failures += 1;
            self.update(|s| s.restarts += 1);
        }
    }

    async fn invocation(&self) -> Result<Invocation, (&'static str, Problem)> {
        let reference = self.container.image.as_deref().unwrap_or_default();
        let image = self.pod.kubelet.images.get(reference);
        let image =
            image.ok_or_else(|| ("ImagePullBackOff", Problem::Missing(format!("image {reference}"))))?;
        let config = |problem| ("CreateContainerConfigError", problem);
        refuse_unsupported(&self.container).map_err(config)?;
        let volumes = self.pod.volumes.borrow().clone().unwrap_or_default();
        let surroundings = Surroundings {
            pod: &self.pod.pod,
            address: self.pod.address,
            volumes: &volumes,
            sources: &self.pod.sources,
        };
        let mut invocation = surroundings
            .invocation(&self.container, image)
            .await
            .map_err(config)?;
        if let Some(kubeconfig) = self.pod.kubeconfig(&self.container).map_err(config)? {
            invocation
                .environment
                .insert("KUBECONFIG".to_owned(), kubeconfig.display().to_string());
        }
        Ok(invocation)
    }

    async fn run_once(&self, invocation: &Invocation) -> Ended {
        let started = Timestamp::now();
        let mut daemon = match self.spawn(invocation) {
            Ok(daemon) => daemon,
            Err(error) => return self.end(started, 128, None, &error.to_string()),
        };
        self.update(|s| s.phase = Phase::Running { since: started });
        let mut to_stop = self.stop.clone();
        let grace = tokio::select! {
            status = daemon.ended() => return self.ended(started, status),
            () = probe::until_unhealthy(self) => self.pod.grace,
            grace = to_stop.wait_for(Option::is_some) => grace.ok().and_then(|g| *g).unwrap_or_default(),
        };
        let before = pre_stop(&self.container).min(grace);
        let status = match tokio::time::timeout(before, daemon.ended()).await {
            Ok(status) => status,
            Err(_) => stop(&mut daemon, grace.saturating_sub(before)).await,
        };
        self.ended(started, status)
    }

    fn spawn(&self, invocation: &Invocation) -> std::io::Result<Daemon> {
        let mut command = process::command(&invocation.program);
        command
            .args(&invocation.arguments)
            .env_clear()
            .envs(&invocation.environment);
        command.current_dir(&self.pod.directory);
        Daemon::spawn(&self.container.name, command, &self.log())
    }

    fn log(&self) -> PathBuf {
        self.pod.directory.join(format!("{}.log", self.container.name))
    }

    fn ended(&self, started: Timestamp, status: std::io::Result<ExitStatus>) -> Ended {
        match status {
            Ok(status) => {
                let signal = status.signal();
                // As a shell and every container runtime have it.
                let code = status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(255);
                self.end(started, code, signal, "")
            }
            Err(error) => self.end(started, 255, None, &error.to_string()),
        }
    }

    fn end(&self, started: Timestamp, code: i32, signal: Option<i32>, message: &str) -> Ended {
        let ended = Ended {
            code,
            signal,
            started,
            finished: Timestamp::now(),
            message: message.to_owned(),
        };
        let terminated = Phase::Terminated(ended.clone());
        self.update(|s| (s.phase, s.started, s.ready) = (terminated, false, false));
        ended
    }

    /// Waits until the next start is due; the answer is whether the container was stopped meanwhile.
    async fn backed_off(&mut self, failures: u32, ended: &Ended) -> bool {
        self.update(|s| s.last = Some(ended.clone()));
        let Some(doublings) = failures.checked_sub(1) else {
            return false;
        };
        let pause = BACK_OFF
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(MAX_BACK_OFF);
        let message = format!("back-off {} ms restarting failed container", pause.as_millis());
        self.update(|s| {
            s.phase = Phase::Waiting {
                reason: "CrashLoopBackOff",
                message,
            }
        });
        self.stopped_within(pause).await
    }

    async fn stopped_within(&mut self, pause: Duration) -> bool {
        tokio::time::timeout(pause, self.stop.wait_for(Option::is_some))
            .await
            .is_ok()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.pod.states.send_if_modified(|states| {
            let Some(state) = states.get_mut(self.index) else {
                return false;
            };
            let before = state.clone();
            change(state);
            *state != before
        });
    }
}

/// Returns the time that a container keeps running before the kubelet ends it; other hooks are refused.
fn pre_stop(container: &Container) -> Duration {
    let hook = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    let sleep = hook.and_then(|hook| hook.sleep.as_ref());
    Duration::from_secs(sleep.map_or(0, |sleep| sleep.seconds.unsigned_abs()))
}

/// Ends a process by SIGTERM, and by SIGKILL if it runs on after `grace`.
async fn stop(daemon: &mut Daemon, grace: Duration) -> std::io::Result<ExitStatus> {
    daemon.terminate()?;
    if let Ok(status) = tokio::time::timeout(grace, daemon.ended()).await {
        return status;
    }
    daemon.kill();
    daemon.ended().await
}

/// Refuses a container with settings that this kubelet would ignore.
fn refuse_unsupported(container: &Container) -> Result<(), Problem> {
    let refuse = |what: &str| Err(Problem::Unsupported(what.to_owned()));
    if let Some(lifecycle) = &container.lifecycle {
        let only_sleeps = lifecycle.pre_stop.as_ref().is_none_or(|hook| {
            hook.sleep.is_some()
                && hook.exec.is_none()
                && hook.http_get.is_none()
                && hook.tcp_socket.is_none()
        });
        if lifecycle.post_start.is_some() || !only_sleeps {
            return refuse("lifecycle hooks other than a sleep before the end");
        }
    }
    let probes = [
        &container.startup_probe,
        &container.liveness_probe,
        &container.readiness_probe,
    ];
    if probes
        .into_iter()
        .flatten()
        .any(|probe| probe.exec.is_some() || probe.grpc.is_some())
    {
        return refuse("probes other than httpGet and tcpSocket");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container restarts according to the policy of its pod.
    #[test]
    fn container_restarts_by_pod_policy() {
        let ended = |code| Ended {
            code,
            signal: None,
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            message: String::new(),
        };
        for (policy, after_success, after_failure) in [
            (None, true, true),
            (Some("OnFailure"), false, true),
            (Some("Never"), false, false),
        ] {
            let policy = RestartPolicy::from_text(policy);
            assert_eq!(
                (policy.restarts(&ended(0)), policy.restarts(&ended(1))),
                (after_success, after_failure)
            );
        }
    }
}
