//! Counts an operation's instructions with valgrind, which gives the same number at each run.

use std::process::{Command, exit};
use std::{env, fs};

/// An operation that takes this part of its budget, or less, has earned a lower one.
const SPARE: u64 = 2;

/// One thing that is done over and over.
pub(crate) struct Operation<P> {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&P),
}

/// All that are counted.
pub(crate) struct Counted<P: 'static> {
    pub(crate) operations: &'static [Operation<P>],
    /// Makes the inputs of the operation.
    pub(crate) make: fn() -> P,
    /// Enough for what happens only now and then to be spread.
    pub(crate) times: u64,
    /// The file of their budgets.
    pub(crate) budget: &'static str,
}

/// The operation of this name.
pub(crate) fn named<'a, P>(operations: &'a [Operation<P>], name: &str) -> &'a Operation<P> {
    let found = operations.iter().find(|operation| operation.name == name);
    found.unwrap_or_else(|| panic!("no operation is named {name}"))
}

impl<P> Counted<P> {
    /// `--count` counts all and fails where one is over its budget; `--run NAME` is what is counted; else `time` has it.
    pub(crate) fn main(&self, time: fn()) {
        let arguments: Vec<_> = env::args().skip(1).collect();
        let is = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
        if let [run, name] = &arguments[..]
            && run == "--run"
        {
            let (place, operation) = ((self.make)(), named(self.operations, name));
            (operation.run)(&place);
            counted(operation, &place, self.times);
        } else if is("--count") {
            let took = self
                .operations
                .iter()
                .map(|operation| (operation.name, instructions(operation.name, self.times)));
            exit(i32::from(!compare(took, self.budget)));
        } else if is("--bench") {
            time();
        } // Else `cargo test --benches` only wants to know that it builds.
    }
}

/// Valgrind counts what runs in here; its name is given to it.
#[inline(never)]
fn counted<P>(operation: &Operation<P>, place: &P, times: u64) {
    for _ in 0..times {
        (operation.run)(place);
    }
}

/// False where an operation takes more than its budget, or has none. With `UPDATE` the budgets are written instead.
fn compare<'a>(took: impl Iterator<Item = (&'a str, u64)>, file: &str) -> bool {
    if env::var_os("UPDATE").is_some() {
        let lines = took.map(|(name, took)| format!("{name}: {}\n", took + took / 10));
        fs::write(file, lines.collect::<String>()).unwrap();
        return true;
    }
    let budgets = fs::read_to_string(file).unwrap_or_default();
    let mut within = true;
    for (name, took) in took {
        let of_this = |line: &str| line.strip_prefix(name)?.strip_prefix(": ")?.parse::<u64>().ok();
        let budget = budgets.lines().find_map(of_this).unwrap_or(0);
        let verdict = match took {
            took if took > budget => "OVER ITS BUDGET",
            took if took < budget / SPARE => "far below: lower the budget",
            _ => "",
        };
        println!("{name}: {took} of {budget} {verdict}");
        within &= took <= budget;
    }
    within
}

fn instructions(name: &str, times: u64) -> u64 {
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*counted*counted*",
        ])
        .arg(env::current_exe().unwrap())
        .args(["--run", name])
        .output()
        .expect("valgrind runs: tests/cluster/packages count installs it");
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let collected: u64 = collected
        .and_then(|(_, number)| number.trim().parse().ok())
        .unwrap_or_else(|| panic!("valgrind counted nothing:\n{said}"));
    assert!(output.status.success() && collected > 0, "{said}");
    collected / times
}
