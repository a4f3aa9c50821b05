//! The files that are generated across crates and committed: `make generate` writes them.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;
use std::{env, fs};

use http::StatusCode;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use mirror::metrics::{
    Exposition, Kind, Metrics, MetricsSnapshot, Outcome, RequestRecord, Source, UpstreamSnapshot,
};
use mirror::name::Host;
use serde_json::{Value, json};
use testbed::binaries::workspace;

const CHART: &str = "charts/registry-mirror";
const MARK: &str = "<!-- generated -->\n";

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn chart(path: &str) -> String {
    read(&format!("{CHART}/{path}"))
}

/// Fails where a committed file is not what would be generated now, or makes it so.
fn assert_up_to_date(path: &str, content: &str) {
    if env::var_os("UPDATE").is_some() {
        fs::write(workspace().join(path), content).unwrap();
    }
    assert!(read(path) == content, "{path} is out of date: run make generate");
}

/// The chart contains the `CustomResourceDefinition` unchanged.
#[test]
fn chart_contains_the_crd_unchanged() {
    assert_up_to_date(
        &format!("{CHART}/files/registrymirrors.yaml"),
        &read("crds/registrymirrors.yaml"),
    );
}

/// The README of the chart lists every value.
#[test]
fn chart_readme_lists_every_value() {
    let schema: Value = serde_json::from_str(&chart("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&chart("values.yaml")).unwrap();
    let readme = chart("README.md");
    let (by_hand, _) = readme.split_once(MARK).expect("the README has a mark");
    let mut table = "| Value | Default | Meaning |\n|---|---|---|\n".to_owned();
    rows(&schema, &values, "", &mut table);
    assert_up_to_date(&format!("{CHART}/README.md"), &format!("{by_hand}{MARK}{table}"));
}

fn rows(schema: &Value, values: &Value, path: &str, table: &mut String) {
    for (name, field) in schema["properties"].as_object().unwrap() {
        let path = format!("{path}{name}");
        let Some(default) = values.get(name) else {
            // Helm itself sets it.
            assert_eq!(path, "global", "a value without a default");
            continue;
        };
        if field["properties"].is_object() {
            rows(field, default, &format!("{path}."), table);
        } else {
            let meaning = field["description"]
                .as_str()
                .unwrap_or_else(|| panic!("{path} has no meaning"));
            writeln!(table, "| `{path}` | `{default}` | {meaning} |").unwrap();
        }
    }
}

#[test]
fn chart_and_programs_have_one_version() {
    let chart: Value = serde_saphyr::from_str(&chart("Chart.yaml")).unwrap();
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// The annotations for Artifact Hub match the `CustomResourceDefinition`.
#[test]
fn artifact_hub_annotations_match_the_crd() {
    let yaml = |text: &str| serde_saphyr::from_str::<Value>(text).unwrap();
    let reported = yaml(&chart("Chart.yaml"));
    let annotation = |name: &str| {
        yaml(
            reported["annotations"][format!("artifacthub.io/{name}")]
                .as_str()
                .unwrap(),
        )
    };
    let definition = yaml(&read("crds/registrymirrors.yaml"));
    let (crd, spec) = (&annotation("crds")[0], &definition["spec"]);
    assert_eq!(crd["name"], definition["metadata"]["name"]);
    assert_eq!(crd["kind"], spec["names"]["kind"]);
    assert_eq!(crd["version"], spec["versions"][0]["name"]);
    let example = annotation("crdsExamples")[0].clone();
    serde_json::from_value::<crds::RegistryMirror>(example).unwrap();
    let (_, icon) = reported["icon"].as_str().unwrap().split_once("/main/").unwrap();
    assert!(read(icon).starts_with("<svg"));
}

/// Returns the metrics of a server that has every series once.
fn server_metrics() -> String {
    let (metrics, host) = (Metrics::new(), "docker.io".parse::<Host>().unwrap());
    metrics
        .add_upstream(&host)
        .response(StatusCode::OK, Duration::ZERO, None);
    let request = RequestRecord {
        kind: Kind::Blob,
        code: StatusCode::OK,
        outcome: Outcome::Hit,
        origin: Source::Upstream,
        took: Duration::ZERO,
        first_byte: Duration::ZERO,
        bytes: 1,
        trace: None,
    };
    metrics.request(Some(&host), &request);
    let upstream = UpstreamSnapshot {
        up: true,
        rate_limit: Some(1),
        remaining: Some(1),
        reset: Some(1),
        credential: "none",
    };
    let gauges = MetricsSnapshot {
        certificate_not_after: Some(1),
        is_configured: true,
        upstreams: vec![(host, upstream)],
    };
    let metrics = metrics.scrape(&gauges, &["none"]).unwrap();
    Exposition::Text.convert(metrics)
}

/// Returns the metrics of an operator that has every series once.
fn operator_metrics() -> String {
    let (metrics, mut mirrors) = (operator::metrics::Metrics::default(), Writer::default());
    metrics.initialize_errors(&["apply"]);
    metrics.add_mirrors(mirrors.as_reader());
    let mirror = json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
        "metadata": {"name": "hub", "namespace": "mirrors"},
        "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}},
        "status": {
            "storage": {"capacity": "1Gi"},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Serving", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    });
    let mirror = DeserializeGuard(Ok(serde_json::from_value(mirror).unwrap()));
    mirrors.apply_watcher_event(&Event::Apply(mirror));
    Exposition::Text.convert(metrics.render().unwrap())
}

/// Returns a table of the families in metrics of the text format.
fn families(metrics: &str) -> String {
    let mut table = "| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n".to_owned();
    let mut help = "";
    for line in metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            (_, help) = described.split_once(' ').unwrap();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let labels = labels(metrics, name);
            writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
    }
    table
}

/// Returns the labels of a family, less those that its type adds.
fn labels(metrics: &str, family: &str) -> String {
    let series = metrics.lines().find(|line| line.starts_with(family));
    let series = series.unwrap_or_else(|| panic!("{family} has no series"));
    let (_, labels) = series.split_once('{').unwrap_or_default();
    let names = labels.split(',').filter_map(|label| label.split_once('='));
    let names = names.map(|(name, _)| name).filter(|name| *name != "le");
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The reference of the metrics lists every family of both programs.
#[test]
fn metrics_reference_lists_every_family() {
    let page = read("docs/reference/metrics.md");
    let (by_hand, _) = page.split_once(MARK).expect("the page has a mark");
    let (server, operator) = (families(&server_metrics()), families(&operator_metrics()));
    let generated = format!("{by_hand}{MARK}\n## Server\n\n{server}\n## Operator\n\n{operator}");
    assert_up_to_date("docs/reference/metrics.md", &generated);
}

/// The list of alerts has the defaults of each, and each is a name that the values accept.
#[test]
fn runbooks_list_every_alert() {
    let alerts: BTreeMap<String, Value> = serde_saphyr::from_str(&chart("files/alerts.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&chart("values.schema.json")).unwrap();
    let names = schema.pointer("/properties/prometheusRule/properties/alerts/propertyNames/enum");
    let mut names: Vec<_> = names
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, alerts.keys().collect::<Vec<_>>());
    let mut table =
        "| Alert | Severity | for | window | threshold | Meaning |\n|---|---|---|---|---|---|\n".to_owned();
    for (name, alert) in &alerts {
        let text = |field: &str| match &alert[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let meaning = text("summary")
            .replace("{{ $labels.", "")
            .replace("{{ $value | humanizePercentage }}", "A part")
            .replace("{{ $value | humanizeDuration }}", "a time")
            .replace(" }}", "");
        writeln!(
            table,
            "| [{name}]({name}.md) | {} | {} | {} | {} | {meaning} |",
            text("severity"),
            text("for"),
            text("window"),
            text("threshold")
        )
        .unwrap();
    }
    let page = read("docs/runbooks/README.md");
    let (by_hand, _) = page.split_once(MARK).expect("the page has a mark");
    assert_up_to_date("docs/runbooks/README.md", &format!("{by_hand}{MARK}\n{table}"));
}
