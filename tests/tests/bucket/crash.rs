//! Mirrors that are killed while they upload.

use std::time::Duration;

use rand::RngExt as _;
use testbed::process::{Daemon, command};
use testbed::skopeo::{self, Registry};
use testbed::wait;

use crate::place::{LIMIT, NAME, Place, until_stored};

/// The content that one run uploads: parts, small blobs, manifests.
const LAYERS: [usize; 4] = [40_000_000, 3_000_000, 300_000, 10];

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
/// brings the bucket up to date and aborts the uploads that were left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_leaves_only_whole_objects() {
    let place = Place::new(&LAYERS).await;
    for number in 0..20 {
        let (mut daemon, address) = start(&place, &place.store.keys(), number).await;
        let registry = Registry::open(address);
        let into = place.scratch.path().join(format!("pulled-{number}"));
        let pull = tokio::spawn(async move { skopeo::pull(&registry, NAME, &into).await });
        let instant = rand::rng().random_range(0..1_500);
        tokio::time::sleep(Duration::from_millis(instant)).await;
        daemon.kill();
        // It fails where the mirror was killed in its middle.
        let _ = pull.await;
        place.check_objects();
    }
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled").await;
    let count = std::fs::read_dir(place.image.path().join("blobs/sha256"))
        .expect("a directory")
        .count();
    until_stored(&place, count, &mirror).await;
    assert_eq!(place.check_objects(), count);
    // An upload that the kill interrupted before its id was recorded has no parts.
    let open = place.store.objects().join(".sgwtmp/multipart");
    let left = || async { (count_files(&open) == 0).then_some(()) };
    wait::until("end of the open uploads", LIMIT, left)
        .await
        .expect("they are aborted");
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
