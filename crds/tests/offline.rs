//! The table of specs, put to offline validation. The same table is put to a real API server elsewhere.

#[path = "specs/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    RegistryMirror,
    validate::{self, Violations},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use table::Table;

/// Describes how a verdict differs from what the table says.
fn difference(expected: &BTreeMap<String, String>, verdict: Result<(), Violations>) -> Option<String> {
    let found: Vec<_> = match &verdict {
        Ok(()) => Vec::new(),
        Err(violations) => violations.iter().collect(),
    };
    let fields: BTreeSet<_> = found.iter().map(|violation| violation.path.as_str()).collect();
    let said = |(path, message): (&String, &String)| {
        found
            .iter()
            .any(|violation| violation.path == *path && violation.message.contains(message))
    };
    let agree = fields == expected.keys().map(String::as_str).collect() && expected.iter().all(said);
    (!agree).then(|| {
        format!(
            "expected {expected:#?}\nfound {}",
            verdict.err().map_or_else(String::new, |e| e.to_string())
        )
    })
}

fn none_differs(differences: impl Iterator<Item = (String, Option<String>)>) {
    let differences: Vec<_> = differences
        .filter_map(|(name, difference)| Some(format!("{name}: {}", difference?)))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[test]
fn accepted_document_becomes_a_mirror() {
    none_differs(Table::read().unwrap().accepted.iter().map(|case| {
        (
            case.name.clone(),
            difference(&case.refused, validate::created(&case.document()).map(drop)),
        )
    }));
}

#[test]
fn violation_names_field_and_correction() {
    let table = Table::read().unwrap();
    assert!(table.refused.len() >= 40);
    none_differs(table.refused.iter().map(|case| {
        (
            case.name.clone(),
            difference(&case.refused, validate::created(&case.document()).map(drop)),
        )
    }));
}

#[test]
fn change_is_validated_against_the_stored_object() {
    none_differs(Table::read().unwrap().changes.iter().map(|case| {
        let mut stored = case.stored("mirror");
        if let Some(status) = &case.status {
            stored["status"] = status.clone();
        }
        let verdict = validate::changed(&case.wanted("mirror"), &stored);
        (case.name.clone(), difference(&case.refused, verdict.map(drop)))
    }));
}

#[test]
fn other_document_is_refused_with_the_expected_kind() {
    let said = |document| validate::created(&document).unwrap_err().to_string();
    assert!(said(json!([1])).contains("a mapping with apiVersion, kind, metadata and spec"));
    let secret = said(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}));
    assert_eq!(
        secret,
        "apiVersion: must be registrymirror.io/v1alpha1\nkind: must be RegistryMirror"
    );
}

/// Validation drops a status that a document contains.
#[test]
fn status_in_document_is_dropped() {
    let mut document = Table::read().unwrap().accepted[0].document();
    document["status"] = json!({"replicas": "many"});
    assert_eq!(validate::created(&document).unwrap().status, None);
}

/// Serde and the schema fill in the same defaults.
#[test]
fn serde_and_schema_have_equal_defaults() {
    let read = |document: Value| serde_json::from_value::<RegistryMirror>(document);
    let mut compared = 0;
    for case in Table::read().unwrap().accepted {
        // The schema drops null values, and serde does not.
        let Ok(by_serde) = read(case.document()) else {
            continue;
        };
        assert_eq!(
            by_serde,
            read(validate::completed(&case.document())).unwrap(),
            "{}",
            case.name
        );
        compared += 1;
    }
    assert!(compared > 10);
}

/// A mirror that is serialized and validated again is accepted and is the same.
#[test]
fn serialized_mirror_is_accepted_unchanged() {
    for case in Table::read().unwrap().accepted {
        let mirror = validate::created(&case.document()).unwrap();
        let again = validate::created(&serde_json::to_value(&mirror).unwrap());
        assert_eq!(again.unwrap(), mirror, "{}", case.name);
    }
}

/// Returns a strategy for any JSON.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "[0-9]{0,20}[.]?[0-9]{0,9}(h|m|Gi|E|e[0-9]{1,4})?".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

#[test]
fn no_document_makes_validation_panic() {
    let accepted = Table::read().unwrap().accepted[0].document();
    let places = [
        "",
        "/metadata",
        "/metadata/name",
        "/spec",
        "/spec/upstreams",
        "/spec/upstreams/0/host",
        "/spec/storage",
        "/spec/storage/persistentVolumeClaim/size",
    ];
    proptest!(|(value in json_value(), place in prop::sample::select(places.to_vec()))| {
        let mut document = accepted.clone();
        if let Some(target) = document.pointer_mut(place) {
            *target = value;
        }
        let _ = validate::created(&document);
        let _ = validate::changed(&document, &accepted);
    });
}

/// Specs with a reference, `NAME`, to an object; each field of the API that names one.
const REFERENCES: [&str; 12] = [
    r#"{"upstreams": [{"host": "quay.io", "credentialsSecretRef": {"name": "NAME"}}]}"#,
    r#"{"upstreams": [{"host": "quay.io", "tls": {"caBundleRef": {"kind": "ConfigMap", "name": "NAME", "key": "k"}}}]}"#,
    r#"{"upstreams": [{"host": "quay.io", "tls": {"caBundleRef": {"kind": "Secret", "name": "NAME", "key": "k"}}}]}"#,
    r#"{"tls": {"mode": "Secret", "secretName": "NAME"}}"#,
    r#"{"tls": {"mode": "SelfSigned", "clientCARef": {"kind": "ConfigMap", "name": "NAME", "key": "k"}}}"#,
    r#"{"access": {"mode": "Basic", "htpasswdSecretRef": {"name": "NAME", "key": "k"}}}"#,
    r#"{"storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"existingClaim": "NAME"}}}"#,
    r#"{"storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "1Gi", "storageClassName": "NAME"}}}"#,
    r#"{"storage": {"type": "ObjectStore", "objectStore": {"s3": {"bucket": "b", "region": "r"}, "credentials": {"secretRef": {"name": "NAME"}}}}}"#,
    r#"{"storage": {"type": "ObjectStore", "objectStore": {"s3": {"bucket": "b", "region": "r"}, "credentials": {"secretRef": {"name": "s"}}, "tls": {"caBundleRef": {"kind": "Secret", "name": "NAME"}}}}}"#,
    r#"{"pod": {"imagePullSecrets": [{"name": "NAME"}]}}"#,
    r#"{"pod": {"priorityClassName": "NAME"}}"#,
];

/// No field that names an object accepts a part of a path, a query, or a name that is too long.
#[test]
fn reference_with_malformed_name_is_refused() {
    let long = "a".repeat(300);
    let names = ["../x", "?watch=true", "/", "%2e%2e", "x#y", "a b", "A", "", &long];
    for spec in REFERENCES {
        let document = |name: &str| {
            let mut all = json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}});
            let fields: Value = serde_json::from_str(&spec.replace("NAME", name)).unwrap();
            for (field, value) in fields.as_object().unwrap() {
                all[field] = value.clone();
            }
            json!({
                "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
                "metadata": {"name": "hub", "namespace": "mirrors"}, "spec": all,
            })
        };
        if let Err(error) = validate::created(&document("an.object-1")) {
            panic!("{spec}: {error}");
        }
        for name in names {
            assert!(
                validate::created(&document(name)).is_err(),
                "{spec} with {name:?}"
            );
        }
    }
}

/// Annotations that together are too long are refused, each of which would be accepted alone.
#[test]
fn long_annotations_are_refused_by_their_sum() {
    for field in ["pod", "service", "serviceAccount"] {
        let verdict = |values: &[usize]| {
            let values = values.iter().enumerate();
            let annotations: serde_json::Map<_, _> = values
                .map(|(i, length)| (format!("a{i}"), json!("x".repeat(*length))))
                .collect();
            let mut spec = json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}});
            spec[field] = json!({"annotations": annotations});
            validate::created(&json!({
                "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
                "metadata": {"name": "hub", "namespace": "mirrors"}, "spec": spec,
            }))
        };
        assert_eq!(verdict(&[]).map(drop), Ok(()), "{field}");
        assert_eq!(verdict(&[32_768, 32_768]).map(drop), Ok(()), "{field}");
        let error = verdict(&[32_768, 32_769]).unwrap_err().to_string();
        assert!(error.contains("at most 65536 characters together"), "{error}");
    }
}
