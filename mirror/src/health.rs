//! The configured health checks: each runs at its interval and counts as failed after its threshold. While one fails,
//! clients get 503 and the server is not ready.

mod checks;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config;
use crate::config::health::CheckSchedule;
use checks::Check;

/// The latest results of the health checks; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// The checks that fail, by their position in the configuration: two may have one name, as secrets in URLs are
    /// masked.
    failing: Arc<Mutex<BTreeMap<usize, Failing>>>,
    /// `true` if any check fails; read for every request.
    any: Arc<AtomicBool>,
}

/// A check that fails.
#[derive(Clone, Debug)]
struct Failing {
    name: String,
    reason: String,
}

impl Health {
    /// Runs the checks until `stop`.
    pub fn start(settings: &config::Health, root: &Path, stop: &CancellationToken) -> Self {
        let health = Self::default();
        for (position, (name, check, schedule)) in checks::all(settings, root).into_iter().enumerate() {
            let checks = health
                .clone()
                .repeat((position, name), check, schedule, stop.clone());
            tokio::spawn(checks);
        }
        health
    }

    /// Returns `true` if any check fails.
    pub fn is_failing(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Returns the checks that fail, by name, with the reason.
    pub fn failing(&self) -> BTreeMap<String, String> {
        let failing = self.failing.lock();
        let failing = failing.values().cloned();
        failing.map(|check| (check.name, check.reason)).collect()
    }

    async fn repeat(
        self,
        (position, name): (usize, String),
        check: Check,
        schedule: CheckSchedule,
        stop: CancellationToken,
    ) {
        let mut ticks = interval(schedule.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures: u32 = 0;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let result = check.run().await;
            failures = if result.is_err() {
                failures.saturating_add(1)
            } else {
                0
            };
            let failure = result.err().filter(|_| failures >= schedule.threshold);
            self.record(position, &name, failure);
        }
    }

    /// Records the result of a check, and logs it where the check starts or stops failing.
    fn record(&self, position: usize, name: &str, failure: Option<String>) {
        let mut failing = self.failing.lock();
        match failure {
            Some(reason) => {
                if !failing.contains_key(&position) {
                    warn!(check = name, reason, "a health check fails: clients get 503");
                }
                let name = name.to_owned();
                failing.insert(position, Failing { name, reason });
            }
            None => {
                if failing.remove(&position).is_some() {
                    info!(check = name, "the health check passes again");
                }
            }
        }
        self.any.store(!failing.is_empty(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::config::health::{FileCheck, HttpCheck, TcpCheck};

    const SOON: CheckSchedule = CheckSchedule {
        interval: Duration::from_millis(5),
        threshold: 2,
    };

    async fn becomes(health: &Health, names: &[&str]) {
        let there = async {
            while health.failing().keys().collect::<Vec<_>>() != names {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), there).await;
        assert!(in_time.is_ok(), "{:?}", health.failing());
    }

    /// The server is unhealthy while the configured file exists.
    #[tokio::test]
    async fn health_file_takes_server_out_of_service() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("down");
        let stop = CancellationToken::new();
        let settings = config::Health {
            files: vec![FileCheck {
                path: path.clone(),
                schedule: SOON,
            }],
            storage: Some(SOON),
            ..config::Health::default()
        };
        let health = Health::start(&settings, root.path(), &stop);
        becomes(&health, &[]).await;
        std::fs::write(&path, "").unwrap();
        becomes(&health, &[&format!("file {}", path.display())]).await;
        std::fs::remove_file(&path).unwrap();
        becomes(&health, &[]).await;
        stop.cancel();
    }

    /// The health report names the ports and pages that do not respond.
    #[tokio::test]
    async fn unresponsive_checks_are_named() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let stop = CancellationToken::new();
        let settings = config::Health {
            tcp: vec![TcpCheck {
                addr: free.to_string(),
                timeout: Duration::from_secs(1),
                schedule: SOON,
            }],
            http: vec![HttpCheck {
                uri: format!("http://{free}/page").parse().unwrap(),
                headers: http::HeaderMap::new(),
                status: http::StatusCode::OK,
                timeout: Duration::from_secs(1),
                schedule: SOON,
            }],
            ..config::Health::default()
        };
        let health = Health::start(&settings, Path::new("/"), &stop);
        becomes(
            &health,
            &[&format!("http http://{free}/page"), &format!("tcp {free}")],
        )
        .await;
        stop.cancel();
    }

    /// One of two checks whose names differ in a masked secret only fails, the other passes.
    #[test]
    fn same_named_checks_count_apart() {
        let health = Health::default();
        for (position, failure) in [(0, Some("down".to_owned())), (1, None)] {
            health.record(position, "http http://a/?********", failure);
        }
        assert_eq!(health.failing()["http http://a/?********"], "down");
        assert!(health.is_failing());
    }

    /// The health check notices that the root of the storage is missing.
    #[tokio::test]
    async fn missing_storage_root_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let settings = config::Health {
            storage: Some(SOON),
            ..config::Health::default()
        };
        let health = Health::start(&settings, &root.path().join("gone"), &stop);
        becomes(&health, &["storage"]).await;
        stop.cancel();
    }
}
