//! Throughput: of the local tier, of the bucket, of a peer.

use std::fs::{self, File};
use std::io;

use super::replicas::{Kind, Replicas};
use super::{FRESH, Fleet};
use crate::client::{Target, Took, load};
use crate::content::LAYER;
use crate::measures::{GIB, ms};
use crate::report::Report;

/// This server without a bucket and without peers.
const PLAIN: &str = "no bucket, no peers";
const DIRECT: &str = "direct";
const LOCAL_HIT: &str = "local hit";
/// A client that writes and hashes the bytes as a server does, and sends them no further: a server that verifies and keeps
/// what it sends is no faster.
const VERIFIED_COPY: &str = "a verified copy";
const CONNECTIONS: [usize; 2] = [1, 8];
/// The length of a measurement of hits, in seconds.
const SECONDS: f64 = 0.25;
/// The number of measurements in a round: a difference of 2 % needs many.
const TIMES: usize = 6;
/// The most layers that are pulled until the first of two replicas owns enough of them.
const ATTEMPTS: usize = 40;

/// Measures hits of a layer with a bucket and peers, and without both, in turn.
pub(super) fn warm_layers(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let replicas = fleet.start(kind, 2, "warm")?;
    let plain = match kind {
        Kind::Ours => Some(kind.start(fleet.site, 1, "", FRESH)?),
        Kind::Distribution => None,
    };
    let servers = |replicas: &Replicas, name| (replicas.servers[0].target.clone(), name);
    let all: Vec<_> = plain
        .iter()
        .map(|plain| servers(plain, PLAIN))
        .chain([servers(&replicas, kind.name())])
        .collect();
    let path = replicas.servers[0].layer(fleet.content);
    for (target, _) in &all {
        target.connect()?.get(&path)?;
    }
    replicas.until_uploaded()?;
    fleet.bucket.relay.take_settled();
    for round in 0..TIMES * fleet.rounds {
        for connections in CONNECTIONS {
            let measure = format!("fleet: warm 100 MiB blob, {connections} connections, GiB/s");
            // The order changes: the first one of a round has colder caches of the processor.
            let turns = 0..all.len();
            for (target, name) in turns.map(|turn| &all[(turn + round) % all.len()]) {
                report.add(&measure, name, throughput(target, &path, connections)?);
            }
        }
    }
    Ok(())
}

fn throughput(target: &Target, path: &str, connections: usize) -> io::Result<f64> {
    let started = std::time::Instant::now();
    let took = load(target, path, connections, SECONDS)?;
    let bytes: u64 = took.iter().map(|took| took.bytes).sum();
    Ok(bytes as f64 / GIB / started.elapsed().as_secs_f64())
}

fn rate(took: &Took) -> f64 {
    took.bytes as f64 / GIB / took.whole.as_secs_f64()
}

/// Reads a blob as fast as the machine can verify and keep it.
fn verified_copy(fleet: &Fleet<'_>, target: &Target, path: &str, digest: &str) -> io::Result<Took> {
    let file = fleet.site.scratch.join("copy");
    let took = target
        .connect()?
        .copy_verified(path, digest, &File::create(&file)?)?;
    fs::remove_file(file)?;
    Ok(took)
}

/// Measures layers that the bucket has and no local tier, next to the store itself. Distribution reads the objects that
/// this server wrote.
pub(super) fn bucket_layers(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let prefix = "shared/layers";
    let keys = fleet.bucket.keys(prefix, false);
    let digests: Vec<_> = (0..fleet.rounds)
        .map(|_| fleet.content.fresh_layer(LAYER))
        .collect();
    fleet.upstream.add(
        digests
            .iter()
            .map(|(digest, item)| (digest.to_string(), item.clone())),
    );
    let writer = Kind::Ours.start(fleet.site, 1, &keys, FRESH)?;
    let path = |digest: &mirror::digest::Digest| writer.servers[0].blob(digest.as_str());
    for (digest, _) in &digests {
        writer.servers[0].target.connect()?.get(&path(digest))?;
        fleet.bucket.until_stored(prefix, digest.hex())?;
    }
    writer.until_uploaded()?;
    let reader = kind.start(fleet.site, 1, &keys, FRESH)?;
    fleet.upstream.take_counts();
    let measure = "fleet: 100 MiB blob of the bucket, GiB/s";
    for (digest, _) in &digests {
        if kind == Kind::Ours {
            let (store, signed) = fleet.bucket.signed(prefix, digest.hex())?;
            report.add(measure, DIRECT, rate(&store.connect()?.get(&signed)?));
            report.add(
                measure,
                VERIFIED_COPY,
                rate(&verified_copy(fleet, &store, &signed, digest.as_str())?),
            );
        }
        let took = reader.servers[0].target.connect()?.get(&path(digest))?;
        report.add(measure, kind.name(), rate(&took));
    }
    let gets = fleet.upstream.take_counts().blob_gets;
    if gets > 0 {
        return Err(io::Error::other(format!("{gets} layers came from the registry")));
    }
    let ours = Kind::Ours.name();
    for (other, what) in [
        (VERIFIED_COPY, VERIFIED_COPY),
        (Kind::Distribution.name(), "Distribution"),
    ] {
        if kind == Kind::Distribution
            && let Some(times) = report.times_of(measure, ours, other)
        {
            report.add(
                &format!("fleet: 100 MiB blob of the bucket, times {what}"),
                ours,
                times,
            );
        }
    }
    Ok(())
}

/// Measures layers of a peer, next to hits of the same layers at that peer.
pub(super) fn peer_layers(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let replicas = kind.start(fleet.site, 2, "", FRESH)?;
    let [owner, other] = [0, 1].map(|index| replicas.servers[index].target.clone());
    let measure = "fleet: 100 MiB blob of a peer, GiB/s";
    let mut left = fleet.rounds;
    for _ in 0..ATTEMPTS {
        let path = fleet.fresh(LAYER);
        let before = replicas.upstream_answers(0)?;
        owner.connect()?.get(&path)?;
        if replicas.upstream_answers(0)? <= before {
            // The other one owns it, and has it.
            continue;
        }
        let from_peer = other.connect()?.get(&path)?;
        let hit = owner.connect()?.get(&path)?;
        let copy = verified_copy(fleet, &owner, &path, &path)?;
        report.add(measure, LOCAL_HIT, rate(&hit));
        report.add(measure, VERIFIED_COPY, rate(&copy));
        report.add(measure, kind.name(), rate(&from_peer));
        let later = ms(from_peer.first_byte) - ms(hit.first_byte);
        report.add(
            "fleet: 100 MiB blob of a peer, first byte ms later",
            kind.name(),
            later,
        );
        left -= 1;
        if left == 0 {
            let times = report.times_of(measure, kind.name(), VERIFIED_COPY);
            let measure = "fleet: 100 MiB blob of a peer, times a verified copy";
            report.add(measure, kind.name(), times.unwrap_or_default());
            return Ok(());
        }
    }
    Err(io::Error::other("the first replica owns too few layers"))
}
