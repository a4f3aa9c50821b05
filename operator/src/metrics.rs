//! The Prometheus metrics of the operator.

use std::{collections::HashSet, fmt, time::Duration};

use crds::conditions::{ConditionType, Reason};
use kube::{ResourceExt, runtime::reflector::Store};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::cluster::triggers::StoredMirror;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    condition: String,
    status: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpgradeLabels {
    state: &'static str,
}

/// The numbers of mirrors in a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upgrades {
    /// Mirrors that wait for admission.
    pub waiting: usize,
    /// Mirrors that roll out.
    pub rolling: usize,
    /// Mirrors that missed the progress deadline.
    pub failed: usize,
}

/// The metrics of the operator.
pub struct Metrics {
    registry: Registry,
    reconciles: Counter,
    errors: Family<ErrorLabels, Counter>,
    duration: Histogram,
    conditions: Family<ConditionLabels, Gauge>,
    upgrades: Family<UpgradeLabels, Gauge>,
    apply_rejected: Gauge,
    rejected_uids: Mutex<HashSet<String>>,
    mirrors: Mutex<Vec<Store<StoredMirror>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let reconciles = Counter::default();
        let errors = Family::default();
        let duration = Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let conditions = Family::default();
        let mut registry = Registry::with_prefix("registry_mirror_operator");
        registry.register("reconciles", "Reconciles of mirrors", reconciles.clone());
        registry.register(
            "reconcile_errors",
            "Reconciles that failed and are retried",
            errors.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Duration of reconciles",
            duration.clone(),
        );
        registry.register(
            "mirrors",
            "Mirrors by the state of each condition, and the reason for it",
            conditions.clone(),
        );
        let apply_rejected = Gauge::default();
        registry.register(
            "apply_rejected",
            "Mirrors with an object that the API server keeps rejecting",
            apply_rejected.clone(),
        );
        let upgrades = Family::default();
        registry.register(
            "upgrades",
            "Mirrors in the rollout of a new version of the operator, by state",
            upgrades.clone(),
        );
        Self {
            registry,
            reconciles,
            errors,
            duration,
            conditions,
            upgrades,
            apply_rejected,
            rejected_uids: Mutex::default(),
            mirrors: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Initializes the counters of these classes with 0, so that `rate()` sees the first error.
    pub fn initialize_errors(&self, classes: &[&'static str]) {
        for class in classes {
            drop(self.errors.get_or_create(&ErrorLabels { class }));
        }
    }

    /// Counts a reconcile, its duration and the class of its error.
    pub fn reconciled(&self, took: Duration, error: Option<&'static str>) {
        self.reconciles.inc();
        self.duration.observe(took.as_secs_f64());
        if let Some(class) = error {
            self.errors.get_or_create(&ErrorLabels { class }).inc();
        }
    }

    /// Sets the numbers of mirrors in a rollout.
    pub fn upgrades(&self, upgrades: &Upgrades) {
        let states = [
            ("waiting", upgrades.waiting),
            ("rolling", upgrades.rolling),
            ("failed", upgrades.failed),
        ];
        for (state, number) in states {
            let gauge = self.upgrades.get_or_create(&UpgradeLabels { state });
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    /// Records whether the API server keeps rejecting an object of the mirror with this UID.
    pub fn apply_rejected(&self, uid: &str, is_rejected: bool) {
        let mut uids = self.rejected_uids.lock();
        if is_rejected {
            uids.insert(uid.to_owned());
        } else {
            uids.remove(uid);
        }
    }

    /// Adds mirrors that are counted by condition.
    pub fn add_mirrors(&self, mirrors: Store<StoredMirror>) {
        self.mirrors.lock().push(mirrors);
    }

    /// Renders all metrics in the text format.
    ///
    /// # Errors
    /// None in practice: a `String` accepts every write.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let stores = self.mirrors.lock();
        let apply_rejected = self.rejected_uids.lock();
        self.conditions.clear();
        self.apply_rejected.set(0);
        for mirror in stores.iter().flat_map(Store::state) {
            for labels in conditions(&mirror) {
                self.conditions.get_or_create(&labels).inc();
            }
            // A mirror that was deleted during its reconcile may still be recorded.
            if mirror.uid().is_some_and(|uid| apply_rejected.contains(&uid)) {
                self.apply_rejected.inc();
            }
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Returns the conditions of a status. For a mirror that can't be parsed, those that its status would have.
fn conditions(mirror: &StoredMirror) -> Vec<ConditionLabels> {
    let Ok(mirror) = &mirror.0 else {
        return vec![ConditionLabels {
            condition: ConditionType::Accepted.to_string(),
            status: "False".to_owned(),
            reason: Reason::InvalidSpec.to_string(),
        }];
    };
    let all = mirror.status.iter().flat_map(|status| &status.conditions);
    let labels = all.map(|condition| ConditionLabels {
        condition: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
    });
    labels.collect()
}

#[cfg(test)]
mod tests {
    use crds::RegistryMirror;
    use kube::{
        core::DeserializeGuard,
        runtime::{reflector::store::Writer, watcher::Event},
    };
    use serde_json::json;

    use super::*;

    #[test]
    fn rejected_mirror_is_counted_once() {
        let metrics = Metrics::default();
        let mut mirrors = Writer::default();
        metrics.add_mirrors(mirrors.as_reader());
        for uid in ["a", "b", "c"] {
            let spec = json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}});
            let mut mirror = RegistryMirror::new(uid, serde_json::from_value(spec).unwrap());
            mirror.metadata.uid = Some(uid.to_owned());
            mirrors.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(mirror))));
        }
        let reported = |number| {
            let text = metrics.render().unwrap();
            let line = format!("registry_mirror_operator_apply_rejected {number}");
            assert!(text.lines().any(|reported| reported == line), "{text}");
        };
        reported(0);
        for uid in ["a", "b", "a"] {
            metrics.apply_rejected(uid, true);
        }
        reported(2);
        metrics.apply_rejected("a", false);
        metrics.apply_rejected("c", false);
        metrics.apply_rejected("deleted", true);
        reported(1);
    }

    #[test]
    fn reconciles_and_errors_are_counted() {
        let metrics = Metrics::default();
        metrics.reconciled(Duration::from_millis(5), None);
        metrics.reconciled(Duration::from_millis(5), Some("apply"));
        let text = metrics.render().unwrap();
        assert!(
            text.contains("registry_mirror_operator_reconciles_total 2"),
            "{text}"
        );
        assert!(
            text.contains("registry_mirror_operator_reconcile_errors_total{class=\"apply\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn error_classes_start_at_zero() {
        let metrics = Metrics::default();
        metrics.initialize_errors(&["apply", "read"]);
        metrics.reconciled(Duration::from_millis(5), Some("read"));
        let text = metrics.render().unwrap();
        for series in ["{class=\"apply\"} 0", "{class=\"read\"} 1"] {
            assert!(text.contains(series), "{text}");
        }
    }
}
