//! Replicas that share a bucket, next to Distribution 3 on the same store: what each asks the store and the registry for,
//! and what clients notice of it.

mod bucket;
mod faults;
mod herds;
mod relay;
mod replicas;
mod requests;
mod roll;
mod streams;

use std::io;

use clap::ValueEnum;

use crate::content::Content;
use crate::report::Report;
use crate::servers::{DISTRIBUTION_3, OURS, Server, Site};
use crate::upstream::Upstream;
use bucket::Bucket;
use replicas::{Kind, Replicas};

/// The replicas of a fleet.
const REPLICAS: usize = 3;
/// Tags stay fresh for longer than the bench takes.
const FRESH: &str = "tagttl: 1h";

/// A part of the bench, for one kind of server.
type Part = fn(&Fleet<'_>, Kind, &mut Report) -> io::Result<()>;

/// The parts of the bench that a developer can choose.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FleetPart {
    Requests,
    Herds,
    Faults,
    Throughput,
    Roll,
    Peers,
}

const PARTS: [(&str, FleetPart, Part); 11] = [
    (
        "hits of the local tier",
        FleetPart::Requests,
        requests::local_hits,
    ),
    (
        "hits of the bucket tier",
        FleetPart::Requests,
        requests::bucket_hits,
    ),
    ("cold blobs", FleetPart::Requests, requests::cold_blobs),
    ("tags", FleetPart::Requests, requests::tags),
    ("herds", FleetPart::Herds, herds::herds),
    ("killed replica", FleetPart::Herds, herds::killed_replica),
    ("faults of the bucket", FleetPart::Faults, faults::faults),
    ("warm layers", FleetPart::Throughput, streams::warm_layers),
    (
        "layers of the bucket",
        FleetPart::Throughput,
        streams::bucket_layers,
    ),
    ("a roll under load", FleetPart::Roll, roll::roll),
    ("layers of peers", FleetPart::Peers, streams::peer_layers),
];

impl FleetPart {
    /// Returns the servers that a part measures: Distribution has no peers.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Roll | Self::Peers => &[Kind::Ours],
            _ => &Kind::ALL,
        }
    }
}

/// The place of all measures: a registry, a bucket, and the number of rounds.
struct Fleet<'a> {
    site: &'a Site<'a>,
    content: &'a Content,
    upstream: &'a Upstream,
    bucket: Bucket,
    rounds: usize,
}

/// Measures these parts, or all if there are none; a failure is noted.
pub(crate) fn measure(
    site: &Site<'_>,
    content: &Content,
    upstream: &Upstream,
    (rounds, parts): (usize, &[FleetPart]),
    mut report: Report,
) -> io::Result<Report> {
    let fleet = Fleet {
        site,
        content,
        upstream,
        bucket: Bucket::start(site)?,
        rounds,
    };
    for (what, of, part) in PARTS {
        if !parts.is_empty() && !parts.contains(&of) {
            continue;
        }
        for kind in of.kinds() {
            report.say(&format!("{what}: {}", kind.name()));
            report.attempt(what, kind.name(), |report| part(&fleet, *kind, report));
            report.write()?;
        }
    }
    if !parts.is_empty() {
        return Ok(report);
    }
    sizes(&mut report);
    report.note_missing("fleet: ");
    Ok(report)
}

impl Fleet<'_> {
    /// Starts so many replicas with empty local tiers on a prefix of the bucket, behind the relay.
    fn start(&self, kind: Kind, count: usize, prefix: &str) -> io::Result<Replicas> {
        self.start_with(kind, count, prefix, FRESH)
    }

    fn start_with(&self, kind: Kind, count: usize, prefix: &str, cache: &str) -> io::Result<Replicas> {
        let keys = self.bucket.keys(&kind.prefix(prefix), true);
        kind.start(self.site, count, &keys, cache)
    }

    /// Makes an uncached layer, and returns its path.
    fn fresh(&self, size: usize) -> String {
        let (digest, item) = self.content.fresh_layer(size);
        self.upstream.add([(digest.to_string(), item)]);
        Server::path_of("blobs", digest.as_str())
    }
}

/// Reports the size of each program.
fn sizes(report: &mut Report) {
    let ours = std::path::PathBuf::from(env!("CARGO_BIN_EXE_mirror"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let theirs = std::env::split_paths(&path)
        .map(|directory| directory.join("registry"))
        .find(|path| path.is_file());
    for (name, program) in [(OURS, Some(ours)), (DISTRIBUTION_3, theirs)] {
        let size = program.and_then(|program| program.metadata().ok());
        if let Some(size) = size {
            let mib = size.len() as f64 / f64::from(1 << 20);
            report.add("fleet: size of the program, MiB", name, mib);
        }
    }
}
