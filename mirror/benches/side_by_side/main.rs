//! Measures this server beside its peers, in one run on one machine: `make bench`, `make bench-quick`.
//!
//! All servers run at once and are asked in turn, round after round, so that what else the machine does hits all
//! alike. Absolute numbers move from run to run; the ratios within one run are what counts.
#![allow(
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for developers: what fails ends it with a message, and no number is that large"
)]

mod client;
mod content;
mod measures;
mod report;
mod servers;
mod upstream;

use clap::Parser;

use content::Content;
use report::Report;
use servers::Server;
use upstream::Upstream;

#[derive(Parser)]
struct Arguments {
    /// Fewer and shorter rounds: below three minutes.
    #[arg(long)]
    quick: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return; // `cargo test --benches` only wants to know that it builds.
    }
    let (rounds, seconds) = if arguments.quick { (2, 0.7) } else { (7, 3.0) };
    let scratch = tempfile::tempdir().unwrap();
    let content = Content::new();
    let upstream = Upstream::start(content.clone());
    let mut report = Report::default();
    let mut servers = Server::start_all(scratch.path(), &content, &upstream, &mut report);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        measures::warm(&mut servers, &content, seconds, &mut report);
        measures::cold(&mut servers, &content, &upstream, &mut report);
    }
    measures::memory(&servers, &mut report);
    report.write(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench"));
}
