//! A profile of this server: `perf` watches it hit, miss and serve a herd.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::slice;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::client::{herd, load};
use crate::content::{Content, LAYER};
use crate::servers::{Server, Site};
use crate::upstream::Upstream;

const SECONDS: f64 = 3.0;
/// Layers that are fetched: at the link's width, half a second each.
const MISSES: usize = 6;

/// Writes a recording of each situation into this directory.
pub(crate) fn record(
    site: &Site<'_>,
    content: &Content,
    upstream: &Upstream,
    directory: &Path,
) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let server = site.ours("cache: {tagttl: 1h, maxsize: 8Gi}", None).1?;
    server.warm(content)?;
    let hits = |path: &str, connections| load(&server.target, path, connections, SECONDS).map(drop);
    let misses = |clients| {
        for _ in 0..MISSES {
            let (digest, item) = content.fresh_layer(LAYER);
            upstream.add([(digest.to_string(), item)]);
            let path = server.blob(digest.as_str());
            herd(slice::from_ref(&server.target), &[path], clients, Duration::ZERO)?;
        }
        Ok(())
    };
    let recorded = |name: &str, work: &dyn Fn() -> io::Result<()>| {
        let recording = Recording::start(&server, &directory.join(name).with_extension("data"));
        let worked = work();
        recording.end();
        worked
    };
    recorded("hit-small", &|| hits(&server.small(content), 64))?;
    recorded("hit-large", &|| hits(&server.layer(content), 8))?;
    recorded("miss", &|| misses(1))?;
    recorded("herd", &|| misses(32))
}

/// `perf` at work.
struct Recording(Child);

impl Recording {
    fn start(server: &Server, to: &Path) -> Self {
        let child = Command::new("perf")
            .args(["record", "--quiet", "--freq=499", "--call-graph=dwarf,16384"])
            .args(["--pid", &server.id().to_string(), "--output"])
            .arg(to)
            .stdin(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("perf: {error}; scripts/profile installs it")))
    }

    fn end(mut self) {
        let id = Pid::from_child(&self.0);
        kill_process(id, Signal::INT).unwrap();
        self.0.wait().unwrap();
    }
}
