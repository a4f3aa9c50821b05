//! Replicas that restart one after the other while clients pull.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::replicas::{Kind, Replicas};
use super::{Fleet, REPLICAS};
use crate::client::{Target, at_once};
use crate::report::Report;

const CLIENTS: usize = 8;
const SIZE: usize = 1 << 20;
/// The clients that want each blob, one after the other.
const PULLS: usize = 4;
/// The blobs that clients pull before and after each restart.
const BETWEEN: usize = 100;
/// The most blobs that the clients pull.
const MAX_BLOBS: usize = 4_000;

/// The pulls of all clients.
struct Load<'a> {
    fleet: &'a Fleet<'a>,
    /// The paths of the blobs, made when the first client wants one.
    paths: RwLock<Vec<String>>,
    next: AtomicUsize,
    failed: AtomicUsize,
    /// The replicas that clients are sent to, as the endpoints of a Service.
    endpoints: RwLock<Vec<Target>>,
    done: AtomicBool,
}

/// Restarts each replica once while clients pull new blobs from the others.
pub(super) fn roll(fleet: &Fleet<'_>, kind: Kind, report: &mut Report) -> io::Result<()> {
    let mut replicas = fleet.start(kind, REPLICAS, "roll")?;
    let load = Load {
        fleet,
        paths: RwLock::default(),
        next: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        endpoints: RwLock::new(replicas.targets()),
        done: AtomicBool::new(false),
    };
    fleet.upstream.take_counts();
    let restarted = std::thread::scope(|scope| {
        scope.spawn(|| at_once(CLIENTS, |_| load.run()));
        let restarted = load.restart_each(&mut replicas);
        load.done.store(true, Ordering::Relaxed);
        restarted
    });
    restarted?;
    let gets = fleet.upstream.take_counts().blob_gets as f64;
    let blobs = load.paths.read().len() as f64;
    let measure = format!("fleet: roll of {REPLICAS} replicas under load");
    let mut add = |what: &str, value| report.add(&format!("{measure}, {what}"), kind.name(), value);
    add("failed pulls", load.failed.load(Ordering::Relaxed) as f64);
    add("upstream GETs per blob", gets / blobs);
    add("blobs", blobs);
    Ok(())
}

impl Load<'_> {
    /// Takes each replica out of the endpoints, restarts it, and puts it back.
    fn restart_each(&self, replicas: &mut Replicas) -> io::Result<()> {
        self.until_pulled(BETWEEN);
        for index in 0..REPLICAS {
            let target = replicas.servers[index].target.clone();
            self.endpoints
                .write()
                .retain(|other| other.address != target.address);
            replicas.restart(index)?;
            self.endpoints.write().push(target);
            self.until_pulled(BETWEEN);
        }
        Ok(())
    }

    /// Waits for the pulls of so many further blobs.
    fn until_pulled(&self, blobs: usize) {
        let end = self.next.load(Ordering::Relaxed) + blobs * PULLS;
        while self.next.load(Ordering::Relaxed) < end.min(MAX_BLOBS * PULLS) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn run(&self) {
        while !self.done.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = self.path(number / PULLS) else {
                return;
            };
            if self.pull(number, &path).is_err() {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn path(&self, blob: usize) -> Option<String> {
        let mut paths = self.paths.write();
        while paths.len() <= blob && blob < MAX_BLOBS {
            paths.push(self.fleet.fresh(SIZE));
        }
        paths.get(blob).cloned()
    }

    /// Pulls from one of the endpoints. A replica that is no endpoint any more still ends the requests that it has.
    fn pull(&self, number: usize, path: &str) -> io::Result<()> {
        let endpoints = self.endpoints.read();
        let mut connection = endpoints[number % endpoints.len()].connect()?;
        let length = connection.ask(path)?;
        drop(endpoints);
        connection.take(usize::try_from(length).map_err(io::Error::other)?)
    }
}
