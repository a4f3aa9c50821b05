//! The Prometheus metrics of the operator.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use crds::conditions::{ConditionType, Reason};
use kube::{ResourceExt, runtime::reflector::Store};
use mirror::metrics::ProcessCollector;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

use crate::{
    cluster::triggers::StoredMirror, mirror_key::MirrorKey, quantity::amount, traffic::TrafficTable,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    namespace: String,
    name: String,
    condition: String,
    status: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    namespace: String,
    name: String,
    storage: String,
    server_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MirrorLabels {
    namespace: String,
    name: String,
}

/// The name and the value of the only label of a series.
type Label = [(&'static str, &'static str); 1];

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

/// The metrics of the operator; docs/reference/metrics.md lists all.
pub struct Metrics {
    registry: Registry,
    reconciles: Counter,
    errors: Family<Label, Counter>,
    duration: Histogram,
    upgrades: Family<Label, Gauge>,
    per_mirror: PerMirror,
    rejected_uids: Mutex<HashSet<String>>,
    mirrors: Mutex<Vec<Store<StoredMirror>>>,
    /// The traffic of mirrors, for the pages.
    pub traffic: TrafficTable,
}

/// The gauges of each mirror, which are made again for each scrape.
#[derive(Default)]
struct PerMirror {
    conditions: Family<ConditionLabels, Gauge>,
    info: Family<InfoLabels, Gauge>,
    storage_bytes: Family<MirrorLabels, Gauge<f64, AtomicU64>>,
    apply_rejected: Family<MirrorLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            reconciles: Counter::default(),
            errors: Family::default(),
            duration: Histogram::new(exponential_buckets(0.001, 4.0, 9)),
            upgrades: Family::default(),
            per_mirror: PerMirror::default(),
            rejected_uids: Mutex::default(),
            mirrors: Mutex::default(),
            traffic: TrafficTable::default(),
        };
        metrics.upgrades(&Upgrades::default());
        metrics.registry = metrics.registry();
        metrics
    }
}

impl Metrics {
    #[rustfmt::skip]
    fn registry(&self) -> Registry {
        let mut all = Registry::default();
        all.register_collector(Box::new(ProcessCollector::default()));
        let (mirrors, build) = (&self.per_mirror, [("version", env!("CARGO_PKG_VERSION"))]);
        let r = all.sub_registry_with_prefix("registry_mirror");
        r.register("status_condition", "1 for the status and the reason of each condition of a mirror", mirrors.conditions.clone());
        r.register("info", "1 for each mirror, with its kind of storage and the version of its servers", mirrors.info.clone());
        r.register("storage_bytes", "Capacity of the smallest volume of a mirror", mirrors.storage_bytes.clone());
        let r = r.sub_registry_with_prefix("operator");
        r.register("build", "Version of the operator", Info::new(build));
        r.register("reconciles", "Reconciles of mirrors", self.reconciles.clone());
        r.register("reconcile_errors", "Reconciles that failed and are retried, by the class of the error", self.errors.clone());
        r.register("reconcile_duration_seconds", "Duration of reconciles", self.duration.clone());
        r.register("apply_rejected", "1 for a mirror with an object that the API server keeps rejecting, else 0", mirrors.apply_rejected.clone());
        r.register("upgrades", "Mirrors in the rollout of a new version of the operator, by state", self.upgrades.clone());
        all
    }
}

impl Metrics {
    /// Initializes the counters of these classes with 0, so that `rate()` sees the first error.
    pub fn initialize_errors(&self, classes: &[&'static str]) {
        for class in classes {
            drop(self.errors.get_or_create(&[("class", *class)]));
        }
    }

    /// Counts a reconcile, its duration and the class of its error.
    pub fn reconciled(&self, took: Duration, error: Option<&'static str>) {
        self.reconciles.inc();
        self.duration.observe(took.as_secs_f64());
        if let Some(class) = error {
            self.errors.get_or_create(&[("class", class)]).inc();
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
            let gauge = self.upgrades.get_or_create(&[("state", state)]);
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

    /// Returns the mirrors, sorted by namespace and name.
    pub fn mirrors(&self) -> Vec<Arc<StoredMirror>> {
        let stores = self.mirrors.lock();
        let mut mirrors: Vec<_> = stores.iter().flat_map(Store::state).collect();
        mirrors.sort_by_cached_key(|mirror| MirrorKey::from_object(&**mirror));
        mirrors
    }

    /// Renders all metrics in the text format of `OpenMetrics`.
    ///
    /// # Errors
    /// None in practice: a `String` accepts every write.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let stores = self.mirrors.lock();
        let rejected = self.rejected_uids.lock();
        self.per_mirror.clear();
        for mirror in stores.iter().flat_map(Store::state) {
            // A mirror that was deleted during its reconcile may still be recorded.
            let is_rejected = mirror.uid().is_some_and(|uid| rejected.contains(&uid));
            self.per_mirror.set(&mirror, is_rejected);
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl PerMirror {
    fn clear(&self) {
        self.conditions.clear();
        self.info.clear();
        self.storage_bytes.clear();
        self.apply_rejected.clear();
    }

    fn set(&self, stored: &StoredMirror, is_rejected: bool) {
        let MirrorKey { namespace, name } = MirrorKey::from_object(stored);
        let labels = MirrorLabels { namespace, name };
        for condition in conditions(stored, &labels) {
            self.conditions.get_or_create(&condition).set(1);
        }
        self.apply_rejected.get_or_create(&labels).set(is_rejected.into());
        let Ok(mirror) = &stored.0 else { return };
        let status = mirror.status.as_ref();
        let storage = status.and_then(|status| status.storage.as_ref()?.capacity.as_ref());
        if let Some(bytes) = storage.and_then(|capacity| amount(&capacity.0)) {
            self.storage_bytes.get_or_create(&labels).set(bytes);
        }
        let MirrorLabels { namespace, name } = labels;
        let info = InfoLabels {
            namespace,
            name,
            storage: format!("{:?}", mirror.spec.storage.r#type),
            server_version: status
                .and_then(|status| status.known_server_version())
                .unwrap_or_default()
                .to_owned(),
        };
        self.info.get_or_create(&info).set(1);
    }
}

/// Returns the conditions of a status. For a mirror that can't be parsed, those that its status would have.
fn conditions(stored: &StoredMirror, labels: &MirrorLabels) -> Vec<ConditionLabels> {
    let labels = |condition: &str, status: &str, reason: &str| ConditionLabels {
        namespace: labels.namespace.clone(),
        name: labels.name.clone(),
        condition: condition.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
    };
    let Ok(mirror) = &stored.0 else {
        let (accepted, reason) = (ConditionType::Accepted, Reason::InvalidSpec);
        return vec![labels(accepted.as_str(), "False", reason.as_str())];
    };
    let all = mirror.status.iter().flat_map(|status| &status.conditions);
    all.map(|condition| labels(&condition.type_, &condition.status, &condition.reason))
        .collect()
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
            let series = |line: &&str| line.starts_with("registry_mirror_operator_apply_rejected{");
            let rejected = text.lines().filter(series).filter(|line| line.ends_with(" 1"));
            assert_eq!(rejected.count(), number, "{text}");
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

    /// Each condition of a mirror is a series with its namespace and name; so are its storage and the version of its
    /// servers.
    #[test]
    fn conditions_name_their_mirror() {
        let metrics = Metrics::default();
        let mut mirrors = Writer::default();
        metrics.add_mirrors(mirrors.as_reader());
        let mirror = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": "hub", "namespace": "mirrors", "uid": "u"},
            "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}},
            "status": {
                "serverVersion": "1.2.3", "storage": {"capacity": "1Gi"},
                "conditions": [{
                    "type": "Ready", "status": "False", "reason": "RollingOut", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        });
        let mirror: RegistryMirror = serde_json::from_value(mirror).unwrap();
        mirrors.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(mirror))));
        let text = metrics.render().unwrap();
        let key = r#"namespace="mirrors",name="hub""#;
        for series in [
            format!(r#"status_condition{{{key},condition="Ready",status="False",reason="RollingOut"}} 1"#),
            format!(r#"info{{{key},storage="Ephemeral",server_version="1.2.3"}} 1"#),
            format!("storage_bytes{{{key}}} 1073741824.0"),
        ] {
            assert!(
                text.contains(&format!("registry_mirror_{series}\n")),
                "{series}: {text}"
            );
        }
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
