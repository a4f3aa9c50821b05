//! Medians with their spread, as tables, JSON and a plot.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::servers::{NGINX, OURS};

/// What was measured, in the order in which it first was.
#[derive(Default)]
pub(crate) struct Report {
    measures: Vec<(String, BTreeMap<&'static str, Vec<f64>>)>,
    behaviours: Vec<(String, BTreeMap<&'static str, String>)>,
}

impl Report {
    /// One more value of a measure.
    pub(crate) fn add(&mut self, measure: &str, server: &'static str, value: f64) {
        named(&mut self.measures, measure)
            .entry(server)
            .or_default()
            .push(value);
    }

    /// What a server does.
    pub(crate) fn does(&mut self, when: &str, server: &'static str, what: String) {
        named(&mut self.behaviours, when).insert(server, what);
    }

    /// Prints the tables and writes them under this name, with all values and a plot, into this directory.
    pub(crate) fn write(mut self, directory: &Path, name: &str) {
        for values in self
            .measures
            .iter_mut()
            .flat_map(|(_, servers)| servers.values_mut())
        {
            values.sort_by(f64::total_cmp);
        }
        let tables = format!("{}\n{}{}", head(), self.tables(), self.table_of_behaviours());
        println!("{tables}");
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(format!("{name}.md")), tables).unwrap();
        fs::write(
            directory.join(format!("{name}.json")),
            serde_json::to_vec_pretty(&self.json()).unwrap(),
        )
        .unwrap();
        fs::write(directory.join(format!("{name}.svg")), self.plot()).unwrap();
    }

    fn tables(&self) -> String {
        let mut text = String::new();
        for (measure, servers) in &self.measures {
            let _ = writeln!(
                text,
                "\n| {measure} | median | min | max | ratio |\n|---|---|---|---|---|"
            );
            for (server, values) in servers {
                let ratio =
                    ideal(servers).map_or(String::new(), |ideal| format!("{:.2}", median(values) / ideal));
                let (least, most) = (values[0], values[values.len() - 1]);
                let _ = writeln!(
                    text,
                    "| {server} | {} | {} | {} | {ratio} |",
                    short(median(values)),
                    short(least),
                    short(most)
                );
            }
        }
        text
    }

    fn table_of_behaviours(&self) -> String {
        let mut text = String::new();
        let Some((_, first)) = self.behaviours.first() else {
            return text;
        };
        let servers: Vec<_> = first.keys().copied().collect();
        let _ = writeln!(
            text,
            "\n| M8 | {} |\n|---|{}",
            servers.join(" | "),
            "---|".repeat(servers.len())
        );
        for (when, does) in &self.behaviours {
            let does: Vec<_> = servers
                .iter()
                .filter_map(|server| does.get(server))
                .cloned()
                .collect();
            let _ = writeln!(text, "| {when} | {} |", does.join(" | "));
        }
        text
    }

    fn json(&self) -> Value {
        let measures = self
            .measures
            .iter()
            .map(|(measure, servers)| (measure.clone(), json!(servers)));
        let behaviours = self
            .behaviours
            .iter()
            .map(|(when, servers)| (when.clone(), json!(servers)));
        Value::Object(measures.chain(behaviours).collect::<Map<_, _>>())
    }

    /// Ours against the ideal, a bar a measure; the line is where they are equal.
    fn plot(&self) -> String {
        const ROW: usize = 22;
        const UNIT: f64 = 160.0;
        let mut bars = String::new();
        let mut rows = 0;
        for (measure, servers) in &self.measures {
            let (Some(ideal), Some(ours)) = (ideal(servers), servers.get(OURS)) else {
                continue;
            };
            let (y, ratio) = (rows * ROW, median(ours) / ideal);
            let width = (ratio * UNIT).clamp(1.0, 480.0);
            let _ = writeln!(
                bars,
                r##"<text x="5" y="{}">{measure}</text><rect x="420" y="{}" width="{width:.0}" height="14" fill="#4a7"/><text x="{:.0}" y="{}">{ratio:.2}</text>"##,
                y + 15,
                y + 4,
                425.0 + width,
                y + 15
            );
            rows += 1;
        }
        let height = rows * ROW + 5;
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>{bars}<line x1="580" x2="580" y1="0" y2="{height}" stroke="#c33"/></svg>"##
        )
    }
}

fn named<'a, T: Default>(all: &'a mut Vec<(String, T)>, name: &str) -> &'a mut T {
    let found = all.iter().position(|(other, _)| other == name);
    let at = found.unwrap_or_else(|| {
        all.push((name.to_owned(), T::default()));
        all.len() - 1
    });
    &mut all[at].1
}

/// When and where this was measured, and of what.
fn head() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
    };
    let today = jiff::Zoned::now().date();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let command: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    format!(
        "{today}, commit {}, Linux {}, {cores} cores; `cargo bench -p mirror --bench side_by_side -- {}`.",
        said("git", &["rev-parse", "--short", "HEAD"]),
        said("uname", &["-r"]),
        command.join(" ")
    )
}

/// The median that ratios are against: nginx's, which has no cache to keep; of what goes upstream, no mirror at all.
fn ideal(servers: &BTreeMap<&'static str, Vec<f64>>) -> Option<f64> {
    servers
        .get(NGINX)
        .or_else(|| servers.get("direct"))
        .map(|values| median(values))
        .filter(|ideal| *ideal > 0.0)
}

/// Of sorted values.
fn median(values: &[f64]) -> f64 {
    values[values.len() / 2]
}

fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
