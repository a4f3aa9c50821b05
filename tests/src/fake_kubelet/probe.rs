//! Startup, liveness and readiness.

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::container::Supervisor;

/// Keeps a running container's `started` and `ready` up to date; returns when it must be restarted.
pub(super) async fn until_unhealthy(supervisor: &Supervisor) {
    let container = &supervisor.container;
    let prober = Prober {
        container,
        address: supervisor.pod.address,
        http: &supervisor.pod.kubelet.http,
    };
    if let Some(startup) = &container.startup_probe {
        sleep(seconds(startup.initial_delay_seconds, 0)).await;
        if prober.verdict(startup).await == Verdict::Unhealthy {
            return;
        }
    }
    let ready = container.readiness_probe.is_none();
    supervisor.update(|s| (s.started, s.ready) = (true, ready));
    tokio::select! {
        () = prober.stays_live() => {}
        () = prober.follow_readiness(supervisor) => {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Healthy,
    Unhealthy,
}

struct Prober<'a> {
    container: &'a Container,
    address: Ipv4Addr,
    http: &'a reqwest::Client,
}

impl Prober<'_> {
    /// Returns when the container is no longer live; never without a probe.
    async fn stays_live(&self) {
        let Some(liveness) = &self.container.liveness_probe else {
            return std::future::pending().await;
        };
        sleep(seconds(liveness.initial_delay_seconds, 0)).await;
        while self.verdict(liveness).await == Verdict::Healthy {
            sleep(period(liveness)).await;
        }
    }

    async fn follow_readiness(&self, supervisor: &Supervisor) {
        let Some(readiness) = &self.container.readiness_probe else {
            return std::future::pending().await;
        };
        sleep(seconds(readiness.initial_delay_seconds, 0)).await;
        loop {
            let ready = self.verdict(readiness).await == Verdict::Healthy;
            supervisor.update(|s| s.ready = ready);
            sleep(period(readiness)).await;
        }
    }

    /// Returns the first verdict with as many answers in a row as its threshold asks for.
    async fn verdict(&self, probe: &Probe) -> Verdict {
        let (mut successes, mut failures) = (0, 0);
        loop {
            if self.succeeds(probe).await {
                (successes, failures) = (successes + 1, 0);
            } else {
                (successes, failures) = (0, failures + 1);
            }
            if successes >= probe.success_threshold.unwrap_or(1) {
                return Verdict::Healthy;
            }
            if failures >= probe.failure_threshold.unwrap_or(3) {
                return Verdict::Unhealthy;
            }
            sleep(period(probe)).await;
        }
    }

    async fn succeeds(&self, probe: &Probe) -> bool {
        let answer = async {
            match (&probe.http_get, &probe.tcp_socket) {
                (Some(get), _) => self.http_succeeds(get).await,
                (None, Some(tcp)) => match self.port(&tcp.port) {
                    Some(port) => TcpStream::connect((self.address, port)).await.is_ok(),
                    None => false,
                },
                (None, None) => true,
            }
        };
        timeout(seconds(probe.timeout_seconds, 1), answer)
            .await
            .unwrap_or(false)
    }

    async fn http_succeeds(&self, get: &HTTPGetAction) -> bool {
        let Some(port) = self.port(&get.port) else {
            return false;
        };
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let path = get.path.as_deref().unwrap_or("/").trim_start_matches('/');
        let mut request = self
            .http
            .get(format!("{scheme}://{}:{port}/{path}", self.address));
        for header in get.http_headers.iter().flatten() {
            request = request.header(&header.name, &header.value);
        }
        let answer = request.send().await;
        answer.is_ok_and(|answer| (200..400).contains(&answer.status().as_u16()))
    }

    fn port(&self, port: &IntOrString) -> Option<u16> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                ports
                    .find(|port| port.name.as_ref() == Some(name))?
                    .container_port
            }
        };
        u16::try_from(number).ok()
    }
}

fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds, 10)
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value
            .and_then(|value| u64::try_from(value).ok())
            .unwrap_or(default),
    )
}
