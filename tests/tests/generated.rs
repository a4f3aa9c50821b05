//! What is generated across crates and committed: `make generate` writes it anew.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

use std::fmt::Write;
use std::{env, fs};

use serde_json::Value;
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
    let told = yaml(&chart("Chart.yaml"));
    let annotation = |name: &str| {
        yaml(
            told["annotations"][format!("artifacthub.io/{name}")]
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
    let (_, icon) = told["icon"].as_str().unwrap().split_once("/main/").unwrap();
    assert!(read(icon).starts_with("<svg"));
}
