//! Output for people: tables, colors, progress bars, sizes.

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::Failure;

/// The choice of `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For machines
    Json,
}

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";
/// The words of tables that have a color.
const PAINTED: &[(&str, &str)] = &[
    ("HIT", GREEN),
    ("Reachable", GREEN),
    ("MISS", YELLOW),
    ("STALE", YELLOW),
    ("RateLimited", YELLOW),
    ("Unreachable", RED),
    ("FAILED", RED),
];

impl Color {
    /// Applies the choice to all output of the process.
    pub(super) fn apply(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::AlwaysAnsi,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

/// Prints text for people to stdout, with colors if the terminal and `--color` permit it.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    Ok(write!(anstream::stdout().lock(), "{text}")?)
}

/// Prints a remark to stderr.
pub(super) fn print_note(text: &str) -> Result<(), Failure> {
    Ok(writeln!(anstream::stderr().lock(), "kubectl rmir: {text}")?)
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    Ok(writeln!(io::stdout().lock(), "{json}")?)
}

/// Returns a table with one line for each row, without borders.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for (number, line) in table.lines().enumerate() {
        let line = line.trim_end();
        if number == 0 {
            text.push_str(&bold(line));
        } else {
            text.push_str(&painted(line));
        }
        text.push('\n');
    }
    text
}

/// Returns the text in bold.
pub(super) fn bold(text: &str) -> String {
    format!("{BOLD}{text}{RESET}")
}

/// Returns the text in the color of a good or a bad result.
pub(super) fn judged(text: &str, is_good: bool) -> String {
    let color = if is_good { GREEN } else { RED };
    format!("{color}{text}{RESET}")
}

/// Adds colors to the words that have one. The padding is computed before.
fn painted(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for part in line.split_inclusive(' ') {
        let word = part.trim_end_matches(' ');
        match PAINTED.iter().find(|(painted, _)| *painted == word) {
            Some((_, color)) => {
                text.extend([*color, word, RESET, &part[word.len()..]]);
            }
            None => text.push_str(part),
        }
    }
    text
}

/// Returns a size for people.
pub(super) fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Returns a duration for people.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Returns a digest as people compare it: the algorithm and the first twelve digits.
pub(super) fn short(digest: &str) -> &str {
    let end = digest.find(':').map_or(12, |colon| colon + 13);
    digest.get(..end).unwrap_or(digest)
}

/// Progress bars on stderr, if it is a terminal.
pub(super) struct Bars(MultiProgress);

impl Bars {
    /// Creates an empty set. Without a terminal, or with `is_quiet`, nothing is drawn.
    pub(super) fn new(is_quiet: bool) -> Self {
        let target = if is_quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self(MultiProgress::with_draw_target(target))
    }

    /// Adds a bar for a download.
    pub(super) fn add(&self, name: &str, size: Option<u64>) -> ProgressBar {
        let bar = match size {
            Some(size) => ProgressBar::new(size),
            None => ProgressBar::no_length(),
        };
        let template = "{prefix:20} {wide_bar} {bytes:>11} / {total_bytes:11} {bytes_per_sec:>13}";
        // The template is valid: the default style is used otherwise.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.0.add(bar.with_style(style).with_prefix(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_aligned_columns_without_borders() {
        let rows = [
            vec!["sha256:1".to_owned(), "HIT".to_owned()],
            vec!["b".to_owned(), "MISS".to_owned()],
        ];
        let text = anstream::adapter::strip_str(&table(&["PART", "CACHE"], rows)).to_string();
        assert_eq!(text, "PART      CACHE\nsha256:1  HIT\nb         MISS\n");
    }

    #[test]
    fn only_whole_words_are_painted() {
        assert_eq!(
            painted("a HIT  WHITE HIT"),
            format!("a {GREEN}HIT{RESET}  WHITE {GREEN}HIT{RESET}")
        );
    }

    #[test]
    fn short_digest_has_twelve_digits() {
        assert_eq!(short("sha256:0123456789abcdef"), "sha256:0123456789ab");
        assert_eq!(short("x"), "x");
    }
}
