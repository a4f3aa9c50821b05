//! Measures this server beside its peers, in one run on one machine: `make bench`, `make bench-quick`, `make bench-day`,
//! `make bench-million`, `make bench-fleet`.
//!
//! All servers run at once and are asked in turn, round after round, so that what else the machine does hits all
//! alike. Absolute numbers move from run to run; the ratios within one run are what counts.
#![allow(
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for developers: what fails ends it with a message, and no number is that large"
)]

mod aims;
mod behaviour;
mod client;
mod content;
mod day;
mod fleet;
mod listener;
mod measures;
mod million;
mod plot;
mod profile;
mod report;
mod servers;
mod upstream;

use std::io;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};

use content::Content;
use fleet::FleetPart;
use report::Report;
use servers::{Server, Site};
use upstream::Upstream;

/// The least number of first bytes of cold layers, over all rounds.
const FIRST_BYTES: usize = 40;

#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "so they come from a command line")]
struct Arguments {
    /// Fewer and shorter rounds: below three minutes.
    #[arg(long)]
    quick: bool,
    /// Only these parts, of `warm,tls,cold,herds,memory,starts,behaviour`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// The number of rounds.
    #[arg(long)]
    rounds: Option<usize>,
    /// Replay a day instead.
    #[arg(long)]
    day: bool,
    /// Record where the server's time goes instead.
    #[arg(long)]
    profile: bool,
    /// Start on this cache instead, whose index knows a million blobs.
    #[arg(long, value_name = "ROOT")]
    million: Option<PathBuf>,
    /// Measure replicas that share a bucket instead: all parts, or only these.
    #[arg(long, value_name = "PART", num_args = 0.., require_equals = true, value_delimiter = ',')]
    fleet: Option<Vec<FleetPart>>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Warm,
    Tls,
    Cold,
    Herds,
    Memory,
    Starts,
    Behaviour,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return Ok(()); // `cargo test --benches` only wants to know that it builds.
    }
    raise_file_limit();
    let scratch = tempfile::tempdir()?;
    let content = Content::new();
    let upstream = Upstream::start(&content);
    let site = Site {
        scratch: scratch.path(),
        upstream: upstream.address,
    };
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    if arguments.profile {
        return profile::record(&site, &content, &upstream, &target.join("profile"));
    }
    let directory = target.join("bench");
    let report = if arguments.day {
        day::replay(&site, &content, &upstream, Report::new(&directory, "day"))
    } else if let Some(root) = &arguments.million {
        million::measure(&site, &content, root, Report::new(&directory, "million"))
    } else if let Some(parts) = &arguments.fleet {
        let rounds = arguments.rounds.unwrap_or(if arguments.quick { 1 } else { 5 });
        fleet::measure(
            &site,
            &content,
            &upstream,
            (rounds, parts),
            Report::new(&directory, "fleet"),
        )?
    } else {
        Run::new(&arguments, &site, &content, &upstream).measure(Report::new(&directory, "tables"))?
    };
    println!("{}", report.write()?);
    report.say(&format!("written to {}", directory.display()));
    Ok(())
}

/// The measures M1 to M8.
struct Run<'a> {
    site: &'a Site<'a>,
    content: &'a Content,
    upstream: &'a Upstream,
    rounds: usize,
    seconds: f64,
    parts: Vec<Part>,
}

impl<'a> Run<'a> {
    fn new(arguments: &Arguments, site: &'a Site<'a>, content: &'a Content, upstream: &'a Upstream) -> Self {
        let (rounds, seconds) = if arguments.quick { (2, 0.8) } else { (5, 2.0) };
        let parts = match &arguments.only[..] {
            // The part with misbehaving servers takes a minute, most of which is waiting.
            [] if arguments.quick => &Part::value_variants()[..Part::Behaviour as usize],
            [] => Part::value_variants(),
            only => only,
        };
        Self {
            site,
            content,
            upstream,
            rounds: arguments.rounds.unwrap_or(rounds),
            seconds,
            parts: parts.to_vec(),
        }
    }

    /// Measures all parts, and writes the results after each round: an early end loses little.
    fn measure(&self, mut report: Report) -> io::Result<Report> {
        use Part::{Behaviour, Cold, Herds, Memory, Starts, Tls, Warm};
        let has = |any: &[Part]| any.iter().any(|part| self.parts.contains(part));
        if has(&[Warm, Tls, Cold, Herds, Memory]) {
            report.say("starting the servers");
            let servers = report.started(self.site.all(self.content));
            let secure = report.started(if has(&[Tls]) {
                self.site.secure(self.content)
            } else {
                Vec::new()
            });
            for server in servers.iter().chain(&secure) {
                report.attempt("first pulls", server.name, |_| server.warm(self.content));
            }
            for round in 1..=self.rounds {
                self.round(round, (&servers, &secure), &mut report);
                report.write()?;
            }
            if has(&[Memory]) {
                measures::memory(&servers, self.content, self.upstream, &mut report);
            }
        }
        if has(&[Starts]) {
            report.say("starts");
            for _ in 0..self.rounds {
                let servers = report.started(self.site.all(self.content));
                note_start(&servers, &mut report);
            }
        }
        if has(&[Behaviour]) {
            report.say("what each does when its registry misbehaves");
            behaviour::table(self.site, self.content, self.upstream, &mut report);
        }
        Ok(report)
    }

    fn round(&self, round: usize, (servers, secure): (&[Server], &[Server]), report: &mut Report) {
        let (content, upstream, seconds) = (self.content, self.upstream, self.seconds);
        let begins = |report: &Report, part, what: &str| {
            let asked = self.parts.contains(&part);
            if asked {
                report.say(&format!("round {round} of {}: {what}", self.rounds));
            }
            asked
        };
        if begins(report, Part::Warm, "what is cached") {
            measures::layers(servers, content, "M1 100 MiB blob", seconds, report);
            measures::small(servers, content, seconds, report);
        }
        if begins(report, Part::Tls, "the same over TLS") {
            measures::layers(secure, content, "M1 over TLS", seconds, report);
        }
        if begins(report, Part::Cold, "uncached content") {
            let first_bytes = FIRST_BYTES.div_ceil(self.rounds);
            measures::cold(servers, content, upstream, first_bytes, report);
            measures::image(servers, content, upstream, self.site.scratch, report);
        }
        if begins(report, Part::Herds, "herds") {
            // Without joining, each client is a download over the same link: a quick run has no time for that twice.
            let distribution = self.rounds > 2 || round == 1;
            measures::herds(servers, content, upstream, distribution, report);
        }
    }
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
