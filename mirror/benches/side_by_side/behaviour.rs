//! M8: what each does when the registry behind it misbehaves.

use std::time::{Duration, Instant};

use crate::content::{Content, LAYER};
use crate::measures::ms;
use crate::report::Report;
use crate::servers::{Server, Site};
use crate::upstream::{Mode, Upstream};

/// Who has not answered by then is said to hang.
const PATIENCE: Duration = Duration::from_secs(5);

type Trouble = fn(&Server, &Content, &Upstream, &mut Report);

/// Asks each server that pulls through while its registry is in trouble; a new one for each trouble, as what was before
/// has its consequences. Tags are asked upstream each time.
pub(crate) fn table(site: &Site<'_>, content: &Content, upstream: &Upstream, report: &mut Report) {
    let troubles: [Trouble; 6] = [hangs, fails, rests, wrong_bytes, one_that_leaves, tokens];
    for trouble in troubles {
        for server in site.registries("cache: {tagttl: 0s}") {
            let cached = answer(&server, &server.tag());
            assert!(cached.starts_with("200"), "{}: {cached}", server.name);
            trouble(&server, content, upstream, report);
        }
    }
}

fn hangs(server: &Server, content: &Content, upstream: &Upstream, report: &mut Report) {
    cached_and_cold("upstream hangs", Mode::Hangs, (server, content, upstream), report);
}

fn fails(server: &Server, content: &Content, upstream: &Upstream, report: &mut Report) {
    let mode = Mode::Fails("500 Internal Server Error");
    cached_and_cold("upstream answers 500", mode, (server, content, upstream), report);
}

fn rests(server: &Server, content: &Content, upstream: &Upstream, report: &mut Report) {
    let mode = Mode::Fails("429 Too Many Requests");
    cached_and_cold("upstream answers 429", mode, (server, content, upstream), report);
}

fn cached_and_cold(
    what: &str,
    mode: Mode,
    (server, content, upstream): (&Server, &Content, &Upstream),
    report: &mut Report,
) {
    let (digest, item) = content.fresh_layer(1 << 20);
    upstream.add([(digest.to_string(), item)]);
    upstream.behave(mode);
    for (which, path) in [
        ("a cached tag", server.tag()),
        ("the same again", server.tag()),
        ("a cold blob", server.blob(digest.as_str())),
    ] {
        report.does(&format!("{what}: {which}"), server.name, answer(server, &path));
    }
    upstream.behave(Mode::Well);
}

fn tokens(server: &Server, content: &Content, upstream: &Upstream, report: &mut Report) {
    upstream.take_counts();
    for _ in 0..8 {
        let (digest, item) = content.fresh_layer(1 << 16);
        upstream.add([(digest.to_string(), item)]);
        answer(server, &server.blob(digest.as_str()));
    }
    let tokens = upstream.take_counts().tokens;
    report.does(
        "8 cold blobs after a tag: further token requests",
        server.name,
        tokens.to_string(),
    );
}

fn wrong_bytes(server: &Server, content: &Content, upstream: &Upstream, report: &mut Report) {
    let (digest, item) = content.fresh_layer(4 << 20);
    upstream.add([(digest.to_string(), item)]);
    upstream.behave(Mode::Corrupts);
    let path = server.blob(digest.as_str());
    report.does(
        "a cold blob comes with a wrong byte",
        server.name,
        answer(server, &path),
    );
    upstream.behave(Mode::Well);
    let since = Instant::now();
    while !answer(server, &path).starts_with("200") && since.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    let healed = format!(
        "{} after {:.1} s",
        answer(server, &path),
        since.elapsed().as_secs_f64()
    );
    report.does("and once upstream is well again", server.name, healed);
}

fn one_that_leaves(server: &Server, content: &Content, upstream: &Upstream, report: &mut Report) {
    let (digest, item) = content.fresh_layer(LAYER);
    upstream.add([(digest.to_string(), item)]);
    upstream.take_counts();
    let path = server.blob(digest.as_str());
    let mut leaves = server.target.connect().unwrap();
    leaves.ask(&path).and_then(|_| leaves.take(1 << 20)).unwrap();
    drop(leaves);
    answer(server, &path);
    let gets = upstream.take_counts().blob_gets;
    report.does(
        "a client leaves after 1 MiB, another comes: upstream GETs",
        server.name,
        gets.to_string(),
    );
}

/// What comes of a request, and in what time.
fn answer(server: &Server, path: &str) -> String {
    let started = Instant::now();
    let asked = server
        .target
        .connect_for(PATIENCE)
        .and_then(|mut connection| connection.get(path));
    let after = format!("after {:.0} ms", ms(started.elapsed()));
    match asked {
        Ok(_) => format!("200 {after}"),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            format!("nothing {after}")
        }
        Err(error) if error.kind() == std::io::ErrorKind::Other => {
            let status = error.to_string();
            format!("{} {after}", status.trim_start_matches("HTTP/1.1 "))
        }
        Err(_) => format!("cut {after}"),
    }
}
