//! Medians with their spread, as tables, JSON and a plot.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::servers::{NGINX, OURS};

/// What was measured, in the order in which it first was.
#[derive(Default)]
pub(crate) struct Report(Vec<(String, BTreeMap<&'static str, Vec<f64>>)>);

impl Report {
    /// One more value of a measure.
    pub(crate) fn add(&mut self, measure: &str, server: &'static str, value: f64) {
        let found = self.0.iter().position(|(name, _)| name == measure);
        let at = found.unwrap_or_else(|| {
            self.0.push((measure.to_owned(), BTreeMap::new()));
            self.0.len() - 1
        });
        self.0[at].1.entry(server).or_default().push(value);
    }

    /// Prints the tables and writes them, with all values, into this directory.
    pub(crate) fn write(mut self, directory: &Path) {
        for values in self.0.iter_mut().flat_map(|(_, servers)| servers.values_mut()) {
            values.sort_by(f64::total_cmp);
        }
        let tables = self.tables();
        println!("{tables}");
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("tables.md"), tables).unwrap();
        fs::write(
            directory.join("results.json"),
            serde_json::to_vec_pretty(&self.json()).unwrap(),
        )
        .unwrap();
        fs::write(directory.join("ratios.svg"), self.plot()).unwrap();
    }

    fn tables(&self) -> String {
        let mut text = String::new();
        for (measure, servers) in &self.0 {
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

    fn json(&self) -> Value {
        let measures = self
            .0
            .iter()
            .map(|(measure, servers)| (measure.clone(), json!(servers)));
        Value::Object(measures.collect::<Map<_, _>>())
    }

    /// Ours against the ideal, a bar a measure; the line is where they are equal.
    fn plot(&self) -> String {
        const ROW: usize = 22;
        const UNIT: f64 = 160.0;
        let mut bars = String::new();
        let mut rows = 0;
        for (measure, servers) in &self.0 {
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
