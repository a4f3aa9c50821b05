//! Figures as they come, and as a table in the end.

use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::binaries::workspace;

/// The measurements with a number of mirrors, with or without a kube-controller-manager.
pub(crate) struct Figures {
    mirrors: usize,
    controllers: bool,
    started: Instant,
    rows: Vec<(String, String)>,
}

impl Figures {
    pub(crate) fn new(mirrors: usize, controllers: bool) -> Self {
        Self {
            mirrors,
            controllers,
            started: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// Tells one, and when it came.
    pub(crate) fn say(&mut self, what: &str, value: String) {
        let seconds = self.started.elapsed().as_secs();
        println!("{:3}:{:02}  {what}: {value}", seconds / 60, seconds % 60);
        self.rows.push((what.to_owned(), value));
    }

    /// Writes the table to `target/bench/operator-N.md`, or `operator-N-controllers.md`, as scripts/bench-docs expects it.
    pub(crate) fn write(&self) {
        let commit = Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .output();
        let commit = commit.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        let program = std::env::var("OPERATOR_UNDER_TEST").unwrap_or_else(|_| "target/debug".to_owned());
        let profile = if program.contains("release") {
            "a release"
        } else {
            "a development build"
        };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let mut text = format!(
            "{}, commit {}, {profile}, {cores} cores, load {} at the end; {} s in all.\n\n| {} mirrors | |\n|---|---|\n",
            k8s_openapi::jiff::Zoned::now().date(),
            commit.trim(),
            load.split(' ').next().unwrap_or_default(),
            self.started.elapsed().as_secs(),
            self.mirrors,
        );
        for (what, value) in &self.rows {
            let _ = writeln!(text, "| {what} | {value} |");
        }
        let directory = workspace().join("target/bench");
        fs::create_dir_all(&directory).unwrap();
        let suffix = if self.controllers { "-controllers" } else { "" };
        let file = format!("operator-{}{suffix}.md", self.mirrors);
        fs::write(directory.join(file), text).unwrap();
    }
}

/// Seconds of CPU that a process has used so far.
pub(crate) fn cpu_of(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
    // By the kernel's ABI there are 100 of them in a second.
    Duration::from_millis(ticks * 10).as_secs_f64()
}
