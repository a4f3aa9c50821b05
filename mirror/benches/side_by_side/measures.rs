//! The measures M1 to M7.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Connection, Target, Took, herd, load};
use crate::content::{Content, LAYER};
use crate::report::Report;
use crate::servers::{NGINX, OURS, Server};
use crate::upstream::{BANDWIDTH, Upstream};

pub(crate) const GIB: f64 = (1_u64 << 30) as f64;
/// Connections for what is small.
const MANY: usize = 64;
const AT_ONCE: Duration = Duration::ZERO;
/// Distribution answers what is small a hundred times slower: more of it tells nothing new.
const SLOW_PEERS_SECONDS: f64 = 1.0;
/// The size in bytes of layers whose first byte alone counts.
const COLD: usize = 4 << 20;
const DOWNLOADS: usize = 1_000;
/// Bytes a second.
const SLOW_LINK: u32 = 4 << 20;

type PathOf = fn(&Server, &Content) -> String;

/// M1: a layer of 100 MiB that is in the cache.
pub(crate) fn layers(servers: &[Server], content: &Content, what: &str, seconds: f64, report: &mut Report) {
    for connections in [1, 8] {
        let measure = format!("{what}, {connections} connections");
        for server in servers {
            report.attempt(&measure, server.name, |report| {
                let spent = measured(server, || {
                    load(&server.target, &server.layer(content), connections, seconds)
                })?;
                let gib = spent.took.iter().map(|took| took.bytes as f64).sum::<f64>() / GIB;
                report.add(&format!("{measure}, GiB/s"), server.name, gib / spent.wall);
                report.add(&format!("{measure}, CPU s/GiB"), server.name, spent.cpu / gib);
                Ok(())
            });
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
        let measure = format!("{measure}, {MANY} connections");
        for server in servers {
            let seconds = if server.is_distribution() {
                seconds.min(SLOW_PEERS_SECONDS)
            } else {
                seconds
            };
            report.attempt(&measure, server.name, |report| {
                let mut spent = measured(server, || {
                    load(&server.target, &path(server, content), MANY, seconds)
                })?;
                spent.took.sort_by_key(|took| took.whole);
                let requests = spent.took.len() as f64;
                let p99 = ms(spent.took[spent.took.len() * 99 / 100].whole);
                report.add(
                    &format!("{measure}, requests/s"),
                    server.name,
                    requests / spent.wall,
                );
                report.add(&format!("{measure}, p99 ms"), server.name, p99);
                let each = spent.cpu * 1e6 / requests;
                report.add(&format!("{measure}, CPU µs/request"), server.name, each);
                Ok(())
            });
        }
    }
}

/// M4: uncached layers, for one client, behind a registry that wants a token: a large one, and so many smaller
/// ones for their first bytes.
pub(crate) fn cold(
    servers: &[Server],
    content: &Content,
    upstream: &Upstream,
    first_bytes: usize,
    report: &mut Report,
) {
    let sizes = std::iter::once(LAYER).chain(std::iter::repeat_n(COLD, first_bytes - 1));
    for size in sizes {
        let (digest, item) = content.fresh_layer(size);
        upstream.add([(digest.to_string(), item)]);
        let path = format!("/v2/library/app/blobs/{digest}");
        for (name, target) in with_direct(servers, upstream) {
            report.attempt("M4 cold layer", name, |report| {
                let took = target.connect()?.get(&path)?;
                report.add("M4 cold layer, first byte ms", name, ms(took.first_byte));
                if size == LAYER {
                    report.add("M4 cold 100 MiB, whole ms", name, ms(took.whole));
                }
                Ok(())
            });
        }
    }
}

/// Returns the servers that pull through, and the registry itself.
fn with_direct(servers: &[Server], upstream: &Upstream) -> Vec<(&'static str, Target)> {
    let caches = servers.iter().filter(|server| server.name != NGINX);
    std::iter::once(("direct", upstream.target()))
        .chain(caches.map(|server| (server.name, server.target.clone())))
        .collect()
}

/// M5: uncached layers, for many clients. Without joining, each client is a download over the same link,
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
        let items = fresh
            .iter()
            .map(|(digest, item)| (digest.to_string(), item.clone()));
        upstream.add(items);
        let measure = format!("M5 herd of {what}");
        // nginx has one whole layer only.
        let asked = |server: &&Server| {
            (!server.is_distribution() || (distribution && what == "32"))
                && (layers == 1 || server.name != NGINX)
        };
        for server in servers.iter().filter(asked) {
            let blobs = fresh.iter().map(|(digest, _)| server.blob(digest.as_str()));
            let paths: Vec<_> = blobs.collect();
            upstream.take_counts();
            report.attempt(&measure, server.name, |report| {
                let (spent, peak) = watched(server, || {
                    measured(server, || {
                        herd(slice::from_ref(&server.target), &paths, clients, apart)
                    })
                });
                let mut spent = spent?;
                spent.took.sort_by_key(|took| took.first_byte);
                let mut add = |unit, value| report.add(&format!("{measure}, {unit}"), server.name, value);
                add("wall ms", spent.wall * 1e3);
                add(
                    "first byte p50 ms",
                    ms(spent.took[spent.took.len() / 2].first_byte),
                );
                add("upstream GETs", upstream.take_counts().blob_gets as f64);
                add("anonymous MiB at most", peak);
                Ok(())
            });
        }
    }
}

/// M6: skopeo copies an image of 105 MiB, 8 layers behind an index, not cached yet.
pub(crate) fn image(
    servers: &[Server],
    content: &Content,
    upstream: &Upstream,
    scratch: &Path,
    report: &mut Report,
) {
    let (tag, items) = content.fresh_image();
    upstream.add(items);
    for (name, target) in with_direct(servers, upstream) {
        report.attempt("M6 skopeo", name, |report| {
            upstream.take_counts();
            let image = format!("docker://{}/library/app:{tag}", target.address);
            let took = copy(&image, &scratch.join("copied"))?;
            report.add("M6 skopeo, 8 layers behind an index, ms", name, ms(took));
            let mib = upstream.take_counts().blob_bytes as f64 / f64::from(1 << 20);
            report.add("M6 skopeo, upstream MiB", name, mib);
            Ok(())
        });
    }
}

fn copy(image: &str, target: &Path) -> io::Result<Duration> {
    let started = Instant::now();
    let copied = Command::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            image,
        ])
        .arg(format!("dir:{}", target.display()))
        .stdout(Stdio::null())
        .status()?;
    let took = started.elapsed();
    std::fs::remove_dir_all(target)?;
    if copied.success() {
        Ok(took)
    } else {
        Err(io::Error::other(format!("skopeo: {copied}")))
    }
}

/// M7: the memory that all this needed, and what a thousand downloads at once need.
pub(crate) fn memory(servers: &[Server], content: &Content, upstream: &Upstream, report: &mut Report) {
    for server in servers {
        let measure = "M7 anonymous memory after the load, MiB";
        report.add(measure, server.name, server.anonymous_mib());
    }
    for server in servers
        .iter()
        .filter(|server| [OURS, NGINX].contains(&server.name))
    {
        let (fresh, item) = content.fresh_layer(LAYER);
        upstream.add([(fresh.to_string(), item)]);
        let paths = [
            ("a cached", server.layer(content)),
            ("a cold", server.blob(fresh.as_str())),
        ];
        let asked = if server.name == NGINX { &paths[..1] } else { &paths };
        for (what, path) in asked {
            let measure = format!("M7 1,000 downloads of {what} layer under way");
            report.say(&format!("{measure}: {}", server.name));
            // Slow enough for the last of them to come before the layer is whole.
            upstream.widen(SLOW_LINK);
            report.attempt(&measure, server.name, |report| {
                let peak = many_downloads(server, path)?;
                report.add(&format!("{measure}, anonymous MiB at most"), server.name, peak);
                Ok(())
            });
            upstream.widen(BANDWIDTH);
        }
    }
}

/// The most memory while a thousand clients are in the middle of a layer: they take 64 KiB each, in turn.
fn many_downloads(server: &Server, path: &str) -> io::Result<f64> {
    let begin = |_| -> io::Result<Connection> {
        let mut client = server.target.connect_slowly()?;
        client.ask(path)?;
        Ok(client)
    };
    let (done, peak) = watched(server, || -> io::Result<()> {
        let mut clients = (0..DOWNLOADS).map(begin).collect::<io::Result<Vec<_>>>()?;
        clients.iter_mut().try_for_each(|client| client.take(64 << 10))?;
        Ok(())
    });
    done.map(|()| peak)
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The durations of requests, the seconds on the wall, and the seconds of the server's CPU.
pub(crate) struct Spent {
    pub(crate) took: Vec<Took>,
    pub(crate) wall: f64,
    cpu: f64,
}

fn measured(server: &Server, work: impl FnOnce() -> io::Result<Vec<Took>>) -> io::Result<Spent> {
    let (cpu, started) = (server.cpu(), Instant::now());
    let took = work()?;
    Ok(Spent {
        took,
        wall: started.elapsed().as_secs_f64(),
        cpu: server.cpu() - cpu,
    })
}

/// Samples the server's memory; returns the maximum in MiB.
pub(crate) fn watched<T>(server: &Server, work: impl FnOnce() -> T) -> (T, f64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = server.anonymous_mib();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                peak = peak.max(server.anonymous_mib());
            }
            peak
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        (worked, watch.join().unwrap())
    })
}
