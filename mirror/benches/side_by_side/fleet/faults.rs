//! A bucket that fails: what clients wait for meanwhile.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use super::Fleet;
use super::relay::Fault;
use super::replicas::Kind;
use crate::measures::ms;
use crate::report::Report;
use crate::servers::Server;

/// The blobs that the bucket has with wrong bytes.
const BLOBS: usize = 4;
const SIZE: usize = 64 << 10;
/// A request without more bytes for this long has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pulls new blobs, and hits, while the bucket fails: the first pull may wait, and none fails.
pub(super) fn faults(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    for (what, fault) in [
        ("gone", Fault::Gone),
        ("slow by 2 s", Fault::Slow(Duration::from_secs(2))),
        ("answers 503", Fault::Unavailable),
    ] {
        let replicas = fleet.start(kind, 1, "faults")?;
        replicas.warm(fleet.content)?;
        let server = &replicas.servers[0];
        let small = server.small(fleet.content);
        // Distribution waits, or fails, each time.
        let count = if kind == Kind::Ours { 8 } else { 3 };
        let pulls = || times(server, count, || fleet.fresh(SIZE));
        let usual = median(&pulls()).unwrap_or(f64::INFINITY);
        fleet.bucket.relay.fail(Some(fault));
        let (pulled, hits) = (pulls(), times(server, count, || small.clone()));
        fleet.bucket.relay.fail(None);
        let measure = format!("fleet: bucket {what}");
        let mut add = |what: &str, value| report.add(&format!("{measure}, {what}"), kind.name(), value);
        add("cold pulls that failed, %", failed(&pulled));
        add("hits that failed, %", failed(&hits));
        for (what, times) in [
            ("first cold pull", &pulled[..1]),
            ("next cold pulls", &pulled[1..]),
        ] {
            if let Some(median) = median(times) {
                add(&format!("{what}, ms more"), median - usual);
            }
        }
    }
    wrong_bytes(fleet, kind, report)
}

/// Pulls blobs that the bucket has with a wrong byte.
fn wrong_bytes(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let paths: Vec<_> = (0..BLOBS).map(|_| fleet.fresh(SIZE)).collect();
    let writer = fleet.start(kind, 1, "wrong")?;
    for path in &paths {
        writer.servers[0].target.connect()?.get(path)?;
    }
    writer.until_uploaded()?;
    fleet.bucket.relay.take_settled();
    drop(writer);
    let reader = fleet.start(kind, 1, "wrong")?;
    fleet.bucket.relay.fail(Some(Fault::Wrong));
    let next = Cell::new(0);
    let pulled = times(&reader.servers[0], BLOBS, || {
        paths[next.replace(next.get() + 1)].clone()
    });
    fleet.bucket.relay.fail(None);
    let measure = "fleet: bucket with wrong bytes, pulls that failed or got them, %";
    report.add(measure, kind.name(), failed(&pulled));
    Ok(())
}

/// Returns the times of so many requests in milliseconds; infinite for a failed one.
fn times(server: &Server, count: usize, path: impl Fn() -> String) -> Vec<f64> {
    let request = |_| -> io::Result<f64> {
        let mut connection = server.target.connect_for(PATIENCE)?;
        Ok(ms(connection.get_verified(&path())?.whole))
    };
    let times = (0..count).map(request);
    times.map(|time| time.unwrap_or(f64::INFINITY)).collect()
}

fn failed(times: &[f64]) -> f64 {
    100.0 * times.iter().filter(|time| time.is_infinite()).count() as f64 / times.len() as f64
}

/// Returns the median of the requests that succeeded.
fn median(times: &[f64]) -> Option<f64> {
    let mut times: Vec<_> = times.iter().copied().filter(|time| time.is_finite()).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}
