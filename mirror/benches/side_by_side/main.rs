//! Measures this server beside its peers, in one run on one machine: `make bench`, `make bench-quick`, `make bench-day`.
//!
//! All servers run at once and are asked in turn, round after round, so that what else the machine does hits all
//! alike. Absolute numbers move from run to run; the ratios within one run are what counts.
#![allow(
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for developers: what fails ends it with a message, and no number is that large"
)]

mod behaviour;
mod client;
mod content;
mod day;
mod measures;
mod profile;
mod report;
mod servers;
mod upstream;

use std::time::Instant;

use clap::Parser;

use content::Content;
use report::Report;
use servers::{Server, Site};
use upstream::Upstream;

#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "so they come from a command line")]
struct Arguments {
    /// Fewer and shorter rounds: below three minutes.
    #[arg(long)]
    quick: bool,
    /// Replay a day instead.
    #[arg(long)]
    day: bool,
    /// Record where the server's time goes instead.
    #[arg(long)]
    profile: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return; // `cargo test --benches` only wants to know that it builds.
    }
    raise_file_limit();
    let (rounds, seconds) = if arguments.quick { (2, 0.5) } else { (5, 3.0) };
    let scratch = tempfile::tempdir().unwrap();
    let content = Content::new();
    let upstream = Upstream::start(&content);
    let site = Site {
        scratch: scratch.path(),
        upstream: upstream.address,
    };
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    if arguments.profile {
        return profile::record(&site, &content, &upstream, &target.join("profile"));
    }
    let mut report = Report::default();
    if arguments.day {
        day::replay(&site, &content, &upstream, &mut report);
    } else {
        measure(&site, &content, &upstream, rounds, seconds, &mut report);
    }
    report.write(
        &target.join("bench"),
        if arguments.day { "day" } else { "tables" },
    );
}

fn measure(
    site: &Site<'_>,
    content: &Content,
    upstream: &Upstream,
    rounds: u32,
    seconds: f64,
    report: &mut Report,
) {
    let started = Instant::now();
    let say = |what: &str| eprintln!("{:5.0} s  {what}", started.elapsed().as_secs_f64());
    say("starting the servers");
    let (servers, secure) = (site.all(content), site.secure(content));
    note_start(&servers, report);
    servers
        .iter()
        .chain(&secure)
        .for_each(|server| server.warm(content));
    for round in 1..=rounds {
        say(&format!("round {round} of {rounds}: warm"));
        measures::layers(&servers, content, "M1 100 MiB blob", seconds, report);
        measures::small(&servers, content, seconds, report);
        say("over TLS");
        measures::layers(&secure, content, "M1 over TLS", seconds, report);
        say("cold");
        measures::cold(&servers, content, upstream, report);
        measures::image(&servers, content, upstream, site.scratch, report);
        say("herds");
        // Without joining, each client is a download over the same link: a quick run has no time for that twice.
        let distribution = rounds > 2 || round == 1;
        measures::herds(&servers, content, upstream, distribution, report);
    }
    say("memory");
    measures::memory(&servers, content, upstream, report);
    drop((servers, secure));
    say("starts");
    for _ in 0..rounds {
        note_start(&site.all(content), report);
    }
    say("behaviour");
    behaviour::table(site, content, upstream, report);
    say("done");
}

fn note_start(servers: &[Server], report: &mut Report) {
    for server in servers {
        report.add(
            "M7 start to first answer, ms",
            server.name,
            measures::ms(server.started_in),
        );
        report.add(
            "M7 idle anonymous memory, MiB",
            server.name,
            server.anonymous_mib(),
        );
    }
}

/// A thousand downloads are a thousand sockets.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}
