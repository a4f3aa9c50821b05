//! The measures M1 to M5 and M7.

use std::time::Instant;

use crate::client::{Connection, Took, herd, load};
use crate::content::Content;
use crate::report::Report;
use crate::servers::{NGINX, Server};
use crate::upstream::Upstream;

const GIB: f64 = (1_u64 << 30) as f64;
/// Connections for what is small.
const MANY: usize = 64;

type PathOf = fn(&Server, &Content) -> String;

/// M1 to M3: everything is in the cache.
pub(crate) fn warm(servers: &mut [Server], content: &Content, seconds: f64, report: &mut Report) {
    for connections in [1, 8] {
        for server in &*servers {
            let (took, wall, cpu) = measured(server, || {
                load(server.address, &server.layer(content), connections, seconds)
            });
            let gib = took.iter().map(|took| took.bytes as f64).sum::<f64>() / GIB;
            report.add(
                &format!("M1 100 MiB blob, {connections} connections, GiB/s"),
                server.name,
                gib / wall,
            );
            report.add(
                &format!("M1 100 MiB blob, {connections} connections, CPU s/GiB"),
                server.name,
                cpu / gib,
            );
        }
    }
    let paths: [(&str, PathOf); 3] = [
        ("M2 4 KiB blob", Server::small),
        ("M3 manifest by digest", Server::manifest),
        ("M3 manifest by tag", |server, _| server.tag()),
    ];
    for (what, path) in paths {
        for server in &*servers {
            let (mut took, wall, cpu) = measured(server, || {
                load(server.address, &path(server, content), MANY, seconds)
            });
            took.sort_by_key(|took| took.whole);
            let p99 = took[took.len() * 99 / 100].whole.as_secs_f64() * 1e3;
            let requests = took.len() as f64;
            report.add(
                &format!("{what}, {MANY} connections, requests/s"),
                server.name,
                requests / wall,
            );
            report.add(&format!("{what}, {MANY} connections, p99 ms"), server.name, p99);
            report.add(
                &format!("{what}, {MANY} connections, CPU µs/request"),
                server.name,
                cpu * 1e6 / requests,
            );
        }
    }
}

/// M4 and M5: a layer that nobody has yet, alone and for many at once.
pub(crate) fn cold(servers: &mut [Server], content: &Content, upstream: &Upstream, report: &mut Report) {
    let (digest, head) = content.fresh_layer();
    upstream.add(digest.as_str(), head);
    let mut direct = Connection::open(upstream.address).unwrap();
    first_byte(
        "direct",
        &mut direct,
        &format!("/v2/library/app/blobs/{digest}"),
        report,
    );
    for server in servers.iter().filter(|server| server.name != NGINX) {
        let path = format!("/v2/library/app/blobs/{digest}");
        first_byte(
            server.name,
            &mut Connection::open(server.address).unwrap(),
            &path,
            report,
        );
    }
    for clients in [32, 256] {
        let (digest, head) = content.fresh_layer();
        upstream.add(digest.as_str(), head);
        for server in &*servers {
            let path = if server.name == NGINX {
                "/layer".to_owned()
            } else {
                format!("/v2/library/app/blobs/{digest}")
            };
            // Without joining, each client is a download over the same link: minutes that tell nothing new.
            if clients > 32 && server.name.starts_with("Distribution") {
                continue;
            }
            upstream.take_counts();
            let (mut took, wall, _) = measured(server, || herd(server.address, &path, clients));
            took.sort_by_key(|took| took.first_byte);
            let median = took[took.len() / 2].first_byte.as_secs_f64() * 1e3;
            report.add(
                &format!("M5 herd of {clients}, cold 100 MiB, wall ms"),
                server.name,
                wall * 1e3,
            );
            report.add(
                &format!("M5 herd of {clients}, first byte p50 ms"),
                server.name,
                median,
            );
            report.add(
                &format!("M5 herd of {clients}, upstream GETs"),
                server.name,
                upstream.take_counts().0 as f64,
            );
            report.add(
                &format!("M5 herd of {clients}, anonymous MiB after"),
                server.name,
                server.anonymous_mib(),
            );
        }
    }
}

/// M7: what is left in memory after all that.
pub(crate) fn memory(servers: &[Server], report: &mut Report) {
    for server in servers {
        report.add(
            "M7 anonymous memory after the load, MiB",
            server.name,
            server.anonymous_mib(),
        );
    }
}

fn first_byte(name: &'static str, connection: &mut Connection, path: &str, report: &mut Report) {
    let took = connection
        .get(path)
        .unwrap_or_else(|error| panic!("{name}{path}: {error}"));
    report.add(
        "M4 cold 100 MiB, first byte ms",
        name,
        took.first_byte.as_secs_f64() * 1e3,
    );
    report.add("M4 cold 100 MiB, whole ms", name, took.whole.as_secs_f64() * 1e3);
}

/// What it took, seconds on the wall, and seconds of the server's CPU.
fn measured(server: &Server, work: impl FnOnce() -> Vec<Took>) -> (Vec<Took>, f64, f64) {
    let (cpu, started) = (server.cpu(), Instant::now());
    let took = work();
    (took, started.elapsed().as_secs_f64(), server.cpu() - cpu)
}
