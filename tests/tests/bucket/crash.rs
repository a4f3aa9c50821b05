//! Mirrors that are killed while they upload.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt as _;
use testbed::image::Random;
use testbed::process::{Daemon, command};
use testbed::skopeo::{self, Registry};
use testbed::wait;

use crate::place::{LIMIT, Place, until_stored};

/// The layers of an image that a kill interrupts: one is uploaded in parts.
const LAYERS: [usize; 3] = [17_000_000, 300_000, 10];
/// The kills that share a local tier and a bucket.
const KILLS_OF_A_PLACE: usize = 10;

/// Starts a mirror as a process, which can be killed.
pub(crate) async fn start(place: &Place, keys: &str, number: usize) -> (Daemon, std::net::SocketAddr) {
    let config = place.configuration("tier", keys, "cache: {maxsize: 1Gi}");
    let text = std::fs::read_to_string(&config).expect("a file");
    let [port] = testbed::process::free_ports().expect("a port");
    let text = text.replacen("addr: '127.0.0.1:0'", &format!("addr: '127.0.0.1:{port}'"), 1);
    std::fs::write(&config, text).expect("a file");
    let mut command = command(env!("CARGO_BIN_EXE_mirror-under-test"));
    command.arg("serve").arg(&config);
    let log = place.scratch.path().join(format!("mirror-{number}.log"));
    let daemon = Daemon::spawn("mirror", command, &log).expect("a mirror");
    let address = ([127, 0, 0, 1], port).into();
    let listens = || async { tokio::net::TcpStream::connect(address).await.ok() };
    wait::until("mirror that listens", LIMIT, listens)
        .await
        .expect("it starts");
    (daemon, address)
}

/// Pulls an image into a directory of the place.
pub(crate) async fn pull(
    place: &Place,
    address: std::net::SocketAddr,
    name: &str,
    into: &str,
) -> Result<(), skopeo::Error> {
    let registry = Registry::open(address);
    skopeo::pull(&registry, name, &place.scratch.path().join(into)).await
}

/// A mirror that is killed at any instant of its fills and uploads leaves no object that is not whole, and the next one
/// brings the bucket up to date and aborts the uploads that were left. `KILLS` is the number of kills, 20 without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_leaves_only_whole_objects() {
    let kills = std::env::var("KILLS").map_or(20, |kills| kills.parse().expect("KILLS is a number"));
    for first in (0..kills).step_by(KILLS_OF_A_PLACE) {
        let last = kills.min(first + KILLS_OF_A_PLACE);
        kill_and_recover(first..last).await;
        println!("{last} kills");
    }
}

/// Kills a mirror during each of several pulls, of another image each, and lets the next mirror bring the bucket up to date.
async fn kill_and_recover(kills: Range<usize>) {
    let place = Place::new(&[10]).await;
    let keys = format!("chunksize: 5242880, {}", place.store.keys());
    let (mut names, mut count) = (Vec::new(), 0);
    for number in kills {
        let (name, blobs) = push(&place, number).await;
        count += blobs;
        let (mut daemon, address) = start(&place, &keys, number).await;
        let instant = Duration::from_millis(rand::rng().random_range(0..1_500));
        let kill = async {
            tokio::time::sleep(instant).await;
            daemon.kill();
        };
        let into = format!("killed-{number}");
        // It fails where the mirror was killed in its middle.
        let (_, ()) = tokio::join!(pull(&place, address, &name, &into), kill);
        place.check_objects();
        names.push(name);
    }
    let mirror = place.mirror_with("tier", &keys, "cache: {maxsize: 1Gi}").await;
    for (number, name) in names.iter().enumerate() {
        let into = place.scratch.path().join(format!("pulled-{number}"));
        mirror.pull(name, &into).await;
    }
    until_stored(&place, count, &mirror).await;
    assert_eq!(place.check_objects(), count);
    // An upload that the kill interrupted before its id was recorded has no parts.
    let open = place.store.objects().join(".sgwtmp/multipart");
    let left = || async { (count_files(&open) == 0).then_some(()) };
    wait::until("end of the open uploads", LIMIT, left)
        .await
        .expect("they are aborted");
    mirror.stop().await;
}

/// Pushes an image for one platform to the registry, and returns its name and the number of its blobs.
async fn push(place: &Place, number: usize) -> (String, usize) {
    let random = Random {
        platforms: vec!["linux/amd64".to_owned()],
        ..Random::new(100 + number as u64, &LAYERS)
    };
    let directory = place.scratch.path().join(format!("made-{number}"));
    let image = random.write(&directory, "1").expect("an image");
    let name = format!("library/killed-{number}:1");
    place.upstream.push(&image, "1", &name).await.expect("a push");
    let blobs = std::fs::read_dir(directory.join("blobs/sha256")).expect("a directory");
    (name, blobs.count())
}

/// Returns the number of files below a directory.
fn count_files(directory: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let count = |entry: std::fs::DirEntry| {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            count_files(&entry.path())
        } else {
            1
        }
    };
    entries.flatten().map(count).sum()
}
