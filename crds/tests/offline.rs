//! The table of specs, put to offline validation. The same table is put to a real API server elsewhere.

#[path = "specs/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};

use crds::validate::{self, Violations};
use serde_json::json;
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
fn what_is_accepted_becomes_a_mirror() {
    none_differs(Table::read().unwrap().accepted.iter().map(|case| {
        (
            case.name.clone(),
            difference(&case.refused, validate::created(&case.document()).map(drop)),
        )
    }));
}

#[test]
fn what_is_refused_is_refused_at_its_field_with_advice() {
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
fn changes_are_judged_against_what_is_stored() {
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
fn a_document_that_is_no_mirror_says_what_one_is() {
    let said = |document| validate::created(&document).unwrap_err().to_string();
    assert!(said(json!([1])).contains("a mapping with apiVersion, kind, metadata and spec"));
    let secret = said(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}));
    assert_eq!(
        secret,
        "apiVersion: must be registrymirror.io/v1alpha1\nkind: must be RegistryMirror"
    );
}

#[test]
fn a_status_in_a_document_is_not_the_writers() {
    let mut document = Table::read().unwrap().accepted[0].document();
    document["status"] = json!({"replicas": "many"});
    assert_eq!(validate::created(&document).unwrap().status, None);
}
