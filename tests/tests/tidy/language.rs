//! Counts how far the repository is from the language rule of CONTRIBUTING.md. The limits in `language.txt` only go
//! down: `make generate` lowers them, nothing raises them but an edit that a reviewer sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{env, fs};

use testbed::binaries::workspace;

use crate::sources::{files, production, read};
use crate::{imports, is_production, rust_files};

const LIMITS: &str = "tests/tests/tidy/language.txt";
const CRATES: [&str; 3] = ["crds", "mirror", "operator"];

/// Question words with which no doc comment begins.
const QUESTION_WORDS: [&str; 9] = [
    "What", "Who", "Whose", "Whom", "How", "When", "Where", "Which", "Whether",
];

/// Words and phrases that the rule replaces. Written in halves, so that this file does not count itself.
const RETIRED: [&str; 14] = [
    concat!("to", "ld"),
    concat!("who", "ever"),
    concat!("some", "body"),
    concat!("no", "body"),
    concat!("men", "ded"),
    concat!("a", "new"),
    concat!("loo", "ked at"),
    concat!("loo", "ks at"),
    concat!("go", "es on"),
    concat!("g", "o on"),
    concat!("hand", "ed out"),
    concat!("o", "f before"),
    concat!("taken", " over"),
    concat!("at t", "he least"),
];

/// Function names that say nothing about what the function does to which object.
const RETIRED_FUNCTIONS: [&str; 13] = [
    concat!("to", "ld"),
    "saw",
    "pursue",
    "tell",
    "note",
    "look",
    "words",
    "of",
    "meet",
    "become_of",
    "keep_up",
    "settle",
    "act",
];

/// The longest name of a test; the sentence goes into its doc comment.
const TEST_NAME: usize = 60;

#[test]
fn language_counts_only_go_down() {
    let path = workspace().join(LIMITS);
    let counts = counts();
    if env::var_os("UPDATE").is_some() {
        let limits = parse(&read(&path));
        let lowered = counts.iter().map(|(name, count)| {
            let limit = limits.get(name).unwrap_or(count);
            format!("{name} {}\n", count.min(limit))
        });
        fs::write(&path, lowered.collect::<String>()).unwrap();
    }
    let limits = parse(&read(&path));
    let names: BTreeSet<_> = counts.keys().collect();
    assert_eq!(names, limits.keys().collect(), "{LIMITS} lists other counts");
    let above: Vec<_> = counts
        .iter()
        .filter(|(name, count)| *count > &limits[*name])
        .map(|(name, count)| format!("{name}: {count}, at most {}", limits[name]))
        .collect();
    assert!(
        above.is_empty(),
        "see \"Language\" in CONTRIBUTING.md: {above:#?}"
    );
}

/// Each word of a public type's name is a term of the glossary, or a plain word of the list.
#[test]
fn public_type_names_use_known_words() {
    let glossary = read(&workspace().join("docs/glossary.md"));
    let terms: BTreeSet<String> = glossary.lines().filter_map(term).flat_map(split_words).collect();
    let list = workspace().join("tests/tests/tidy/words.txt");
    let used: BTreeSet<String> = CRATES
        .into_iter()
        .flat_map(|krate| sources_of(krate).flat_map(|text| public_types(&text)))
        .flat_map(|name| camel_words(&name))
        .filter(|word| !terms.contains(word) && !terms.contains(word.trim_end_matches('s')))
        .collect();
    if env::var_os("UPDATE").is_some() {
        let known: BTreeSet<String> = read(&list).lines().map(str::to_owned).collect();
        let kept = used.intersection(&known).map(|word| format!("{word}\n"));
        fs::write(&list, kept.collect::<String>()).unwrap();
    }
    let known: BTreeSet<String> = read(&list).lines().map(str::to_owned).collect();
    let new: Vec<_> = used.difference(&known).collect();
    assert!(
        new.is_empty(),
        "add a row to docs/glossary.md for each, or use a term of it: {new:?}"
    );
    let unused: Vec<_> = known.difference(&used).collect();
    assert!(
        unused.is_empty(),
        "no type uses these words of words.txt any more: {unused:?}"
    );
}

#[test]
fn glossary_is_sorted_without_duplicates() {
    let glossary = read(&workspace().join("docs/glossary.md"));
    let terms: Vec<_> = glossary.lines().filter_map(term).map(str::to_lowercase).collect();
    assert!(terms.len() > 60, "{} terms", terms.len());
    for pair in terms.windows(2) {
        assert!(pair[0] < pair[1], "{} comes before {}", pair[1], pair[0]);
    }
}

/// The term of a row of the glossary: the first cell, in bold.
fn term(line: &str) -> Option<&str> {
    Some(line.strip_prefix("| **")?.split_once("**")?.0)
}

fn split_words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric());
    parts
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// `["rate", "limiter"]` of `RateLimiter`.
fn camel_words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for character in name.chars() {
        if character.is_uppercase() || words.is_empty() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.extend(character.to_lowercase());
        }
    }
    words
}

fn counts() -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for krate in CRATES {
        let texts: Vec<String> = sources_of(krate).collect();
        let sum = |count: fn(&str) -> usize| texts.iter().map(|text| count(text)).sum::<usize>();
        counts.insert(format!("question-comments/{krate}"), sum(question_comments));
        counts.insert(format!("retired-functions/{krate}"), sum(retired_functions));
        counts.insert(format!("duplicate-types/{krate}"), duplicate_types(&texts));
        counts.insert(
            format!("circles/{krate}"),
            circles(&workspace().join(krate).join("src")),
        );
    }
    let tests: Vec<String> = test_code().collect();
    let sum = |count: fn(&str) -> usize| tests.iter().map(|text| count(text)).sum::<usize>();
    counts.insert("question-comments/tests".to_owned(), sum(question_comments));
    counts.insert("retired-functions/tests".to_owned(), sum(retired_functions));
    let tests: Vec<String> = rust_files().flat_map(|path| test_names(&read(&path))).collect();
    let long = tests.iter().filter(|name| name.len() > TEST_NAME).count();
    counts.insert("long-test-names".to_owned(), long);
    counts.insert("median-test-name-words".to_owned(), median(&tests));
    for (name, extension) in [("rust", "rs"), ("documents", "md"), ("chart", "yaml")] {
        let written = files().filter(|path| path.extension().is_some_and(|found| found == extension));
        let retired = written.map(|path| retired_words(&read(&path))).sum();
        counts.insert(format!("retired-words/{name}"), retired);
    }
    counts
}

fn median(names: &[String]) -> usize {
    let mut lengths: Vec<_> = names.iter().map(|name| name.split('_').count()).collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() / 2).copied().unwrap_or_default()
}

fn sources_of(krate: &str) -> impl Iterator<Item = String> {
    let source = workspace().join(krate).join("src");
    let production_files = rust_files().filter(move |path| path.starts_with(&source) && is_production(path));
    production_files.map(|path| production(&read(&path)).to_owned())
}

/// Returns the text of all Rust code outside the production crates, and of the unit tests inside them.
fn test_code() -> impl Iterator<Item = String> {
    rust_files().map(|path| {
        let text = read(&path);
        let tests = if is_production(&path) {
            production(&text).len()
        } else {
            0
        };
        text[tests..].to_owned()
    })
}

/// Doc comments whose first word is a question word.
fn question_comments(text: &str) -> usize {
    let comment = |line: &str| {
        let text = line.trim_start();
        let text = text.strip_prefix("///").or_else(|| text.strip_prefix("//!"))?;
        Some(text.trim_start().to_owned())
    };
    let mut previous_is_comment = false;
    let mut count = 0;
    for line in text.lines() {
        let found = comment(line);
        let first = found
            .as_deref()
            .and_then(|text| text.split([' ', ',', '\'']).next());
        count +=
            usize::from(!previous_is_comment && first.is_some_and(|word| QUESTION_WORDS.contains(&word)));
        previous_is_comment = found.is_some();
    }
    count
}

fn retired_functions(text: &str) -> usize {
    let named = |name: &&str| format!("fn {name}");
    RETIRED_FUNCTIONS
        .iter()
        .map(|name| {
            ["(", "<"]
                .into_iter()
                .map(|end| text.matches(&format!("{}{end}", named(name))).count())
                .sum::<usize>()
        })
        .sum()
}

fn retired_words(text: &str) -> usize {
    let plain: Vec<_> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let text = format!(" {} ", plain.join(" "));
    let occurrences = |phrase: &str| {
        let parts: Vec<_> = text.split(&format!(" {phrase} ")).collect();
        parts.len() - 1
    };
    RETIRED.into_iter().map(occurrences).sum()
}

/// The names of types that a file makes visible outside itself.
fn public_types(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with("pub"))
    {
        let words: Vec<_> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let item = words
            .iter()
            .position(|word| ["struct", "enum", "trait", "type"].contains(word));
        let name = item.and_then(|at| words.get(at + 1));
        let is_declaration = !line.contains("fn ") && !line.contains(" use ");
        // A macro names its type by a parameter.
        let name = name.filter(|name| is_declaration && !name.is_empty());
        names.extend(name.map(|name| (*name).to_owned()));
    }
    names
}

fn duplicate_types(texts: &[String]) -> usize {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for name in texts.iter().flat_map(|text| public_types(text)) {
        *found.entry(name).or_default() += 1;
    }
    found.values().filter(|count| **count > 1).count()
}

/// Pairs of modules at a crate's root that reach each other.
fn circles(src: &Path) -> usize {
    let drawing = imports::drawing(src);
    let arrows: BTreeMap<&str, Vec<&str>> = drawing
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(from, to)| (from, to.split(' ').collect()))
        .collect();
    let reached = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            for next in arrows.get(at).into_iter().flatten() {
                if seen.insert(*next) {
                    open.push(next);
                }
            }
        }
        seen.into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let all: BTreeMap<&str, BTreeSet<String>> = arrows.keys().map(|from| (*from, reached(from))).collect();
    let mutual =
        |(a, b): &(&str, &str)| a < b && all[a].contains(*b) && all.get(b).is_some_and(|to| to.contains(*a));
    let pairs = all.keys().flat_map(|a| all.keys().map(move |b| (*a, *b)));
    pairs.filter(mutual).count()
}

/// The functions below a `#[test]` or `#[tokio::test]`.
fn test_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test") || line.starts_with("#[tokio::test");
        if !is_test || line.starts_with("#[") || line.starts_with("//") {
            continue;
        }
        let name = line
            .split_once("fn ")
            .and_then(|(_, after)| after.split('(').next());
        names.extend(name.map(str::to_owned));
        is_test = name.is_none();
    }
    names
}

fn parse(limits: &str) -> BTreeMap<String, usize> {
    let line = |line: &str| {
        let (name, limit) = line.rsplit_once(' ')?;
        Some((name.to_owned(), limit.parse().ok()?))
    };
    limits.lines().filter_map(line).collect()
}

/// Each counter counts the words of its sample.
#[test]
fn counters_count_their_samples() {
    let text = concat!(
        "/// What it is.\n/// Where it goes.\npub struct RateLimiter;\n//! Returns.\n    pub(super) fn to",
        "ld(&self) {}\n"
    );
    assert_eq!(question_comments(text), 1);
    assert_eq!(retired_functions(text), 1);
    assert_eq!(public_types(text), ["RateLimiter"]);
    assert_eq!(camel_words("RateLimiter"), ["rate", "limiter"]);
    let tests =
        "#[tokio::test(flavor = \"x\")]\n#[ignore]\nasync fn a_b() {}\nfn c() {}\n#[test_case(1)]\nfn d() {}";
    assert_eq!(test_names(tests), ["a_b", "d"]);
    assert_eq!(retired_words(concat!("It is to", "ld, and goes\n on.")), 2);
}
