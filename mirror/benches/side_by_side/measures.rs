//! The measures M1 to M7.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Took, herd, load};
use crate::content::{Content, LAYER};
use crate::report::Report;
use crate::servers::{NGINX, OURS, Server};
use crate::upstream::Upstream;

const GIB: f64 = (1_u64 << 30) as f64;
/// Connections for what is small.
const MANY: usize = 64;
/// Smaller layers that nobody has yet, each round.
const COLD: usize = 8;
const AT_ONCE: Duration = Duration::ZERO;

type PathOf = fn(&Server, &Content) -> String;

/// M1: a layer of 100 MiB that is in the cache.
pub(crate) fn layers(servers: &[Server], content: &Content, what: &str, seconds: f64, report: &mut Report) {
    for connections in [1, 8] {
        for server in servers {
            let (took, wall, cpu) = measured(server, || {
                load(&server.target, &server.layer(content), connections, seconds)
            });
            let gib = took.iter().map(|took| took.bytes as f64).sum::<f64>() / GIB;
            let mut add = |unit, value| {
                report.add(
                    &format!("{what}, {connections} connections, {unit}"),
                    server.name,
                    value,
                );
            };
            add("GiB/s", gib / wall);
            add("CPU s/GiB", cpu / gib);
        }
    }
}

/// M2 and M3: what is small, and in the cache.
pub(crate) fn small(servers: &[Server], content: &Content, seconds: f64, report: &mut Report) {
    let paths: [(&str, PathOf); 3] = [
        ("M2 4 KiB blob", Server::small),
        ("M3 manifest by digest", Server::manifest),
        ("M3 manifest by tag", |server, _| server.tag()),
    ];
    for (measure, path) in paths {
        for server in servers {
            let (mut took, wall, cpu) = measured(server, || {
                load(&server.target, &path(server, content), MANY, seconds)
            });
            took.sort_by_key(|took| took.whole);
            let requests = took.len() as f64;
            let mut add = |unit, value| {
                report.add(
                    &format!("{measure}, {MANY} connections, {unit}"),
                    server.name,
                    value,
                );
            };
            add("requests/s", requests / wall);
            add("p99 ms", ms(took[took.len() * 99 / 100].whole));
            add("CPU µs/request", cpu * 1e6 / requests);
        }
    }
}

/// M4: layers that nobody has yet, for one client, behind a registry that wants a token: a large one, and several
/// smaller ones, as what comes before a first byte is soon over and so soon disturbed.
pub(crate) fn cold(servers: &[Server], content: &Content, upstream: &Upstream, report: &mut Report) {
    cold_one(servers, content, upstream, LAYER, report);
    for _ in 0..COLD {
        cold_one(servers, content, upstream, LAYER / 25, report);
    }
}

fn cold_one(servers: &[Server], content: &Content, upstream: &Upstream, length: usize, report: &mut Report) {
    let (digest, item) = content.fresh_layer(length);
    upstream.add([(digest.to_string(), item)]);
    let direct = upstream.target();
    let caches = servers.iter().filter(|server| server.name != NGINX);
    let all = std::iter::once(("direct", &direct)).chain(caches.map(|server| (server.name, &server.target)));
    for (name, target) in all {
        let path = format!("/v2/library/app/blobs/{digest}");
        let took = target.connect().and_then(|mut connection| connection.get(&path));
        let took = took.unwrap_or_else(|error| panic!("{name}{path}: {error}"));
        let what = format!("M4 cold {} MiB", length >> 20);
        report.add(&format!("{what}, first byte ms"), name, ms(took.first_byte));
        report.add(&format!("{what}, whole ms"), name, ms(took.whole));
    }
}

/// M5: layers that nobody has yet, for many clients. Without joining, each client is a download over the same link,
/// which takes a while and tells nothing new with more of them: Distribution is asked but where `distribution` says so.
pub(crate) fn herds(
    servers: &[Server],
    content: &Content,
    upstream: &Upstream,
    distribution: bool,
    report: &mut Report,
) {
    let herds = [
        ("32", 1, 32, AT_ONCE),
        ("256", 1, 256, AT_ONCE),
        ("32 arriving over 640 ms", 1, 32, Duration::from_millis(20)),
        ("32 for 8 layers", 8, 32, AT_ONCE),
    ];
    for (what, layers, clients, apart) in herds {
        let fresh: Vec<_> = (0..layers).map(|_| content.fresh_layer(LAYER / layers)).collect();
        upstream.add(
            fresh
                .iter()
                .map(|(digest, item)| (digest.to_string(), item.clone())),
        );
        let asked = |server: &&Server| !server.is_distribution() || (distribution && what == "32");
        for server in servers.iter().filter(asked) {
            let paths: Vec<_> = fresh
                .iter()
                .map(|(digest, _)| server.blob(digest.as_str()))
                .collect();
            let paths: Vec<_> = paths.iter().map(String::as_str).collect();
            upstream.take_counts();
            let (mut took, wall, _) = measured(server, || herd(&server.target, &paths, clients, apart));
            took.sort_by_key(|took| took.first_byte);
            let mut add = |unit, value| report.add(&format!("M5 herd of {what}, {unit}"), server.name, value);
            // What nginx has is one whole layer.
            if layers == 1 || server.name != NGINX {
                add("wall ms", wall * 1e3);
                add("first byte p50 ms", ms(took[took.len() / 2].first_byte));
                add("upstream GETs", upstream.take_counts().blob_gets as f64);
                add("anonymous MiB after", server.anonymous_mib());
            }
        }
    }
}

/// M6: skopeo copies an image of 105 MiB, 8 layers behind an index, that nobody has yet.
pub(crate) fn image(
    servers: &[Server],
    content: &Content,
    upstream: &Upstream,
    scratch: &Path,
    report: &mut Report,
) {
    let (tag, items) = content.fresh_image();
    upstream.add(items);
    let caches = servers.iter().filter(|server| server.name != NGINX);
    let caches = caches.map(|server| (server.name, server.target.address));
    for (name, address) in std::iter::once(("direct", upstream.address)).chain(caches) {
        let target = scratch.join("copied");
        upstream.take_counts();
        let started = Instant::now();
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"])
            .arg(format!("docker://{address}/library/app:{tag}"))
            .arg(format!("dir:{}", target.display()))
            .stdout(Stdio::null())
            .status();
        let took = started.elapsed();
        assert!(
            copied.is_ok_and(|status| status.success()),
            "skopeo copies from {name}"
        );
        std::fs::remove_dir_all(&target).unwrap();
        report.add("M6 skopeo, 8 layers behind an index, ms", name, ms(took));
        let mib = upstream.take_counts().blob_bytes as f64 / f64::from(1 << 20);
        report.add("M6 skopeo, upstream MiB", name, mib);
    }
}

/// M7: the memory that all this needed, and what a thousand downloads at once need.
pub(crate) fn memory(servers: &[Server], content: &Content, upstream: &Upstream, report: &mut Report) {
    for server in servers {
        report.add(
            "M7 anonymous memory after the load, MiB",
            server.name,
            server.anonymous_mib(),
        );
    }
    let (fresh, item) = content.fresh_layer(LAYER);
    upstream.add([(fresh.to_string(), item)]);
    for server in servers
        .iter()
        .filter(|server| [OURS, NGINX].contains(&server.name))
    {
        let cached = server.layer(content);
        for (what, path) in [("a cached", &cached), ("a cold", &server.blob(fresh.as_str()))] {
            if server.name == NGINX && *path == cached && what == "a cold" {
                continue;
            }
            let mut clients = Vec::new();
            for _ in 0..1_000 {
                let mut client = server.target.connect_slowly().unwrap();
                client.ask(path).unwrap();
                client.take(4096).unwrap();
                clients.push(client);
            }
            let measure = format!("M7 anonymous memory with 1,000 downloads of {what} layer under way, MiB");
            report.add(&measure, server.name, server.anonymous_mib());
        }
    }
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What it took, seconds on the wall, and seconds of the server's CPU.
fn measured(server: &Server, work: impl FnOnce() -> Vec<Took>) -> (Vec<Took>, f64, f64) {
    let (cpu, started) = (server.cpu(), Instant::now());
    let took = work();
    (took, started.elapsed().as_secs_f64(), server.cpu() - cpu)
}
