//! Compares the CRD of the cluster with the one of this program.

use std::collections::BTreeMap;

use http::Request;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResourceExt, Resource, runtime::conditions::is_crd_established,
    runtime::wait::Condition,
};
use serde_json::Value;

use super::{
    error_message,
    report::{Check, Class, Finding},
};
use crds::RegistryMirror;

/// The maximum number of fields in a message.
const NAMED: usize = 5;
const ADVICE: &str = "registry-mirror crd | kubectl apply --server-side --force-conflicts -f -, or helm upgrade with \
                      crds.enabled=true";

/// Checks the CRD or, without permission to read it, the schema that the API server publishes.
pub(super) async fn check(client: &Client) -> Finding {
    let name = RegistryMirror::crd_name();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    match definitions.get_opt(name).await {
        Ok(None) => missing(name),
        Ok(Some(live)) if !is_crd_established().matches_object(Some(&live)) => {
            let message = "is installed, but not served yet";
            Finding::problem(Check::Definition, Class::Cluster, name, message)
                .advice(format!("kubectl describe crd {name} has the cause"))
        }
        Ok(Some(live)) => compared(name, &schema_of(&live), &schema_of(&crds::crd())),
        Err(kube::Error::Api(status)) if status.is_forbidden() => published(client, name).await,
        Err(error) => unknown(name, &error),
    }
}

fn missing(name: &str) -> Finding {
    let message = "is not installed: the cluster does not know the kind RegistryMirror";
    Finding::problem(Check::Definition, Class::Cluster, name, message).advice(ADVICE)
}

fn unknown(name: &str, error: &kube::Error) -> Finding {
    let message = format!("not readable: {}", error_message(error));
    Finding::problem(Check::Definition, Class::Cluster, name, message)
        .advice("try again once the API server works")
}

/// Compares the fields that the API server publishes, which have no rules.
async fn published(client: &Client, name: &str) -> Finding {
    let path = format!("/openapi/v3/apis/{}", RegistryMirror::api_version(&()));
    let document = async {
        // A path of letters, digits, dots and slashes is one.
        let request = Request::get(path)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        client.request::<Value>(request).await
    };
    let document = match document.await {
        Ok(document) => document,
        Err(kube::Error::Api(status)) if status.code == 404 => return missing(name),
        Err(error) => return unknown(name, &error),
    };
    let schemas = document.pointer("/components/schemas").and_then(Value::as_object);
    let kind = RegistryMirror::kind(&());
    let of_the_kind = |schema: &&Value| {
        let kinds = schema
            .get("x-kubernetes-group-version-kind")
            .and_then(Value::as_array);
        kinds.into_iter().flatten().any(|of| of["kind"] == *kind)
    };
    let theirs = schemas.and_then(|schemas| schemas.values().find(of_the_kind));
    let own = schema_of(&crds::crd());
    match theirs {
        None => missing(name),
        Some(theirs) => differences(name, &fields(theirs), &fields(&own))
            .unwrap_or_else(|| Finding::ok(Check::Definition, name, "has the fields of this version")),
    }
}

fn compared(name: &str, theirs: &Value, own: &Value) -> Finding {
    if let Some(finding) = differences(name, &fields(theirs), &fields(own)) {
        return finding;
    }
    if bare(theirs) != bare(own) {
        let message = "has the fields of this version with other rules";
        return Finding::problem(Check::Definition, Class::Cluster, name, message).advice(ADVICE);
    }
    Finding::ok(Check::Definition, name, "matches this version")
}

fn differences(
    name: &str,
    theirs: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) -> Option<Finding> {
    let lacking = missing_in(theirs, own);
    if !lacking.is_empty() {
        let message = format!("is older than this version: it has no {}", listed(&lacking));
        return Some(Finding::problem(Check::Definition, Class::Cluster, name, message).advice(ADVICE));
    }
    let altered: Vec<_> = own
        .iter()
        .filter(|(path, kind)| theirs.get(*path) != Some(kind))
        .map(|(path, _)| path.as_str())
        .collect();
    if !altered.is_empty() {
        let message = format!("is of another version: other type of {}", listed(&altered));
        return Some(Finding::problem(Check::Definition, Class::Cluster, name, message).advice(ADVICE));
    }
    let newer = missing_in(own, theirs);
    (!newer.is_empty()).then(|| {
        let message = format!("is newer than this version: it also has {}", listed(&newer));
        Finding::warning(Check::Definition, name, message)
            .advice("use the registry-mirror of the version that the cluster runs")
    })
}

fn missing_in<'a>(a: &BTreeMap<String, String>, b: &'a BTreeMap<String, String>) -> Vec<&'a str> {
    let missing = b.keys().filter(|path| !a.contains_key(*path));
    missing.map(String::as_str).collect()
}

fn listed(paths: &[&str]) -> String {
    let named = paths.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match paths.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Returns the schema of this program's API version; null if it is not served.
fn schema_of(definition: &CustomResourceDefinition) -> Value {
    let mut versions = definition.spec.versions.iter();
    let version = versions.find(|version| version.name == RegistryMirror::version(&()) && version.served);
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    schema
        .and_then(|schema| serde_json::to_value(schema).ok())
        .unwrap_or_default()
}

/// Returns every field of spec and status, with its type.
fn fields(schema: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for part in ["spec", "status"] {
        collect(&schema["properties"][part], part, &mut found);
    }
    found
}

fn collect(schema: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    let kind = schema["type"].as_str().unwrap_or_default();
    found.insert(path.to_owned(), kind.to_owned());
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        collect(property, &format!("{path}.{name}"), found);
    }
    if schema["items"].is_object() {
        collect(&schema["items"], &format!("{path}[]"), found);
    }
}

/// Returns the schema without descriptions.
fn bare(schema: &Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let said = |name: &str, value: &Value| name == "description" && value.is_string();
            let kept = fields.iter().filter(|(name, value)| !said(name, value));
            Value::Object(kept.map(|(name, value)| (name.clone(), bare(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(bare).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Value {
        schema_of(&crds::crd())
    }

    fn reported(theirs: &Value) -> String {
        serde_json::to_string(&compared("d", theirs, &own())).unwrap()
    }

    /// A `CustomResourceDefinition` with equal rules is fine with any descriptions.
    #[test]
    fn equal_crd_with_other_descriptions_is_ok() {
        let mut theirs = own();
        theirs["properties"]["spec"]["description"] = "in other words".into();
        assert!(reported(&theirs).contains(r#""result":"ok""#));
    }

    #[test]
    fn older_crd_missing_fields_are_named() {
        let mut theirs = own();
        let spec = theirs["properties"]["spec"]["properties"]
            .as_object_mut()
            .unwrap();
        spec.remove("paused");
        let reported = reported(&theirs);
        assert!(
            reported.contains("older") && reported.contains("has no spec.paused\""),
            "{reported}"
        );
    }

    /// A newer `CustomResourceDefinition` with more fields is a warning and no problem.
    #[test]
    fn newer_crd_is_a_warning() {
        let mut theirs = own();
        theirs["properties"]["spec"]["properties"]["colour"] = serde_json::json!({"type": "string"});
        let reported = reported(&theirs);
        assert!(
            reported.contains("warning") && reported.contains("also has spec.colour"),
            "{reported}"
        );
    }

    #[test]
    fn other_rules_are_noticed() {
        let mut theirs = own();
        theirs["properties"]["spec"]["properties"]["replicas"]["maximum"] = 3.into();
        assert!(reported(&theirs).contains("with other rules"));
    }
}
