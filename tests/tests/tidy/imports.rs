//! The modules that a module names, found as text, so that the arguments of macros count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::sources::{production, read};

/// A line `a: b c` for each module `a` of a crate's root, `b` and `c` being those that it names.
pub(crate) fn drawing(src: &Path) -> String {
    let mut arrows = BTreeMap::new();
    walk(src, &mut Vec::new(), &mut arrows);
    let lines = arrows.into_iter().filter(|(_, to)| !to.is_empty());
    lines
        .map(|(from, to)| {
            let to: Vec<_> = to.into_iter().collect();
            [from, ": ".to_owned(), to.join(" "), "\n".to_owned()].concat()
        })
        .collect()
}

fn walk(directory: &Path, above: &mut Vec<String>, arrows: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        above.push(name);
        let from = above[0].clone();
        if path.is_dir() {
            walk(&path, above, arrows);
        } else if !["lib", "main"].contains(&from.as_str()) && path.extension().is_some_and(|e| e == "rs") {
            let text = read(&path);
            let named = names(&without_comments(production(&text)), above.len());
            let others = named.into_iter().filter(|to| *to != from).collect::<Vec<_>>();
            arrows.entry(from).or_default().extend(others);
        }
        above.pop();
    }
}

fn without_comments(text: &str) -> String {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// Returns the names at the crate's root that a file at this depth uses.
fn names(code: &str, depth: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let to_root = "super::".repeat(depth);
    for root in ["crate::", &to_root] {
        for (at, _) in code.match_indices(root) {
            let inside_a_path = code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c));
            if !inside_a_path {
                names.extend(first_names(&code[at + root.len()..]));
            }
        }
    }
    names
}

/// `a` of `a::b`; `a` and `c` of `{a::b, c::{d, e}}`.
fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return identifier(path).into_iter().collect();
    };
    let (mut depth, mut start, mut found) = (1, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || depth == 1 && character == ',' {
            found.extend(identifier(group[start..at].trim_start()));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// A module's name; types have capitals.
fn identifier(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty() && name.chars().all(|c| !c.is_uppercase()) && name != "self").then_some(name)
}

/// Imports are found in paths, in groups and through `super`.
#[test]
fn imports_are_found_in_all_forms() {
    let code = "use crate::{a::{b, c}, d,\n e::F};\ncrate::g::h();\nuse super::super::i;\nuse super::j;\nuse crate::K;";
    let found = names(code, 2);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "d", "e", "g", "i"]);
}
