//! What is generated from the types and committed: `UPDATE=1 cargo test -p registry-mirror-crds --test generated`
//! writes it anew.

#[path = "generated/fields.rs"]
mod fields;

use crds::conditions::{ConditionType, Reason};
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
fn the_committed_definition_is_what_the_types_say() {
    up_to_date("crds/registrymirrors.yaml", &crds::definition::yaml().unwrap()).unwrap();
}

#[test]
fn every_condition_and_every_reason_is_in_the_documented_table() {
    let page = fs::read_to_string(workspace("docs/api.md")).unwrap();
    let (_, table) = page.split_once("\n## Conditions\n").expect("the chapter");
    let (table, _) = table.split_once("\n## ").expect("its end");
    let named = |name: &str| table.contains(&format!("`{name}`"));
    let kinds = ConditionType::ALL.iter().map(|kind| kind.as_str());
    let all = kinds.chain(Reason::ALL.iter().map(|reason| reason.as_str()));
    let missing: Vec<_> = all.filter(|name| !named(name)).collect();
    assert!(missing.is_empty(), "docs/api.md lacks {missing:?}");
}

#[test]
fn the_documented_fields_are_what_the_types_say() {
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
