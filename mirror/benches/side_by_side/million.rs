//! A cache of a million blobs: how soon it answers, what looking through it costs, and what clients notice of that.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::load;
use crate::content::Content;
use crate::measures::ms;
use crate::report::Report;
use crate::servers::{OURS, Server, Site};

const ROUNDS: usize = 5;
const CONNECTIONS: usize = 16;
/// The seconds of each measurement of hits.
const SECONDS: f64 = 3.0;
/// The server looks through its cache once a minute; here it is made to look this often.
const EVERY: Duration = Duration::from_millis(250);
/// The time without requests: at least one maintenance interval of the server.
const ALONE: Duration = Duration::from_secs(65);

/// A change of this has the server look.
const TTLS: [&str; 2] = ["168h", "167h"];

/// Serves from this root, which `scripts/bench --million` has filled.
pub(crate) fn measure(site: &Site<'_>, content: &Content, root: &Path, mut report: Report) -> Report {
    report.attempt("a million blobs", OURS, |report| all(site, content, root, report));
    report
}

fn all(site: &Site<'_>, content: &Content, root: &Path, report: &mut Report) -> io::Result<()> {
    let small = site.ours_on(root, &cache(TTLS[0]), "/v2/")?.small(content);
    report.say("starts");
    // The first one still has to fetch the blob that the others answer with.
    drop(site.ours_on(root, &cache(TTLS[0]), &small)?);
    for _ in 0..ROUNDS {
        let server = site.ours_on(root, &cache(TTLS[0]), &small)?;
        report.add("million: start to a first hit, ms", OURS, ms(server.started_in));
    }
    let server = site.ours_on(root, &cache(TTLS[0]), &small)?;
    report.say("hits beside the first look after a start, which writes the expiry state");
    hits(&server, &small, "beside the first look", report)?;
    for round in 1..=ROUNDS {
        report.say(&format!(
            "round {round} of {ROUNDS}: hits without looks and beside them"
        ));
        hits(&server, &small, "without looks", report)?;
        beside_looks(&server, || {
            hits(&server, &small, "beside four looks a second", report)
        })?;
    }
    report.say(&format!("left alone for {} s", ALONE.as_secs()));
    let (cpu, since) = (server.cpu(), Instant::now());
    std::thread::sleep(ALONE);
    let share = 100.0 * (server.cpu() - cpu) / since.elapsed().as_secs_f64();
    report.add("million: CPU when left alone, % of a core", OURS, share);
    report.add("million: anonymous memory, MiB", OURS, server.anonymous_mib());
    Ok(())
}

fn cache(ttl: &str) -> String {
    format!("ttl: {ttl}\n  cache: {{tagttl: 1h, maxsize: 1Ti}}")
}

fn hits(server: &Server, path: &str, when: &str, report: &mut Report) -> io::Result<()> {
    let mut took = load(&server.target, path, CONNECTIONS, SECONDS)?;
    took.sort_by_key(|took| took.whole);
    let p99 = ms(took[took.len() * 99 / 100].whole);
    report.add(&format!("million: p99 of hits {when}, ms"), OURS, p99);
    Ok(())
}

/// Works while the server looks through its cache again and again.
fn beside_looks(server: &Server, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| -> io::Result<()> {
            let mut ttls = TTLS;
            while !done.load(Ordering::Relaxed) {
                server.reconfigure(ttls[0], ttls[1])?;
                ttls.reverse();
                std::thread::sleep(EVERY);
            }
            // As it was: the next ones begin with the first.
            if ttls != TTLS {
                server.reconfigure(ttls[0], ttls[1])?;
            }
            Ok(())
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        looks.join().unwrap().and(worked)
    })
}
