//! What the operator tells Prometheus.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kube::runtime::reflector::Store;
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

use crate::cluster::watch::Stored;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    condition: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    class: &'static str,
}

/// The operator's metrics.
pub struct Metrics {
    registry: Registry,
    reconciles: Counter,
    errors: Family<ErrorLabels, Counter>,
    duration: Histogram,
    conditions: Family<ConditionLabels, Gauge>,
    mirrors: Mutex<Vec<Store<Stored>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let reconciles = Counter::default();
        let errors = Family::default();
        let duration = Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let conditions = Family::default();
        let mut registry = Registry::with_prefix("registry_mirror_operator");
        registry.register("reconciles", "Looks at a mirror", reconciles.clone());
        registry.register(
            "reconcile_errors",
            "Looks at a mirror that have to be repeated",
            errors.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "How long a look at a mirror takes",
            duration.clone(),
        );
        registry.register(
            "mirrors",
            "Mirrors by the state of each condition",
            conditions.clone(),
        );
        Self {
            registry,
            reconciles,
            errors,
            duration,
            conditions,
            mirrors: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Counts a reconcile.
    pub fn reconciled(&self, took: Duration, error: Option<&'static str>) {
        self.reconciles.inc();
        self.duration.observe(took.as_secs_f64());
        if let Some(class) = error {
            self.errors.get_or_create(&ErrorLabels { class }).inc();
        }
    }

    /// Has these mirrors counted by condition.
    pub fn count(&self, mirrors: Store<Stored>) {
        self.mirrors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(mirrors);
    }

    /// All of them in the text format.
    ///
    /// # Errors
    /// Never in practice: a `String` takes what is written to it.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let stores = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        self.conditions.clear();
        for mirror in stores.iter().flat_map(Store::state) {
            let status = mirror.0.as_ref().ok().and_then(|mirror| mirror.status.as_ref());
            for condition in status.iter().flat_map(|status| &status.conditions) {
                let labels = ConditionLabels {
                    condition: condition.type_.clone(),
                    status: condition.status.clone(),
                };
                self.conditions.get_or_create(&labels).inc();
            }
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told() {
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
}
