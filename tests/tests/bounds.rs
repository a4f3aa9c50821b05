//! The bounds of docs/security.md are those of the code.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

use std::fs;

use testbed::binaries::workspace;

/// A row of the table: the text of its bound, the constant, and the file that owns it.
struct Row {
    bound: String,
    constant: String,
    owner: String,
}

fn rows(document: &str) -> Vec<Row> {
    let section = document
        .split("\n#")
        .find(|section| section.starts_with("## Values from upstreams"));
    let lines = section.unwrap().lines().filter(|line| line.starts_with('|'));
    let cells = lines.skip(2).map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect::<Vec<_>>()
    });
    cells
        .map(|cells| Row {
            bound: cells[1].clone(),
            constant: cells[2].clone(),
            owner: cells[3].clone(),
        })
        .collect()
}

/// Returns the number in a text such as `16 KiB`, `10,000` or `24 h`, in bytes or seconds.
fn value_of_text(text: &str) -> Option<u64> {
    let mut words = text.split(' ');
    let number: u64 = words.next()?.replace(',', "").parse().ok()?;
    let unit = match words.next() {
        None | Some("bytes" | "characters" | "s") => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some("min") => 60,
        Some("h") => 3600,
        Some(_) => return None,
    };
    Some(number * unit)
}

/// Returns the number that a constant is defined by, in bytes or seconds.
fn value_of_code(expression: &str) -> Option<u64> {
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
    for (call, unit) in [("from_secs(", 1), ("from_mins(", 60), ("from_hours(", 3600)] {
        if let Some((_, argument)) = expression.split_once(call) {
            return Some(number(argument.trim_end_matches(')'))? * unit);
        }
    }
    if let Some((value, bits)) = expression.split_once("<<") {
        return Some(number(value)? << number(bits)?);
    }
    expression.split('*').map(number).product()
}

fn definition(source: &str, constant: &str) -> Option<String> {
    let line = source
        .lines()
        .find(|line| line.contains(&format!("const {constant}: ")))?;
    let (_, expression) = line.split_once(" = ")?;
    Some(expression.trim_end_matches(';').to_owned())
}

#[test]
fn bounds_in_docs_are_those_of_the_code() {
    let document = fs::read_to_string(workspace().join("docs/security.md")).unwrap();
    let rows = rows(&document);
    assert!(rows.len() > 20, "{} rows", rows.len());
    for Row {
        bound,
        constant,
        owner,
    } in rows
    {
        let source = fs::read_to_string(workspace().join(&owner));
        let source = source.unwrap_or_else(|error| panic!("{owner}: {error}"));
        let expression = definition(&source, &constant);
        let expression = expression.unwrap_or_else(|| panic!("{owner} has no constant {constant}"));
        let (documented, coded) = (value_of_text(&bound), value_of_code(&expression));
        assert!(
            documented.is_some() && documented == coded,
            "{constant} = {expression}, not {bound}"
        );
    }
}

#[test]
fn numbers_of_docs_and_code_are_read() {
    for (text, code) in [
        ("16 KiB", "16 * 1024"),
        ("4 MiB", "4 << 20"),
        ("10,000 tags", "-"),
        ("100,000", "100_000"),
        ("24 h", "Duration::from_hours(24)"),
    ] {
        let (text, code) = (value_of_text(text), value_of_code(code));
        assert_eq!(text, code);
    }
}
