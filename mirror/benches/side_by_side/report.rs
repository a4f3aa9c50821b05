//! Medians with their spread, as tables, JSON and a plot. What fails is noted, and the other parts continue.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::aims::{Aim, is_gain};
use crate::plot;
use crate::servers::{DISTRIBUTION_3, NGINX, OURS, Server, Started};

/// The names that ratios are relative to.
const REFERENCES: [&str; 5] = [NGINX, "direct", "one replica", "no bucket, no peers", "local hit"];

type Values = BTreeMap<&'static str, Vec<f64>>;

/// The measurements, in the order of their first round.
pub(crate) struct Report {
    started: Instant,
    directory: PathBuf,
    name: &'static str,
    measures: Vec<(String, Values)>,
    behaviours: Vec<(String, BTreeMap<&'static str, String>)>,
    failures: Vec<(String, usize)>,
}

impl Report {
    /// One that is written under this name into this directory.
    pub(crate) fn new(directory: &Path, name: &'static str) -> Self {
        Self {
            started: Instant::now(),
            directory: directory.to_owned(),
            name,
            measures: Vec::new(),
            behaviours: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Prints the current part.
    pub(crate) fn say(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        eprintln!("{:3}:{:02}  {what}", seconds / 60, seconds % 60);
    }

    /// One more value of a measure.
    pub(crate) fn add(&mut self, measure: &str, server: &'static str, value: f64) {
        let values: &mut Values = named(&mut self.measures, measure);
        let values = values.entry(server).or_default();
        values.insert(values.partition_point(|other| *other <= value), value);
    }

    /// Returns the median of a measure of one server divided by that of another.
    pub(crate) fn times_of(&self, measure: &str, one: &str, other: &str) -> Option<f64> {
        let (_, servers) = self.measures.iter().find(|(name, _)| name == measure)?;
        Some(median(servers.get(one)?) / median(servers.get(other)?))
    }

    /// Adds a server's behaviour in a situation.
    pub(crate) fn does(&mut self, when: &str, server: &'static str, what: String) {
        named(&mut self.behaviours, when).insert(server, what);
    }

    /// Does something with one server; where that fails, it is noted and the other servers continue.
    pub(crate) fn attempt(
        &mut self,
        what: &str,
        server: &str,
        work: impl FnOnce(&mut Self) -> io::Result<()>,
    ) {
        if let Err(error) = work(self) {
            self.failed(&format!("{server}: {what}: {error}"));
        }
    }

    /// The servers that did start.
    pub(crate) fn started(&mut self, all: Vec<Started>) -> Vec<Server> {
        let mut servers = Vec::new();
        for (name, started) in all {
            match started {
                Ok(server) => servers.push(server),
                Err(error) => self.failed(&format!("{name}: start: {error}")),
            }
        }
        servers
    }

    fn failed(&mut self, what: &str) {
        self.say(&format!("FAILED: {what}"));
        *named(&mut self.failures, what) += 1;
    }

    /// Notes each measure with this prefix that has an aim and no value of this server.
    pub(crate) fn note_missing(&mut self, prefix: &str) {
        for measure in Aim::measures(prefix) {
            let servers = self.measures.iter().find(|(name, _)| name == measure);
            if !servers.is_some_and(|(_, servers)| servers.contains_key(OURS)) {
                self.failed(&format!("{OURS}: {measure}: no value"));
            }
        }
    }

    /// Writes all that there is by now: tables, values and a plot. Returns the tables.
    pub(crate) fn write(&self) -> io::Result<String> {
        let path = |extension| self.directory.join(self.name).with_extension(extension);
        let tables = [
            head(),
            self.summary(),
            self.slower(),
            self.table_of_behaviours(),
            self.table_of_failures(),
            self.tables(),
        ]
        .concat();
        fs::create_dir_all(&self.directory)?;
        fs::write(path("md"), &tables)?;
        fs::write(path("json"), serde_json::to_vec_pretty(&self.json())?)?;
        fs::write(path("svg"), plot::ratios(&self.ratios()))?;
        Ok(tables)
    }

    /// Returns a table of the measures that have an aim.
    fn summary(&self) -> String {
        let mut text = String::new();
        for (measure, servers) in &self.measures {
            let (Some(aim), Some(ours)) = (Aim::for_measure(measure), servers.get(OURS)) else {
                continue;
            };
            let (ours, reference) = (median(ours), reference(servers));
            let theirs = servers.get(DISTRIBUTION_3).map(|theirs| short(median(theirs)));
            let (of_reference, ratio) = reference.map_or_else(Default::default, |(name, median)| {
                (format!("{} ({name})", short(median)), ratio(ours, median))
            });
            let _ = writeln!(
                text,
                "| {measure} | {} | {} | {of_reference} | {ratio} | {aim} | {} |",
                short(ours),
                theirs.unwrap_or_default(),
                verdict(servers, aim).unwrap_or_default()
            );
        }
        if !text.is_empty() {
            text.insert_str(
                0,
                "\n| median | registry-mirror | Distribution 3 | reference | ratio | aim | result |\n|---|---|---|---|---|---|---|\n",
            );
        }
        text
    }

    /// Returns the measures in which another server is better.
    fn slower(&self) -> String {
        let mut text = String::new();
        for (measure, servers) in &self.measures {
            let Some(ours) = servers.get(OURS).map(|ours| median(ours)) else {
                continue;
            };
            let better = |theirs: f64| {
                if is_gain(measure) {
                    theirs > ours
                } else {
                    theirs < ours
                }
            };
            let better: Vec<_> = servers
                .iter()
                .filter(|(_, theirs)| better(median(theirs)))
                .map(|(name, theirs)| format!("{name} {}", short(median(theirs))))
                .collect();
            if !better.is_empty() {
                let _ = writeln!(
                    text,
                    "- {measure}: {}, against {}",
                    short(ours),
                    better.join(", ")
                );
            }
        }
        if !text.is_empty() {
            text.insert_str(0, "\nWhere registry-mirror's median is worse than another's:\n\n");
        }
        text
    }

    fn tables(&self) -> String {
        let is_one = |(_, servers): &&(String, Values)| servers.values().all(|values| values.len() == 1);
        let (once, often): (Vec<_>, Vec<_>) = self.measures.iter().partition(is_one);
        let mut text = table_of_single_values(&once);
        for (measure, servers) in often {
            let _ = writeln!(
                text,
                "\n| {measure} | median | min | max | values | ratio |\n|---|---|---|---|---|---|"
            );
            for (server, values) in servers {
                let ratio = reference(servers)
                    .map_or(String::new(), |(_, reference)| ratio(median(values), reference));
                let (least, most) = (values[0], values[values.len() - 1]);
                let _ = writeln!(
                    text,
                    "| {server} | {} | {} | {} | {} | {ratio} |",
                    short(median(values)),
                    short(least),
                    short(most),
                    values.len()
                );
            }
        }
        text
    }

    fn table_of_behaviours(&self) -> String {
        let mut text = String::new();
        let servers: BTreeSet<_> = self.behaviours.iter().flat_map(|(_, does)| does.keys()).collect();
        if servers.is_empty() {
            return text;
        }
        let names: Vec<_> = servers.iter().map(|name| **name).collect();
        let line = "---|".repeat(servers.len());
        let _ = writeln!(text, "\n| M8 | {} |\n|---|{line}", names.join(" | "));
        for (when, does) in &self.behaviours {
            let does: Vec<_> = servers
                .iter()
                .map(|server| does.get(*server).map_or("", String::as_str))
                .collect();
            let _ = writeln!(text, "| {when} | {} |", does.join(" | "));
        }
        text
    }

    fn table_of_failures(&self) -> String {
        let mut text = String::new();
        for (what, times) in &self.failures {
            let _ = writeln!(text, "- {what} ({times}×)");
        }
        if !text.is_empty() {
            text.insert_str(0, "\nWhat failed, and is left out:\n\n");
        }
        text
    }

    fn json(&self) -> Value {
        let measures = self
            .measures
            .iter()
            .map(|(measure, values)| (measure.clone(), json!(values)));
        let behaviours = self
            .behaviours
            .iter()
            .map(|(when, does)| (when.clone(), json!(does)));
        let failures = ("failures".to_owned(), json!(self.failures));
        let aims = self.measures.iter().filter_map(|(measure, servers)| {
            let aim = Aim::for_measure(measure)?;
            Some((
                measure.clone(),
                json!({"aim": aim.to_string(), "result": verdict(servers, aim)?.trim_matches('*')}),
            ))
        });
        let aims = ("aims".to_owned(), Value::Object(aims.collect()));
        Value::Object(
            measures
                .chain(behaviours)
                .chain([failures, aims])
                .collect::<Map<_, _>>(),
        )
    }

    /// Ours against the ideal.
    fn ratios(&self) -> Vec<(&str, f64)> {
        self.measures
            .iter()
            .filter_map(|(measure, servers)| {
                let (_, reference) = reference(servers)?;
                Some((measure.as_str(), median(servers.get(OURS)?) / reference))
            })
            .collect()
    }
}

/// A line a measure, as each has but one value a server.
fn table_of_single_values(measures: &[&(String, Values)]) -> String {
    let mut text = String::new();
    let servers: BTreeSet<_> = measures
        .iter()
        .flat_map(|(_, servers)| servers.keys().copied())
        .collect();
    if servers.is_empty() {
        return text;
    }
    let names: Vec<_> = servers.iter().copied().collect();
    let line = "---|".repeat(servers.len());
    let _ = writeln!(text, "\n| one value each | {} |\n|---|{line}", names.join(" | "));
    for (measure, values) in measures {
        let values: Vec<_> = servers
            .iter()
            .map(|server| {
                values
                    .get(server)
                    .map_or(String::new(), |values| short(values[0]))
            })
            .collect();
        let _ = writeln!(text, "| {measure} | {} |", values.join(" | "));
    }
    text
}

fn named<'a, T: Default>(all: &'a mut Vec<(String, T)>, name: &str) -> &'a mut T {
    let found = all.iter().position(|(other, _)| other == name);
    let at = found.unwrap_or_else(|| {
        all.push((name.to_owned(), T::default()));
        all.len() - 1
    });
    &mut all[at].1
}

/// Returns the time and the machine of the measurement, and the versions of the servers.
fn head() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
    };
    let today = jiff::Zoned::now().date();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    // The path of the million is left out.
    let reported = |argument: &String| argument != "--bench" && !argument.starts_with('/');
    let arguments = std::env::args().skip(1).filter(reported);
    let command: Vec<_> = std::iter::once("scripts/bench".to_owned())
        .chain(arguments)
        .collect();
    format!(
        "{today}, commit {}, Linux {}, {cores} cores, load {} at the end; `{}`.\n",
        said("git", &["rev-parse", "--short", "HEAD"]),
        said("uname", &["-r"]),
        load.split(' ').next().unwrap_or_default(),
        command.join(" ")
    )
}

/// Returns what ratios are relative to, and its median: nginx, which has no cache to keep; of content that comes from
/// elsewhere, its source; of a fleet, a server that is none.
fn reference(servers: &Values) -> Option<(&'static str, f64)> {
    let found = REFERENCES.iter().find_map(|name| servers.get_key_value(name));
    let (name, values) = found?;
    Some((*name, median(values))).filter(|(_, median)| *median > 0.0)
}

/// Returns the result of this server: `None` without a reference that the aim needs.
fn verdict(servers: &Values, aim: Aim) -> Option<&'static str> {
    let reference = reference(servers).map(|(_, median)| median);
    let is_reached = aim.is_reached(median(servers.get(OURS)?), reference)?;
    Some(if is_reached { "PASS" } else { "**FAIL**" })
}

/// Of sorted values.
fn median(values: &[f64]) -> f64 {
    values[values.len() / 2]
}

fn ratio(value: f64, ideal: f64) -> String {
    format!("{:.2}", value / ideal)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
