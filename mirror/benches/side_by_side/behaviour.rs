//! M8: what each does when the registry behind it misbehaves.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use crate::content::{Content, LAYER};
use crate::measures::ms;
use crate::report::Report;
use crate::servers::{Server, Site};
use crate::upstream::{Mode, Upstream};

/// The time after which a server without an answer counts as hanging.
const PATIENCE: Duration = Duration::from_secs(5);
/// Blobs of a pull.
const BLOBS: usize = 8;

/// One trouble: how upstream behaves, and what is asked then.
enum Trouble {
    /// In this way, while a tag is cached and a blob is not.
    Misbehaves(&'static str, Mode),
    WrongBytes,
    OneThatLeaves,
    Tokens,
}

const TROUBLES: [Trouble; 8] = [
    Trouble::Misbehaves("upstream hangs", Mode::Hangs),
    Trouble::Misbehaves("upstream is down", Mode::Down),
    Trouble::Misbehaves("upstream answers 500", Mode::Fails("500 Internal Server Error")),
    Trouble::Misbehaves("upstream answers 429", Mode::Fails("429 Too Many Requests")),
    Trouble::Misbehaves("upstream answers 401", Mode::Fails("401 Unauthorized")),
    Trouble::WrongBytes,
    Trouble::OneThatLeaves,
    Trouble::Tokens,
];

/// A server, and the content that it is asked for.
struct Asked<'a> {
    server: &'a Server,
    content: &'a Content,
    upstream: &'a Upstream,
}

/// Asks each server that pulls through while its registry is in trouble; a new one for each trouble, as what was before
/// has its consequences. Tags are asked upstream each time.
pub(crate) fn table(site: &Site<'_>, content: &Content, upstream: &Upstream, report: &mut Report) {
    for trouble in TROUBLES {
        let servers = report.started(site.registries("cache: {tagttl: 0s}"));
        for server in &servers {
            let asked = Asked {
                server,
                content,
                upstream,
            };
            report.attempt("M8", server.name, |report| asked.in_trouble(&trouble, report));
            upstream.behave(Mode::Well);
        }
    }
}

impl Asked<'_> {
    fn in_trouble(&self, trouble: &Trouble, report: &mut Report) -> io::Result<()> {
        self.server.target.connect()?.get(&self.server.tag())?;
        match trouble {
            Trouble::Misbehaves(what, mode) => self.misbehaves(what, *mode, report),
            Trouble::WrongBytes => self.wrong_bytes(report),
            Trouble::OneThatLeaves => self.one_that_leaves(report)?,
            Trouble::Tokens => self.tokens(report),
        }
        Ok(())
    }

    fn does(&self, report: &mut Report, when: &str, what: String) {
        report.does(when, self.server.name, what);
    }

    /// The path of an uncached blob.
    fn fresh(&self, size: usize) -> String {
        let (digest, item) = self.content.fresh_layer(size);
        self.upstream.add([(digest.to_string(), item)]);
        self.server.blob(digest.as_str())
    }

    fn misbehaves(&self, what: &str, mode: Mode, report: &mut Report) {
        let cold = self.fresh(1 << 20);
        let tag = self.server.tag();
        self.upstream.behave(mode);
        for (which, path) in [
            ("a cached tag", &tag),
            ("the same tag again", &tag),
            ("a cold blob", &cold),
        ] {
            self.does(report, &format!("{what}: {which}"), self.answer(path));
        }
    }

    fn wrong_bytes(&self, report: &mut Report) {
        let path = self.fresh(4 << 20);
        self.upstream.behave(Mode::Corrupts);
        self.does(report, "a cold blob comes with a wrong byte", self.answer(&path));
        self.does(report, "the same blob again", self.answer(&path));
        self.upstream.behave(Mode::Well);
        let since = Instant::now();
        let mut last = self.answer(&path);
        while !last.starts_with("200") && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
            last = self.answer(&path);
        }
        let healed = if last.starts_with("200") {
            format!("200 from {:.1} s on", since.elapsed().as_secs_f64())
        } else {
            last
        };
        self.does(report, "the same blob once upstream is well again", healed);
    }

    fn one_that_leaves(&self, report: &mut Report) -> io::Result<()> {
        let path = self.fresh(LAYER);
        self.upstream.take_counts();
        let mut leaves = self.server.target.connect()?;
        leaves.ask(&path)?;
        leaves.take(1 << 20)?;
        drop(leaves);
        let next = self.answer(&path);
        let gets = self.upstream.take_counts().blob_gets;
        let what = format!("{next}, {gets} GETs upstream in all");
        self.does(
            report,
            "a client leaves a cold layer after 1 MiB, another comes",
            what,
        );
        Ok(())
    }

    fn tokens(&self, report: &mut Report) {
        self.upstream.take_counts();
        let answers: Vec<_> = (0..BLOBS).map(|_| self.answer(&self.fresh(1 << 16))).collect();
        let failed = answers.iter().filter(|answer| !answer.starts_with("200")).count();
        let tokens = self.upstream.take_counts().tokens;
        let what = match failed {
            0 => tokens.to_string(),
            _ => format!("{tokens}, {failed} blobs failed"),
        };
        self.does(
            report,
            "8 cold blobs after their tag: further token requests",
            what,
        );
    }

    /// Returns the result of a request with its duration.
    fn answer(&self, path: &str) -> String {
        let started = Instant::now();
        let connected = self.server.target.connect_for(PATIENCE);
        let asked = connected.and_then(|mut connection| connection.get(path));
        let after = format!("after {:.0} ms", ms(started.elapsed()));
        match asked {
            Ok(_) => format!("200 {after}"),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("nothing {after}"),
                ErrorKind::Other => {
                    let status = error.to_string();
                    format!("{} {after}", status.trim_start_matches("HTTP/1.1 "))
                }
                _ => format!("cut {after}"),
            },
        }
    }
}
