//! The layout's rules: which module may use which, how large things may be, what has no place in the repository.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/language.rs"]
mod language;
#[path = "tidy/sources.rs"]
mod sources;

use std::path::Path;
use std::{env, fs};

use sources::{files, production, read};
use testbed::binaries::workspace;

/// A file that has grown beyond what one reads at a time.
const FILE_LINES: usize = 400;
/// A function beyond what one keeps in mind.
const FUNCTION_LINES: usize = 60;

/// A new arrow is a decision: `make generate` draws it, and a reviewer sees it.
#[test]
fn module_imports_match_the_drawing() {
    for krate in ["mirror", "operator"] {
        let drawing = workspace().join(format!("tests/tests/tidy/{krate}.txt"));
        let found = imports::drawing(&workspace().join(krate).join("src"));
        if env::var_os("UPDATE").is_some() {
            fs::write(&drawing, &found).unwrap();
        }
        let drawn = read(&drawing);
        let is_in = |text: &str, line: &&str| text.lines().any(|other| other == *line);
        let new: Vec<_> = found.lines().filter(|line| !is_in(&drawn, line)).collect();
        let old: Vec<_> = drawn.lines().filter(|line| !is_in(&found, line)).collect();
        assert!(found == drawn, "{krate}: it is {new:#?}, and drawn as {old:#?}");
    }
}

/// The mirror does not depend on Kubernetes.
#[test]
fn mirror_does_not_depend_on_kubernetes() {
    let manifest = read(&workspace().join("mirror/Cargo.toml"));
    for dependency in ["kube", "k8s-openapi", "crds"] {
        let named = manifest
            .lines()
            .any(|line| line.starts_with(&format!("{dependency}.")));
        assert!(!named, "{dependency}");
    }
}

/// No production file is longer than the limit.
#[test]
fn production_files_are_short() {
    let long: Vec<_> = rust_files()
        .filter(|path| is_production(path))
        .map(|path| (production(&read(&path)).lines().count(), path))
        .filter(|(lines, _)| *lines > FILE_LINES)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

/// No production function is longer than the limit.
#[test]
fn production_functions_are_short() {
    let long: Vec<_> = rust_files()
        .filter(|path| is_production(path))
        .flat_map(|path| {
            let functions = sources::functions(production(&read(&path)));
            functions
                .into_iter()
                .map(move |(name, lines)| (lines, name, path.clone()))
        })
        // A table is read by its rows.
        .filter(|(lines, name, _)| *lines > FUNCTION_LINES && !name.starts_with("table_"))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

/// No file has a name without meaning.
#[test]
fn files_are_named_for_their_content() {
    for path in rust_files() {
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        assert!(
            !["mod", "util", "utils", "helpers", "common", "misc"].contains(&&*stem),
            "{}",
            path.display()
        );
    }
}

/// No file contains a note of work to do, or a path of a machine.
#[test]
fn no_todo_and_no_machine_path_is_left() {
    // In two halves, so that this file does not contain them.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("/wo", "rk/"),
        concat!("/tmp/", "wt"),
        concat!("/ro", "ot/"),
    ];
    for path in files() {
        let text = read(&path);
        for word in words {
            assert!(!text.contains(word), "{word} in {}", path.display());
        }
    }
}

/// Every relative link of the documentation resolves.
#[test]
fn documentation_links_resolve() {
    let mut broken = Vec::new();
    for path in files().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        for link in sources::links(&read(&path)) {
            let target = link.split('#').next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://");
            if !elsewhere && !path.parent().unwrap_or(Path::new("")).join(target).exists() {
                broken.push(format!("{} -> {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// docs/mirror.md is a table of promises, docs/conformance.md one of a specification's requirements, each with the test
/// that shows it.
#[test]
fn promises_name_existing_tests() {
    let sources: String = rust_files().map(|path| read(&path)).collect();
    for (document, least) in [
        ("docs/mirror.md", 100),
        ("docs/conformance.md", 35),
        ("docs/nodes.md", 8),
        ("docs/how-to/mistakes.md", 20),
    ] {
        let named = shown_by(&read(&workspace().join(document)));
        assert!(named.len() > least, "{} promises in {document}", named.len());
        let missing: Vec<_> = named
            .iter()
            .filter(|name| !sources.contains(&format!("fn {name}(")))
            .collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }
}

/// Every requirement that is checked is in the table of docs/conformance.md.
#[test]
fn checked_requirements_are_documented() {
    let named = shown_by(&read(&workspace().join("docs/conformance.md")));
    let lists = rust_files().filter(|path| path.components().any(|part| part.as_os_str() == "conformance"));
    let checked: Vec<String> = lists
        .flat_map(|path| sources::requirements(&read(&path)))
        .collect();
    assert_eq!(checked.len(), named.len());
    let missing: Vec<_> = checked.iter().filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Every `make TARGET` of a workflow is a target of the Makefile.
#[test]
fn workflows_call_existing_targets() {
    let makefile = read(&workspace().join("Makefile"));
    let workflows = files().filter(|path| {
        path.parent()
            .is_some_and(|parent| parent.ends_with(".github/workflows"))
    });
    let mut called = 0;
    for path in workflows {
        let text = read(&path);
        for (_, command) in text.lines().filter_map(|line| line.split_once("make ")) {
            let target = command.split_whitespace().next().unwrap_or_default();
            let is_target = makefile
                .lines()
                .any(|line| line.starts_with(&format!("{target}: ##")));
            assert!(is_target, "{}: make {target}", path.display());
            called += 1;
        }
    }
    assert!(called > 4, "{called} calls");
}

/// The last column of a document's tables.
fn shown_by(text: &str) -> Vec<String> {
    let cell = |line: &str| Some(line.strip_suffix("` |")?.rsplit_once("| `")?.1.to_owned());
    text.lines().filter_map(cell).collect()
}

fn rust_files() -> impl Iterator<Item = std::path::PathBuf> {
    files().filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
}

fn is_production(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "src") && !path.starts_with(workspace().join("tests"))
}
