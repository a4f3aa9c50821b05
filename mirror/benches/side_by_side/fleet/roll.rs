//! Replicas that restart one after the other while clients pull.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::replicas::{Kind, Replicas};
use super::{Fleet, REPLICAS};
use crate::client::{Target, at_once};
use crate::report::Report;

const CLIENTS: usize = 8;
const SIZE: usize = 1 << 20;
/// The clients that want each blob, one after the other.
const PULLS: usize = 4;
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
pub(super) fn roll(fleet: &Fleet<'_>, report: &mut Report) -> io::Result<()> {
    let mut replicas = fleet.start(Kind::Ours, REPLICAS, "roll")?;
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
    let mut add = |what: &str, value| report.add(&format!("{measure}, {what}"), Kind::Ours.name(), value);
    add("failed pulls", load.failed.load(Ordering::Relaxed) as f64);
    add("upstream GETs per blob", gets / blobs);
    add("blobs", blobs);
    Ok(())
}

impl Load<'_> {
    /// Takes each replica out of the endpoints, restarts it, and puts it back.
    fn restart_each(&self, replicas: &mut Replicas) -> io::Result<()> {
        for index in 0..REPLICAS {
            let target = replicas.servers[index].target.clone();
            self.endpoints
                .write()
                .retain(|other| other.address != target.address);
            replicas.restart(index)?;
            self.endpoints.write().push(target);
        }
        Ok(())
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
