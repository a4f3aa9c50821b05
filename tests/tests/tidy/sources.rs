//! The repository's files, read as text.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use testbed::binaries::workspace;

/// Every text file that someone wrote.
pub(crate) fn files() -> impl Iterator<Item = PathBuf> {
    let mut files = Vec::new();
    walk(workspace(), &mut files);
    files.into_iter()
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        // Files of git and cargo, and lists of hashes.
        if [".git", "target", "Cargo.lock", "go.sum"].contains(&name) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            walk(&path, files);
        } else if fs::read(&path).is_ok_and(|bytes| std::str::from_utf8(&bytes).is_ok()) {
            files.push(path);
        }
    }
}

/// A file's text.
pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the part of a file before its unit tests.
pub(crate) fn production(text: &str) -> &str {
    ["mod tests {", "pub(super) mod tests {"]
        .iter()
        .fold(text, |text, tests| {
            let tests = format!("\n#[cfg(test)]\n{tests}");
            text.split(&tests).next().unwrap_or(text)
        })
}

/// Functions with their lines, by the layout that rustfmt gives them.
pub(crate) fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let Some(name) = function_name(line.trim_start()) else {
            continue;
        };
        let end = format!("{indent}}}");
        let length = lines[start..].iter().position(|line| {
            *line == end
                || line
                    .strip_prefix(indent)
                    .is_some_and(|line| line.starts_with(')') && line.ends_with(';'))
        });
        functions.push((name, length.map_or(1, |last| last + 1)));
    }
    functions
}

fn function_name(line: &str) -> Option<String> {
    let (before, after) = line.split_once("fn ")?;
    let is_qualifier = |word: &str| {
        matches!(word, "async" | "const" | "pub")
            || word.starts_with("pub(")
            || word == "super)"
            || word.ends_with(')')
    };
    let starts_body = !line.ends_with('}') && !line.ends_with(';');
    let named = after.split(['(', '<']).next().filter(|name| !name.is_empty());
    named
        .filter(|_| starts_body && before.split_whitespace().all(is_qualifier))
        .map(str::to_owned)
}

/// The targets of Markdown links.
pub(crate) fn links(markdown: &str) -> Vec<String> {
    let targets = markdown.split("](").skip(1);
    targets
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// A function ends at its closing brace.
#[test]
fn function_ends_at_its_brace() {
    let text = "impl A {\n    pub(super) async fn a(\n        b: u8,\n    ) -> u8 {\n        b\n    }\n\n    fn one(self) {}\n}\nfn b() {\n}\n";
    assert_eq!(functions(text), [("a".to_owned(), 5), ("b".to_owned(), 2)]);
}

/// Returns the entries of a file's `requirements![…]`.
pub(crate) fn requirements(text: &str) -> Vec<String> {
    let list = text
        .split_once("requirements![")
        .and_then(|(_, after)| after.split_once(']'));
    let names = list.map_or("", |(names, _)| names).split(',');
    names
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}
