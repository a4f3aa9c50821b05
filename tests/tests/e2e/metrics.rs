//! The metrics of both programs, compared with the queries of the chart's alerts and dashboard.

use serde_json::Value;
use testbed::prometheus::{self, Selector};

use crate::cluster::Cluster;
use crate::mirror::MIRRORS;

/// The labels that Prometheus adds to the metrics of a target.
const OF_TARGETS: [&str; 7] = [
    "cluster",
    "namespace",
    "name",
    "pod",
    "container",
    "instance",
    "job",
];
/// Metrics of upstreams with a rate limit, of servers with TLS and of volumes: a mirror may be without them.
const OPTIONAL: [&str; 3] = [
    "registry_mirror_upstream_rate_limit",
    "registry_mirror_certificate_not_after_timestamp_seconds",
    "registry_mirror_storage_bytes",
];

impl Cluster {
    pub(crate) async fn programs_tell_what_alerts_and_dashboard_ask_for(&self) {
        let flags = ["--set=prometheusRule.enabled=true,dashboard.enabled=true"];
        let objects: Vec<Value> = serde_saphyr::from_multiple(&self.template(&flags).await).unwrap();
        let asked = prometheus::read(&prometheus::groups(&objects)).await.unwrap();
        assert!(asked.len() > 5, "{asked:?}");
        let operator = self.metrics("--namespace=registry-mirror", 8080).await;
        let mirror = self.metrics(MIRRORS, 5001).await;
        for selector in &asked {
            let is_optional = OPTIONAL.contains(&selector.metric.as_str());
            let is_exported = answers(&operator, selector) || answers(&mirror, selector);
            assert!(is_exported || is_optional, "{selector:?}:\n{operator}\n{mirror}");
        }
    }

    /// Returns the metrics of the first Pod of a namespace.
    async fn metrics(&self, namespace: &str, port: u16) -> String {
        let path = "jsonpath={.items[0].status.podIP}";
        let ip = self.kubectl(&["get", "pods", namespace, "-o", path]).await;
        self.run(&["curl", "-sf", &format!("http://{ip}:{port}/metrics")])
            .await
    }
}

/// Returns true if a reported series has the name and all labels.
fn answers(reported: &str, selector: &Selector) -> bool {
    let name = &selector.metric;
    let mut series = reported
        .lines()
        .filter_map(|line| line.strip_prefix(name.as_str()))
        .filter(|rest| rest.starts_with(['{', ' ']));
    let labels = || {
        selector
            .labels
            .iter()
            .filter(|label| !OF_TARGETS.contains(&label.as_str()))
    };
    series.any(|series| labels().all(|label| series.contains(&format!("{label}=\""))))
}
