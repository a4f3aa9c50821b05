//! What values add to the chart, and whether an API server takes all that they lead to.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use testbed::binaries::{self, workspace};
use testbed::control_plane::skip_on_existing_cluster;
use testbed::scratch::Scratch;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::helm::Helm;
use crate::{SHAPES, named};

/// All that is off by default, on.
const EVERYTHING: &[&str] = &[
    "--set=podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
    "--set=replicas=2,fullnameOverride=op",
    "--set=podDisruptionBudget.enabled=true,extraEnv[0].name=HTTPS_PROXY,extraEnv[0].value=http://p:1",
    "--set=extraVolumes[0].name=x,extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/x",
    "--set-json=extraVolumes[0].emptyDir={}",
    "--set=topologySpreadConstraints[0].maxSkew=1,topologySpreadConstraints[0].topologyKey=zone",
    "--set=topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
];
/// The API of the Prometheus operator, which a cluster may lack.
const MONITORING: &str = "monitoring.coreos.com/v1";

fn operators_pod(objects: &[Value]) -> &Value {
    &named(objects, "Deployment")[0]["spec"]["template"]["spec"]
}

#[tokio::test]
async fn what_needs_the_prometheus_operator_is_off_and_renders_without_its_definitions() {
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

#[tokio::test]
async fn one_pod_monitor_covers_every_mirror_of_the_scope() {
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

#[tokio::test]
async fn environment_volumes_and_spread_reach_the_operators_pod() {
    let helm = Helm::offline().await;
    let objects = helm.template(EVERYTHING).await.unwrap();
    let pod = operators_pod(&objects);
    let container = &pod["containers"][0];
    assert_eq!(container["env"][0]["name"], "HTTPS_PROXY");
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/x");
    assert_eq!(pod["volumes"][0]["name"], "x");
    let selected = &pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
    assert_eq!(selected["app.kubernetes.io/component"], "operator");
    let budget = &named(&objects, "PodDisruptionBudget")[0]["spec"];
    assert_eq!(budget["selector"]["matchLabels"], *selected);
}

/// The metrics of ours that a text names, less what their types add.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("registry_mirror_"))
        .map(|word| {
            word.trim_end_matches("_total")
                .trim_end_matches("_bucket")
                .to_owned()
        })
        .collect()
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let helm = Helm::offline().await;
    let objects = helm.template(EVERYTHING).await.unwrap();
    let dashboard = named(&objects, "ConfigMap")[0]["data"]["registry-mirror.json"]
        .as_str()
        .unwrap();
    let parsed: Value = serde_json::from_str(dashboard).unwrap();
    assert!(
        parsed["panels"]
            .as_array()
            .is_some_and(|panels| !panels.is_empty())
    );
    let mut asked = metrics_in(dashboard);
    asked.extend(metrics_in(
        &named(&objects, "PrometheusRule")[0]["spec"].to_string(),
    ));
    assert!(asked.len() > 5, "{asked:?}");
    let read = |path| fs::read_to_string(workspace().join(path)).unwrap();
    let (mirror, operator) = (read("mirror/src/metrics.rs"), read("operator/src/metrics.rs"));
    for metric in asked {
        let (source, name) = match metric.strip_prefix("registry_mirror_operator_") {
            Some(name) => (&operator, name),
            None => (&mirror, metric.trim_start_matches("registry_mirror_")),
        };
        assert!(source.contains(&format!("\"{name}\"")), "nobody tells {metric}");
    }
}

#[tokio::test]
async fn labels_of_the_users_come_beside_the_charts_and_never_in_their_place() {
    let helm = Helm::offline().await;
    let own = "app\\.kubernetes\\.io/name=mine";
    let mut flags = EVERYTHING.to_vec();
    let mine = [
        "podLabels",
        "podMonitor.labels",
        "prometheusRule.labels",
        "dashboard.labels",
    ]
    .map(|labels| format!("--set={labels}.{own},{labels}.team=ours"));
    flags.extend(mine.iter().map(String::as_str));
    // A key that comes twice does not parse.
    let objects = helm.template(&flags).await.unwrap();
    let pod = &named(&objects, "Deployment")[0]["spec"]["template"];
    let labelled = ["PodMonitor", "PrometheusRule", "ConfigMap"].map(|kind| named(&objects, kind));
    let labelled: Vec<_> = labelled.into_iter().flatten().chain([pod]).collect();
    assert_eq!(labelled.len(), 5);
    for object in labelled {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], "registry-mirror", "{labels}");
        assert_eq!(labels["team"], "ours", "{labels}");
    }
}

#[tokio::test]
async fn values_say_as_whom_and_how_often_the_operator_runs_and_how_it_is_called() {
    let helm = Helm::offline().await;
    let flags = [
        "--set=replicas=2,fullnameOverride=mirrors-op,podSecurityContext.runAsUser=null",
        "--set=podSecurityContext.runAsGroup=null,securityContext.seLinuxOptions.level=s0",
    ];
    let objects = helm.template(&flags).await.unwrap();
    let deployment = named(&objects, "Deployment")[0];
    assert_eq!(deployment["metadata"]["name"], "mirrors-op");
    assert_eq!(deployment["spec"]["replicas"], 2);
    let pod = operators_pod(&objects);
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["seLinuxOptions"]["level"], "s0");
    assert_eq!(
        container["securityContext"]["capabilities"]["drop"],
        json!(["ALL"])
    );
    let told = container["args"].as_array().unwrap();
    assert!(told.contains(&json!("--lease-name=mirrors-op")), "{told:?}");
}

#[tokio::test]
async fn values_say_how_often_and_how_patiently_the_operator_is_probed() {
    let helm = Helm::offline().await;
    let flags = ["--set=livenessProbe.periodSeconds=20,readinessProbe.timeoutSeconds=3"];
    let objects = helm.template(&flags).await.unwrap();
    let container = &operators_pod(&objects)["containers"][0];
    let liveness = &container["livenessProbe"];
    assert_eq!(liveness["httpGet"]["path"], "/livez");
    assert_eq!(
        (&liveness["periodSeconds"], &liveness["failureThreshold"]),
        (&json!(20), &json!(3))
    );
    let readiness = &container["readinessProbe"];
    assert_eq!(readiness["httpGet"]["path"], "/readyz");
    assert_eq!(
        (&readiness["timeoutSeconds"], &readiness["periodSeconds"]),
        (&json!(3), &json!(5))
    );
}

#[tokio::test]
async fn wrong_values_of_what_is_off_by_default_are_refused_by_name() {
    let helm = Helm::offline().await;
    for (flag, expected) in [
        ("--set=podMonitor.interval=often", "/podMonitor/interval"),
        ("--set=podMonitor.enable=true", "enable"),
        (
            "--set=podDisruptionBudget.maxUnavailable=-1",
            "/podDisruptionBudget/maxUnavailable",
        ),
        ("--set=extraEnv[0].value=b", "/extraEnv/0"),
        (
            "--set=livenessProbe.periodSeconds=0",
            "/livenessProbe/periodSeconds",
        ),
        ("--set=readinessProbe.httpGet.path=/", "httpGet"),
        ("--set=extraVolumeMounts[0].name=x", "/extraVolumeMounts/0"),
        (
            "--set=topologySpreadConstraints[0].maxSkew=1",
            "/topologySpreadConstraints/0",
        ),
    ] {
        let refused = helm.template(&[flag]).await.unwrap_err();
        assert!(refused.contains(expected), "{flag}: {refused}");
    }
}

#[tokio::test]
async fn an_api_server_takes_every_object_of_every_shape_to_the_last_field() {
    if skip_on_existing_cluster("an_api_server_takes_every_object_of_every_shape_to_the_last_field") {
        return;
    }
    let cluster = Cluster::start().await;
    for namespace in ["operators", "a", "b"] {
        cluster.restricted_namespace(namespace).await;
    }
    let scratch = Scratch::new("chart-shapes").unwrap();
    let kubectl = binaries::get("kubectl").await.unwrap();
    for flags in SHAPES.iter().map(|(flags, _)| *flags).chain([EVERYTHING]) {
        let mut objects = cluster.helm.template(flags).await.unwrap();
        objects.retain(|object| object["apiVersion"] != MONITORING);
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = scratch.write("objects.json", list.to_string()).unwrap();
        let mut command = Command::new(&kubectl);
        command
            .args([
                "apply",
                "--server-side",
                "--dry-run=server",
                "--validate=strict",
                "-f",
            ])
            .arg(&file)
            .env("KUBECONFIG", cluster.control_plane.kubeconfig())
            .stdin(Stdio::null());
        let output = command.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{flags:?}: {said}");
        assert!(!said.contains("unknown field"), "{flags:?}: {said}");
    }
}
