//! Many clients at several replicas.

use std::io;
use std::time::{Duration, Instant};

use super::replicas::{Kind, Replicas};
use super::{Fleet, REPLICAS};
use crate::client::{at_once, herd};
use crate::measures::watched;
use crate::report::Report;
use crate::upstream::BANDWIDTH;

const CLIENTS: usize = 96;
/// The size of the blob that all of them want.
const BLOB: usize = 16 << 20;
/// The width of the link while a replica is killed, in bytes a second.
const SLOW_LINK: u32 = 8 << 20;
/// The longest wait for the middle of a fill.
const LIMIT: Duration = Duration::from_secs(30);
const ONE_REPLICA: &str = "one replica";
const AT_ONCE: Duration = Duration::ZERO;

/// Sends herds for a blob that nothing has, and for one that only the bucket has.
pub(super) fn herds(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let replicas = fleet.start(kind, REPLICAS, "herd")?;
    for server in &replicas.servers {
        report.add(
            "fleet: memory of a replica at rest, RSS in MiB",
            kind.name(),
            server.resident_mib(),
        );
    }
    let path = match kind {
        Kind::Ours => cold_herds(fleet, &replicas, report)?,
        // Each of its clients is a download of its own: another round shows nothing new.
        Kind::Distribution => cold_herd(fleet, kind.name(), &replicas, report)?,
    };
    for server in &replicas.servers {
        let measure = "fleet: memory of a replica after the herds, RSS in MiB";
        report.add(measure, kind.name(), server.resident_mib());
    }
    drop(replicas);
    bucket_herd(fleet, kind, &path, report)
}

/// Sends herds to the replicas and to one replica in turn; returns the path of the last blob of the replicas.
fn cold_herds(fleet: &Fleet<'_>, replicas: &Replicas, report: &mut Report) -> io::Result<String> {
    let one = fleet.start(Kind::Ours, 1, "alone")?;
    let mut path = String::new();
    for _ in 0..fleet.rounds {
        cold_herd(fleet, ONE_REPLICA, &one, report)?;
        path = cold_herd(fleet, Kind::Ours.name(), replicas, report)?;
    }
    Ok(path)
}

/// Sends a herd for a new blob, and returns its path.
fn cold_herd(
    fleet: &Fleet<'_>,
    name: &'static str,
    replicas: &Replicas,
    report: &mut Report,
) -> io::Result<String> {
    let path = fleet.fresh(BLOB);
    fleet.bucket.relay.take_settled();
    fleet.upstream.take_counts();
    let started = Instant::now();
    let paths = std::slice::from_ref(&path);
    let (pulled, peak) = watched(&replicas.servers[0], || {
        herd(&replicas.targets(), paths, CLIENTS, AT_ONCE)
    });
    pulled?;
    let wall = started.elapsed().as_secs_f64() * 1e3;
    let counts = fleet.upstream.take_counts();
    replicas.until_uploaded()?;
    let bucket = fleet.bucket.relay.take_settled();
    for (what, value) in [
        ("wall ms", wall),
        ("bucket requests", bucket.total().into()),
        ("upstream GETs", counts.blob_gets as f64),
        ("upstream HEADs", counts.blob_heads as f64),
        ("anonymous MiB of a replica at most", peak),
    ] {
        report.add(
            &format!("fleet: herd of {CLIENTS} over {REPLICAS} replicas, cold, {what}"),
            name,
            value,
        );
    }
    Ok(path)
}

/// Sends a herd for a blob of the bucket to replicas with empty local tiers.
fn bucket_herd(fleet: &Fleet<'_>, kind: Kind, path: &str, report: &mut Report) -> io::Result<()> {
    let replicas = fleet.start(kind, REPLICAS, "herd")?;
    // The first use of a bucket costs requests of its own.
    replicas.warm(fleet.content)?;
    replicas.until_uploaded()?;
    fleet.bucket.relay.take_settled();
    fleet.upstream.take_counts();
    let started = Instant::now();
    herd(&replicas.targets(), &[path.to_owned()], CLIENTS, AT_ONCE)?;
    let wall = started.elapsed().as_secs_f64() * 1e3;
    let upstream = fleet.upstream.take_counts();
    let bucket = fleet.bucket.relay.take_settled();
    for (what, value) in [
        ("wall ms", wall),
        ("bucket GETs", bucket.gets.into()),
        ("bucket HEADs and LISTs", f64::from(bucket.heads + bucket.lists)),
        (
            "upstream requests",
            (upstream.blob_gets + upstream.blob_heads) as f64,
        ),
    ] {
        report.add(
            &format!("fleet: herd of {CLIENTS} over {REPLICAS} replicas, in the bucket, {what}"),
            kind.name(),
            value,
        );
    }
    Ok(())
}

/// Kills the replica that fills a blob in the middle of it, with `kill -9`, while all clients wait at the others.
pub(super) fn killed_replica(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let mut replicas = fleet.start(kind, REPLICAS, "killed")?;
    let path = fleet.fresh(BLOB);
    fleet.upstream.take_counts();
    fleet.upstream.widen(SLOW_LINK);
    let counted = killed(fleet, kind, &mut replicas, &path);
    fleet.upstream.widen(BANDWIDTH);
    let (failed, bytes) = counted?;
    let measure = format!("fleet: filling replica killed, {CLIENTS} pulls on the others");
    report.add(&format!("{measure}, failed"), kind.name(), failed as f64);
    report.add(
        &format!("{measure}, upstream bytes per byte"),
        kind.name(),
        bytes as f64 / BLOB as f64,
    );
    Ok(())
}

/// Returns the number of failed pulls and of bytes from the registry.
fn killed(fleet: &Fleet<'_>, kind: Kind, replicas: &mut Replicas, path: &str) -> io::Result<(usize, u64)> {
    let first = replicas.servers[0].target.clone();
    let filling = filling(kind, replicas, || {
        let path = path.to_owned();
        std::thread::spawn(move || first.connect()?.get(&path));
    })?;
    let mut victim = replicas.servers.remove(filling);
    let others = replicas.targets();
    let pulls = std::thread::scope(|scope| {
        let pulls = scope.spawn(|| {
            at_once(CLIENTS, |number| {
                let target = &others[number % others.len()];
                target.connect()?.get_verified(path)
            })
        });
        let started = Instant::now();
        while fleet.upstream.blob_bytes() < BLOB as u64 / 2 && started.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
        let killed = victim.kill();
        fleet.upstream.widen(BANDWIDTH);
        killed.map(|()| pulls.join().unwrap())
    })?;
    let failed = pulls.iter().filter(|pull| pull.is_err()).count();
    Ok((failed, fleet.upstream.blob_bytes()))
}

/// Starts a pull at the first replica, and returns the replica that asks the registry for it.
fn filling(kind: Kind, replicas: &Replicas, start: impl FnOnce()) -> io::Result<usize> {
    if kind == Kind::Distribution {
        start();
        return Ok(0);
    }
    let answers = || (0..REPLICAS).map(|index| replicas.upstream_answers(index));
    let before = answers().collect::<io::Result<Vec<_>>>()?;
    start();
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        for (index, count) in answers().enumerate() {
            if count? > before[index] {
                return Ok(index);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(io::Error::other("no replica asks the registry"))
}
