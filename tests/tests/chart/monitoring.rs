//! The chart's objects for Prometheus: monitors, alerts, and the dashboard's queries.

use std::collections::BTreeMap;
use std::fs;

use crds::conditions::{ConditionType, Reason};
use serde_json::{Value, json};
use testbed::binaries::workspace;
use testbed::prometheus;

use crate::helm::Helm;
use crate::named;
use crate::values::EVERYTHING;

/// Sets of values that render monitors in different ways.
pub(crate) const MONITORED: [&[&str]; 2] = [
    &[
        "--set=watchNamespaces={a,b},podMonitor.enabled=true,podMonitor.interval=1m,podMonitor.scrapeTimeout=500ms",
        "--set=podMonitor.honorLabels=true,podMonitor.annotations.a=b,podMonitor.labels.release=prometheus",
        "--set=podMonitor.relabelings[0].action=labeldrop,podMonitor.relabelings[0].regex=instance",
        "--set=podMonitor.metricRelabelings[0].sourceLabels={host},podMonitor.metricRelabelings[0].action=keep",
        "--set=podMonitor.metricRelabelings[0].regex=docker.io",
    ],
    &[
        "--set=crds.enabled=false,podMonitor.enabled=true,prometheusRule.enabled=true,namespaceOverride=b",
        "--set=prometheusRule.annotations.a=b,prometheusRule.extraRules[0].alert=Mine,dashboard.enabled=true",
        "--set=prometheusRule.extraRules[0].expr=vector(1),prometheusRule.extraRules[0].for=1m",
        "--set=dashboard.annotations.folder=Registries",
    ],
];
/// The API of the Prometheus operator, which a cluster may lack.
const MONITORING: &str = "monitoring.coreos.com/v1";

/// The objects of the Prometheus operator are off by default, and render without its definitions.
#[tokio::test]
async fn prometheus_objects_are_off_by_default() {
    let helm = Helm::offline().await;
    let needs_it = |object: &&Value| object["apiVersion"] == MONITORING;
    let by_default = helm.template(&[]).await.unwrap();
    assert_eq!(by_default.iter().filter(needs_it).count(), 0);
    let all = helm.template(EVERYTHING).await.unwrap();
    let kinds: Vec<_> = all
        .iter()
        .filter(needs_it)
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["PodMonitor", "PodMonitor", "PrometheusRule"]);
}

/// One `PodMonitor` covers every mirror in the scope of the operator.
#[tokio::test]
async fn pod_monitor_covers_every_mirror_in_scope() {
    let helm = Helm::offline().await;
    for (scope, selector) in [
        ("--set=podMonitor.interval=1m", r#"{"any":true}"#),
        ("--set=watchNamespaces={a,b}", r#"{"matchNames":["a","b"]}"#),
    ] {
        let objects = helm
            .template(&["--set=podMonitor.enabled=true", scope])
            .await
            .unwrap();
        let monitors = named(&objects, "PodMonitor");
        let mirrors = monitors
            .iter()
            .find(|monitor| monitor["metadata"]["name"] == "rm-registry-mirror-mirrors");
        let spec = &mirrors.unwrap()["spec"];
        assert_eq!(spec["namespaceSelector"].to_string(), selector);
        assert_eq!(
            spec["selector"]["matchLabels"]["app.kubernetes.io/component"],
            "mirror"
        );
        assert_eq!(spec["podMetricsEndpoints"][0]["port"], "admin");
    }
}

/// Prometheus parses every alert and panel, and each uses metrics that exist.
#[tokio::test]
async fn prometheus_parses_alerts_and_panels() {
    let helm = Helm::offline().await;
    let objects = helm.template(&[EVERYTHING, MONITORED[1]].concat()).await.unwrap();
    let groups = prometheus::groups(&objects);
    assert_eq!(groups.len(), 2, "one of alerts, one of panels");
    assert!(
        groups
            .iter()
            .all(|group| group["rules"].as_array().unwrap().len() > 5)
    );
    let asked = prometheus::read(&groups).await.unwrap();
    assert!(asked.len() > 5, "{asked:?}");
    // A test compares it with the code.
    let reference = fs::read_to_string(workspace().join("docs/reference/metrics.md")).unwrap();
    for metric in asked.iter().map(|selector| &selector.metric) {
        let row = format!("| `{}` |", metric.trim_end_matches("_bucket"));
        assert!(reference.contains(&row), "{metric} is in no row");
    }
}

/// The values that expressions ask of a label.
fn asked_of<'a>(expressions: &'a [String], label: &'a str) -> impl Iterator<Item = &'a str> {
    let parts = expressions
        .iter()
        .flat_map(move |expression| expression.split(label).skip(1));
    parts.filter_map(|part| {
        let (_, value) = part
            .split_once('"')
            .filter(|(sign, _)| ["=", "!="].contains(sign))?;
        value.split('"').next()
    })
}

/// An alert fires for each condition that an administrator has to fix, and its expressions use existing series.
#[tokio::test]
async fn alerts_cover_conditions_for_admins() {
    let helm = Helm::offline().await;
    let objects = helm
        .template(&["--set=prometheusRule.enabled=true"])
        .await
        .unwrap();
    let groups = prometheus::groups(&objects);
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let mut expressions: Vec<_> = rules
        .map(|rule| rule["expr"].as_str().unwrap().to_owned())
        .collect();
    let mut conditions: Vec<_> = asked_of(&expressions, "condition").collect();
    conditions.sort_unstable();
    let recovered = [
        ConditionType::Accepted,
        ConditionType::Available,
        ConditionType::CredentialsValid,
        ConditionType::Ready,
        ConditionType::StorageReady,
        ConditionType::TLSReady,
        ConditionType::UpstreamReachable,
    ];
    conditions.dedup();
    assert_eq!(conditions, recovered.map(ConditionType::as_str));
    expressions.retain(|expression| !expression.contains("_fill_failures_"));
    for reason in asked_of(&expressions, "reason") {
        let mut all = Reason::ALL.iter();
        assert!(all.any(|known| known.as_str() == reason), "{reason}");
    }
    assert!(
        expressions
            .iter()
            .any(|expression| expression.contains("_apply_rejected"))
    );
    assert!(
        expressions
            .iter()
            .any(|expression| expression.starts_with("absent(registry_mirror_operator_"))
    );
}

/// Returns the alerts that the chart renders, by name.
async fn alerts(flags: &[&str]) -> BTreeMap<String, Value> {
    let flags = [&["--set=prometheusRule.enabled=true"], flags].concat();
    let objects = Helm::offline().await.template(&flags).await.unwrap();
    let groups = prometheus::groups(&objects);
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let named = rules.map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule.clone()));
    named.collect()
}

/// Each alert has a severity, a duration, the labels of its object and a runbook that exists.
#[tokio::test]
async fn alerts_have_labels_and_runbooks() {
    let alerts = alerts(&[]).await;
    assert!(alerts.len() > 15, "{}", alerts.len());
    for (name, alert) in &alerts {
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        assert!(alert["for"].is_string(), "{name}");
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        let (_, file) = url.split_once("/main/").unwrap();
        let runbook = fs::read_to_string(workspace().join(file)).unwrap();
        for heading in ["# Symptom", "# Impact", "# Diagnosis", "# Mitigation"] {
            assert!(runbook.contains(heading), "{name}: {heading}");
        }
        let expression = alert["expr"].as_str().unwrap();
        let is_of_operator = alert["labels"]["name"] == "rm-registry-mirror";
        assert!(
            is_of_operator || expression.contains("by (namespace, name"),
            "{name}"
        );
    }
}

/// Values change and switch off each alert; a name that is none is refused.
#[tokio::test]
async fn values_change_alerts_by_name() {
    let (by_default, key) = (alerts(&[]).await, "--set=prometheusRule.alerts");
    let changed =
        format!("{key}.RegistryMirrorErrors.threshold=0.5,prometheusRule.alerts.RegistryMirrorErrors.for=1m");
    let severity = format!(
        "{key}.RegistryMirrorErrors.severity=page,prometheusRule.alerts.RegistryMirrorErrors.window=9m"
    );
    let alert = &alerts(&[&changed, &severity]).await["RegistryMirrorErrors"];
    assert!(
        alert["expr"].as_str().unwrap().ends_with("[9m])) > 0.5"),
        "{alert}"
    );
    assert_eq!(
        (&alert["for"], &alert["labels"]["severity"]),
        (&json!("1m"), &json!("page"))
    );
    for name in by_default.keys() {
        let without = alerts(&[&format!("{key}.{name}.enabled=false")]).await;
        assert_eq!(without.len(), by_default.len() - 1, "{name}");
        assert!(!without.contains_key(name), "{name}");
    }
    let helm = Helm::offline().await;
    helm.template(&[&format!("{key}.RegistryMirrorNone.enabled=false")])
        .await
        .unwrap_err();
}

/// The monitors keep the namespace and the name of a mirror in the operator's metrics, and add them to those of servers.
#[tokio::test]
async fn monitors_name_the_mirror_of_metrics() {
    let flags = ["--set=podMonitor.enabled=true,serviceMonitor.enabled=true"];
    let objects = Helm::offline().await.template(&flags).await.unwrap();
    for (kind, endpoints) in [
        ("PodMonitor", "podMetricsEndpoints"),
        ("ServiceMonitor", "endpoints"),
    ] {
        let monitors = named(&objects, kind);
        let endpoint = |name: &str| {
            let found = monitors
                .iter()
                .find(|monitor| monitor["metadata"]["name"] == name);
            found.unwrap()["spec"][endpoints][0].clone()
        };
        assert_eq!(endpoint("rm-registry-mirror")["honorLabels"], true, "{kind}");
        let mirrors = endpoint("rm-registry-mirror-mirrors");
        assert_eq!(mirrors["port"], "admin", "{kind}");
        assert_eq!(mirrors["relabelings"][0]["targetLabel"], "name", "{kind}");
    }
}

/// Prometheus refuses an alert that does not parse.
#[tokio::test]
async fn prometheus_refuses_invalid_alerts() {
    let helm = Helm::offline().await;
    for wrong in [
        json!({"alert": "Mine", "expr": "sum("}),
        json!({"alert": "Mine", "expr": "up", "for": "long"}),
        json!({"alert": "Mine", "expr": "up", "annotations": {"a": "{{ .x"}}),
        json!({"alert": "Mine", "expr": "up", "summary": "a"}),
    ] {
        let mine = format!(
            "--set-json=prometheusRule={}",
            json!({"enabled": true, "extraRules": [wrong]})
        );
        let objects = helm.template(&[&mine]).await.unwrap();
        let refused = prometheus::read(&prometheus::groups(&objects)).await;
        assert!(
            matches!(refused, Err(prometheus::Error::Refused(_))),
            "{wrong}: {refused:?}"
        );
    }
}
