//! The table of specs, put to a real API server and to offline validation: both say the same.

#[path = "../../crds/tests/specs/table.rs"]
mod table;

#[path = "api_server_verdicts/mutation.rs"]
mod mutation;

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    RegistryMirror,
    validate::{self, Violations},
};
use kube::core::Status;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use table::Table;
use testbed::ControlPlane;
use testbed::binaries::Kubernetes;
use testbed::control_plane::{Namespace, skip_on_existing_cluster};

/// The number of documents made from each accepted one.
const MUTATIONS: usize = 20;

/// The refused fields, each with its message.
type Objections = BTreeSet<(String, String)>;

/// Sends a document to a path below the mirrors of a namespace, refusing unknown fields as kubectl has it.
async fn send(namespace: &Namespace, method: &str, path: &str, body: &Value) -> Result<Value, Objections> {
    let body = body.to_string().into_bytes();
    let path = format!(
        "/apis/registrymirror.io/v1alpha1/namespaces/{namespace}/registrymirrors{path}fieldValidation=Strict"
    );
    let request = http::Request::builder()
        .method(method)
        .uri(&path)
        .header(
            "content-type",
            if method == "PATCH" {
                "application/merge-patch+json"
            } else {
                "application/json"
            },
        )
        .body(body)
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    let sent = namespace.client().request(request).await;
    sent.map_err(|error| match error {
        kube::Error::Api(status) => objections(&status),
        error => panic!("{error}"),
    })
}

fn objections(status: &Status) -> Objections {
    if status.code == 400 {
        return unknown_fields(&status.message);
    }
    let causes = status.details.as_ref().map(|details| &details.causes);
    let objections = causes.into_iter().flatten().map(|cause| {
        // The scale subresource names replicas with a dot before them, and the type of a number is sometimes its format
        // and sometimes its name.
        let message = cause
            .message
            .replace("must be of type int32", "must be of type integer");
        (cause.field.trim_start_matches('.').to_owned(), message)
    });
    // Remarks that follow from another objection: rules were not tried, a number does not fit its format, there is no
    // number of replicas where there is no spec.
    objections
        .filter(|(field, message)| field != "<nil>" && !message.contains(" accessor error: "))
        .collect()
}

/// They are found before anything else, and reported in one sentence.
fn unknown_fields(message: &str) -> Objections {
    let fields = message
        .split("unknown field \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    let objections: Objections = fields
        .map(|field| (field.to_owned(), format!("unknown field \"{field}\"")))
        .collect();
    assert!(!objections.is_empty(), "{message}");
    objections
}

/// Returns true if an API server's message contains `said`. Older servers repeat a refused object or list in Go's
/// notation.
fn is_said(message: &str, said: &str) -> bool {
    let without_value = |message: &str| {
        let (what, rest) = message.split_once(' ').unwrap_or_default();
        let supported = rest.find(": supported values").map_or("", |at| &rest[at..]);
        format!("{what} value{supported}")
    };
    said.contains(message)
        || (said.contains("interface {}{") && without_value(said) == without_value(message))
}

/// Describes how the verdicts with and without an API server differ.
fn disagreement(
    online: &Result<Value, Objections>,
    offline: &Result<RegistryMirror, Violations>,
) -> Option<String> {
    let online: Vec<_> = online.as_ref().err().into_iter().flatten().collect();
    let offline: Vec<_> = offline
        .as_ref()
        .err()
        .into_iter()
        .flat_map(Violations::iter)
        .collect();
    let fields: BTreeSet<_> = online.iter().map(|(field, _)| field).collect();
    let agree = fields == offline.iter().map(|violation| &violation.path).collect()
        && offline.iter().all(|violation| {
            online
                .iter()
                .any(|(field, said)| *field == violation.path && is_said(&violation.message, said))
        });
    (!agree).then(|| format!("online {online:#?}\noffline {offline:#?}"))
}

/// Describes how the API server's verdict differs from the table's.
fn surprise(expected: &BTreeMap<String, String>, online: &Result<Value, Objections>) -> Option<String> {
    let online: Vec<_> = online.as_ref().err().into_iter().flatten().collect();
    let fields: BTreeSet<_> = online.iter().map(|(field, _)| field).collect();
    let agree = fields == expected.keys().collect()
        && expected.iter().all(|(field, message)| {
            online
                .iter()
                .any(|(other, said)| field == other && is_said(message, said))
        });
    (!agree).then(|| format!("expected {expected:#?}\nonline {online:#?}"))
}

fn none_differs(differences: &[String]) {
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// The API server has the requested version.
#[tokio::test]
async fn api_server_has_requested_version() {
    if skip_on_existing_cluster("api_server_has_requested_version") {
        return;
    }
    let client = ControlPlane::shared().await.client().await;
    let running = client.apiserver_version().await.unwrap().git_version;
    let wanted = format!("v{}.", Kubernetes::wanted().version());
    assert!(running.starts_with(&wanted), "{running}");
}

/// A refused document is refused alike with and without an API server.
#[tokio::test]
async fn refusals_match_the_api_server() {
    let namespace = ControlPlane::shared().await.namespace("refused").await;
    let mut differences = Vec::new();
    for case in Table::read().unwrap().refused {
        let document = case.document();
        let online = send(&namespace, "POST", "?dryRun=All&", &document).await;
        let offline = validate::created(&document);
        let difference = surprise(&case.refused, &online).or_else(|| disagreement(&online, &offline));
        differences.extend(difference.map(|difference| format!("{}: {difference}", case.name)));
    }
    none_differs(&differences);
}

/// Specs with one or two mutations are judged alike with and without an API server.
#[tokio::test]
async fn mutated_specs_match_the_api_server() {
    let namespace = ControlPlane::shared().await.namespace("mutated").await;
    let mut random = StdRng::seed_from_u64(2);
    let mut differences = Vec::new();
    for case in Table::read().unwrap().accepted {
        for _ in 0..MUTATIONS {
            let mut document = case.document();
            for _ in 0..random.random_range(1..=2) {
                mutation::mutate(&mut document, &mut random);
            }
            let online = send(&namespace, "POST", "?dryRun=All&", &document).await;
            let offline = validate::created(&document);
            differences.extend(
                disagreement(&online, &offline)
                    .map(|difference| format!("{}: {difference}", document["spec"])),
            );
        }
    }
    none_differs(&differences);
}

/// An accepted document gets the same defaults with and without an API server.
#[tokio::test]
async fn defaults_match_the_api_server() {
    let namespace = ControlPlane::shared().await.namespace("accepted").await;
    for case in Table::read().unwrap().accepted {
        let document = case.document();
        let online = send(&namespace, "POST", "?dryRun=All&", &document).await;
        let online = online.unwrap_or_else(|objections| panic!("{}: {objections:#?}", case.name));
        assert_eq!(
            validate::completed(&document)["spec"],
            online["spec"],
            "{}",
            case.name
        );

        let typed: RegistryMirror = serde_json::from_value(online).unwrap();
        assert_eq!(
            validate::created(&document).unwrap().spec,
            typed.spec,
            "{}",
            case.name
        );
    }
}

/// Changes are judged alike with and without an API server.
#[tokio::test]
async fn changes_match_the_api_server() {
    let namespace = ControlPlane::shared().await.namespace("changes").await;
    let mut differences = Vec::new();
    for (index, case) in Table::read().unwrap().changes.iter().enumerate() {
        let name = format!("change-{index}");
        let mut stored = send(&namespace, "POST", "?", &case.stored(&name)).await.unwrap();
        if let Some(status) = &case.status {
            let path = format!("/{name}/status?");
            stored = send(&namespace, "PATCH", &path, &json!({"status": status}))
                .await
                .unwrap();
        }
        let mut wanted = case.wanted(&name);
        wanted["metadata"] = stored["metadata"].clone();
        let path = format!("/{name}?dryRun=All&");
        let online = send(&namespace, "PUT", &path, &wanted).await;
        let offline = validate::changed(&wanted, &stored);
        let difference = surprise(&case.refused, &online).or_else(|| disagreement(&online, &offline));
        differences.extend(difference.map(|difference| format!("{}: {difference}", case.name)));
    }
    none_differs(&differences);
}

/// The API server accepts a status with a volume that is larger than the request.
#[tokio::test]
async fn status_accepts_larger_volume_than_requested() {
    let namespace = ControlPlane::shared().await.namespace("status").await;
    let smallest = &Table::read().unwrap().accepted[0];
    send(&namespace, "POST", "?", &smallest.document()).await.unwrap();
    // The volume that was bound is larger than what was asked for: the size is below it, and did not shrink.
    for capacity in ["100Gi", "200Gi"] {
        let status = json!({"status": {"storage": {"capacity": capacity}}});
        let stored = send(&namespace, "PATCH", "/mirror/status?", &status)
            .await
            .unwrap();
        assert_eq!(stored["status"]["storage"]["capacity"], capacity);
    }
}
