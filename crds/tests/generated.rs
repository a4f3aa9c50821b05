//! The files that are generated from the types and committed: `UPDATE=1 cargo test -p registry-mirror-crds --test
//! generated` writes them.

#[path = "generated/fields.rs"]
mod fields;

use crds::conditions::{Reason, Truth, said};
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Fails where a committed file is not what would be generated now, or makes it so.
fn up_to_date(path: &str, content: &str) -> io::Result<()> {
    let path = workspace(path);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, content)?;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == content,
        "{} is not what the types say: run UPDATE=1 cargo test -p registry-mirror-crds --test generated",
        path.display()
    );
    Ok(())
}

#[test]
fn committed_crd_matches_the_types() {
    up_to_date("crds/registrymirrors.yaml", &crds::definition::yaml().unwrap()).unwrap();
}

/// A row for each condition, and a column for each status.
#[test]
fn documented_conditions_match_the_table() {
    let page = fs::read_to_string(workspace("docs/api.md")).unwrap();
    let (_, table) = page.split_once("\n## Conditions\n").expect("the chapter");
    let (table, _) = table.split_once("\n## ").expect("its end");
    let mut documented = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.trim_matches('|').split(" | ");
        let kind = cells.next().map(|name| name.trim().trim_matches('`'));
        for (truth, cell) in Truth::ALL.iter().zip(cells) {
            let names = cell.split('`').skip(1).step_by(2);
            let reasons = names.filter_map(|name| Reason::ALL.iter().find(|reason| reason.as_str() == name));
            documented.extend(reasons.map(|reason| format!("{}={truth}/{reason}", kind.unwrap_or_default())));
        }
    }
    let mut all: Vec<_> = said()
        .map(|(kind, truth, reason)| format!("{kind}={truth}/{reason}"))
        .collect();
    documented.sort();
    all.sort();
    assert_eq!(documented, all, "docs/api.md, and what is said");
}

#[test]
fn documented_fields_match_the_types() {
    let definition = serde_json::to_value(crds::crd()).unwrap();
    let tables = fields::markdown(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    let page = fs::read_to_string(workspace("docs/api.md")).unwrap();
    let (before, rest) = page
        .split_once("<!-- generated -->\n")
        .expect("a mark where the tables begin");
    let (_, after) = rest
        .split_once("<!-- /generated -->")
        .expect("a mark where they end");
    let page = format!("{before}<!-- generated -->\n{tables}<!-- /generated -->{after}");
    up_to_date("docs/api.md", &page).unwrap();
}

/// A row for each reason with an action.
#[test]
fn documented_actions_match_the_table() {
    let rows = Reason::ALL.iter().filter_map(|reason| {
        let advice = reason.advice()?;
        Some(format!("| `{reason}` | {advice} |\n"))
    });
    let table: String = rows.collect();
    let page = fs::read_to_string(workspace("docs/api.md")).unwrap();
    let (before, rest) = page.split_once("<!-- actions -->\n").expect("a mark");
    let (_, after) = rest.split_once("<!-- /actions -->").expect("its end");
    let table = format!("| Reason | Action |\n|---|---|\n{table}");
    let page = format!("{before}<!-- actions -->\n{table}<!-- /actions -->{after}");
    up_to_date("docs/api.md", &page).unwrap();
}
