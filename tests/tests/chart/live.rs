//! A real Prometheus that scrapes a real server and the operator's admin port: each alert of the chart fires and clears, and
//! each panel of the dashboard has data.

#[path = "live/faults.rs"]
mod faults;
#[path = "live/targets.rs"]
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::binaries::workspace;
use testbed::prometheus::server::{Prometheus, promtool};
use testbed::prometheus::{self, with_variables};
use tokio::time::sleep;

use crate::helm::Helm;
use faults::{RateLimited, Registry};
use targets::{MirrorServer, OperatorServer};

const SOON: Duration = Duration::from_secs(90);
/// The pause between two reads of the alerts.
const PAUSE: Duration = Duration::from_millis(100);
/// Values of the chart with which alerts fire within seconds.
const QUICK: [(&str, &str); 5] = [
    ("RegistryMirrorSlow", "0"),
    ("RegistryMirrorCertificateExpiring", "10000000000"),
    ("RegistryMirrorVolumeFillsUp", "60"),
    ("RegistryMirrorErrors", "0.05"),
    ("RegistryMirrorReconcileErrors", "0.05"),
];

/// Returns the alerts of the chart with windows of seconds.
async fn quick_alerts() -> Vec<Value> {
    let file = fs::read_to_string(workspace().join("charts/registry-mirror/files/alerts.yaml")).unwrap();
    let alerts: BTreeMap<String, Value> = serde_saphyr::from_str(&file).unwrap();
    let change = |(name, alert): (&String, &Value)| {
        let mut change = json!({"for": "0s"});
        if alert["window"].is_string() {
            change["window"] = json!("5s");
        }
        (name.clone(), change)
    };
    let mut changes: BTreeMap<String, Value> = alerts.iter().map(change).collect();
    for (name, threshold) in QUICK {
        changes.get_mut(name).unwrap()["threshold"] = json!(threshold);
    }
    let values = json!({"enabled": true, "alerts": changes});
    let flag = format!("--set-json=prometheusRule={values}");
    let objects = Helm::offline().await.template(&[&flag]).await.unwrap();
    prometheus::groups(&objects)
}

/// Returns the alerts that fire, by name.
async fn firing(prometheus: &Prometheus) -> BTreeMap<String, Value> {
    let alerts = prometheus.firing().await.unwrap();
    let name = |alert: &Value| alert["labels"]["alertname"].as_str().unwrap().to_owned();
    alerts.into_iter().map(|alert| (name(&alert), alert)).collect()
}

/// Runs `provoke` again and again until all of these alerts fired, and collects them.
async fn until_fired(
    prometheus: &Prometheus,
    names: &[String],
    fired: &mut BTreeMap<String, Value>,
    provoke: impl AsyncFn(),
) {
    let deadline = Instant::now() + SOON;
    while !names.iter().all(|name| fired.contains_key(name)) {
        let missing: Vec<_> = names.iter().filter(|name| !fired.contains_key(*name)).collect();
        assert!(Instant::now() < deadline, "these did not fire: {missing:?}");
        provoke().await;
        fired.extend(firing(prometheus).await);
        sleep(PAUSE).await;
    }
}

/// Each alert fires while its fault lasts, with the labels of the mirror, and clears once the fault is repaired. Meanwhile
/// promtool accepts the metrics of both programs, and each panel of the dashboard has data.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_and_clear_and_panels_have_data() {
    let registry = Registry::start().await;
    let mut mirror = MirrorServer::start(&registry).await;
    let mut operator = OperatorServer::reserve();
    let groups = quick_alerts().await;
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let names: Vec<_> = rules
        .map(|rule| rule["alert"].as_str().unwrap().to_owned())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let prometheus = Prometheus::start(&[mirror.target(), operator.target()], &groups)
        .await
        .unwrap();

    let mut fired = BTreeMap::new();
    let early = ["RegistryMirrorOperatorAbsent", "RegistryMirrorNotUsed"].map(str::to_owned);
    until_fired(&prometheus, &early, &mut fired, async || {}).await;

    registry.set(RateLimited::Nearly);
    operator.start(false).await;
    mirror.refuse_configuration();
    until_fired(&prometheus, &names, &mut fired, async || {
        operator.fail_reconcile();
        mirror.provoke(&registry).await;
    })
    .await;
    for (name, alert) in &fired {
        for label in ["namespace", "name", "severity"] {
            assert!(alert["labels"][label].is_string(), "{name}: {label}: {alert}");
        }
        assert!(alert["annotations"]["summary"].is_string(), "{alert}");
    }
    assert_panels_have_data(&prometheus).await;
    for metrics in [mirror.metrics().await, operator.metrics().await] {
        promtool(&["check", "metrics"], &metrics).await.unwrap();
    }

    registry.set(RateLimited::No);
    operator.repair();
    mirror.repair().await;
    let deadline = Instant::now() + SOON;
    loop {
        mirror.pull_unknown_tag().await;
        let left = firing(&prometheus).await;
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "these still fire: {left:?}");
        sleep(PAUSE).await;
    }
}

/// Asks each question of the dashboard.
async fn assert_panels_have_data(prometheus: &Prometheus) {
    let file = fs::read_to_string(workspace().join("charts/registry-mirror/files/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&file).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let panels: Vec<_> = panels.iter().filter(|panel| panel["type"] != "row").collect();
    assert!(panels.len() > 30, "{}", panels.len());
    for panel in panels {
        assert!(panel["description"].is_string(), "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            let expression = with_variables(target["expr"].as_str().unwrap(), "5s");
            let data = prometheus.query(&expression).await.unwrap();
            assert!(!data.is_empty(), "{}: {expression}", panel["title"]);
        }
    }
}

/// promtool runs the unit tests of the alerts, as the chart renders them by default.
#[tokio::test]
async fn promtool_passes_unit_tests_of_alerts() {
    let objects = Helm::offline()
        .await
        .template(&["--set=prometheusRule.enabled=true"])
        .await
        .unwrap();
    let scratch = testbed::scratch::Scratch::new("promtool").unwrap();
    let mut groups = json!({"groups": prometheus::groups(&objects)});
    for rule in groups["groups"][0]["rules"].as_array_mut().unwrap() {
        // Another test renders them; here they would be repeated for each alert.
        rule.as_object_mut().unwrap().remove("annotations");
    }
    scratch.write("rules.json", groups.to_string()).unwrap();
    let tests = fs::read_to_string(workspace().join("tests/tests/chart/live/alerts.yaml")).unwrap();
    for name in groups["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| &rule["alert"])
    {
        assert!(
            tests.contains(&format!("alertname: {}\n", name.as_str().unwrap())),
            "{name} has no test"
        );
    }
    let tests = scratch.write("tests.yaml", tests).unwrap();
    promtool(&["test", "rules", &tests.display().to_string()], "")
        .await
        .unwrap();
}

/// promtool finds what is wrong with metrics.
#[tokio::test]
async fn promtool_refuses_bad_metrics() {
    let bad = "# TYPE pulls counter\npulls 1\n";
    assert!(matches!(
        promtool(&["check", "metrics"], bad).await,
        Err(prometheus::Error::Refused(_))
    ));
}
