//! Requests to the bucket and to the registry.

use std::io;
use std::time::Duration;

use super::replicas::Kind;
use super::{Fleet, REPLICAS};
use crate::client::at_once;
use crate::report::Report;

/// The requests for each path at each replica.
const HITS: u32 = 50;
/// The number of blobs that a count is divided by.
const BLOBS: u32 = 8;
const SMALL: usize = 256 << 10;
/// At most 16 MiB: one PUT.
const MEDIUM: usize = 8 << 20;
const TAG_TTL: Duration = Duration::from_secs(3);

/// Counts the requests to the bucket of hits: a blob, a manifest by tag and by digest.
pub(super) fn local_hits(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let replicas = fleet.start(kind, REPLICAS, "hits")?;
    replicas.warm(fleet.content)?;
    replicas.until_uploaded()?;
    fleet.bucket.relay.take_settled();
    for _ in 0..HITS {
        replicas.warm(fleet.content)?;
    }
    let requests = fleet.bucket.relay.take_settled().total();
    let hits = 3.0 * f64::from(HITS) * REPLICAS as f64;
    let measure = "fleet: bucket requests per hit of the local tier";
    report.add(measure, kind.name(), f64::from(requests) / hits);
    Ok(())
}

/// Counts the requests to the bucket for blobs that it has and no local tier, each by one client of each replica at once.
pub(super) fn bucket_hits(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let paths: Vec<_> = (0..BLOBS).map(|_| fleet.fresh(SMALL)).collect();
    let first = fleet.start(kind, 1, "blobs")?;
    for path in &paths {
        first.servers[0].target.connect()?.get(path)?;
    }
    first.until_uploaded()?;
    fleet.bucket.relay.take_settled();
    drop(first);
    let replicas = fleet.start(kind, REPLICAS, "blobs")?;
    // The first use of a bucket costs requests of its own.
    replicas.warm(fleet.content)?;
    replicas.until_uploaded()?;
    fleet.bucket.relay.take_settled();
    fleet.upstream.take_counts();
    let targets = replicas.targets();
    for path in &paths {
        let answers = at_once(REPLICAS, |replica| targets[replica].connect()?.get_verified(path));
        answers.into_iter().collect::<io::Result<Vec<_>>>()?;
    }
    let requests = fleet.bucket.relay.take_settled();
    for (what, count) in [
        ("GETs", requests.gets),
        ("HEADs", requests.heads),
        ("LISTs", requests.lists),
        ("writes", requests.writes),
    ] {
        let measure =
            format!("fleet: bucket {what} per hit of the bucket tier, {REPLICAS} replicas together");
        report.add(&measure, kind.name(), f64::from(count) / f64::from(BLOBS));
    }
    let upstream = fleet.upstream.take_counts();
    let gets = (upstream.blob_gets + upstream.blob_heads) as f64 / f64::from(BLOBS);
    let measure = "fleet: upstream requests per hit of the bucket tier";
    report.add(measure, kind.name(), gets);
    Ok(())
}

/// Counts the requests to the bucket for a blob that nothing has, at one replica of a repository that is in use.
pub(super) fn cold_blobs(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let replicas = fleet.start(kind, 1, "cold")?;
    replicas.warm(fleet.content)?;
    let pull = || -> io::Result<_> {
        let path = fleet.fresh(MEDIUM);
        replicas.servers[0].target.connect()?.get(&path)?;
        replicas.until_uploaded()?;
        Ok(fleet.bucket.relay.take_settled())
    };
    pull()?;
    for _ in 0..fleet.rounds {
        let requests = pull()?;
        for (what, count) in [
            ("bucket requests", requests.total()),
            ("copies in the bucket", requests.copies),
            ("bucket writes", requests.writes),
            ("bucket reads", requests.gets + requests.heads + requests.lists),
        ] {
            report.add(
                &format!("fleet: cold blob of 8 MiB, {what}"),
                kind.name(),
                count.into(),
            );
        }
    }
    Ok(())
}

/// Counts the checks of a tag at the registry once the tag is no longer fresh, by clients of each replica.
pub(super) fn tags(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let ttl = format!("tagttl: {}s", TAG_TTL.as_secs());
    let replicas = fleet.start_with(kind, REPLICAS, "tags", &ttl)?;
    replicas.warm(fleet.content)?;
    for _ in 0..fleet.rounds {
        std::thread::sleep(TAG_TTL + TAG_TTL / 4);
        fleet.upstream.take_counts();
        for server in &replicas.servers {
            server.target.connect()?.get(&server.tag())?;
        }
        let checks = fleet.upstream.take_counts().tags;
        let measure = format!("fleet: upstream checks of a tag that expired, {REPLICAS} replicas");
        report.add(&measure, kind.name(), checks as f64);
    }
    Ok(())
}
