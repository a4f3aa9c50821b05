//! kill -9 at any instant: each blob is whole or not there, and nothing leaks.

use super::*;
use std::process::{Child, Command, Stdio};

const ROOT: &str = "MIRROR_TEST_CRASH_ROOT";
const ROUNDS: u64 = 20;
const LIMIT: u64 = 256 << 10;

/// Stores forever as a child process: blobs, manifests and tags, over the limit so that it evicts too.
#[tokio::test]
#[ignore = "the child of the test below"]
async fn child_stores_until_killed() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let place = Place::limited(LIMIT);
    let store = Store::open(Path::new(&root), place.options()).await.unwrap();
    for seed in u64::from(std::process::id()) << 20.. {
        let len = usize::try_from(seed % 7).unwrap() * 9000 + 1;
        try_put(&store, &nginx(), &bytes(seed, len)).await.ok();
        let manifest = manifest(&format!("{{\"n\":{seed}}}"));
        store.put_manifest(&nginx(), &manifest).await.ok();
        let tag = format!("t{}", seed % 3).parse().unwrap();
        store.put_tag(&nginx(), &tag, manifest.digest()).await.ok();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_child(root: &Path) -> Killed {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "crash::child_stores_until_killed"])
        .env(ROOT, root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Killed(child.unwrap())
}

fn assert_whole(place: &Place) -> u64 {
    let mut sum = 0;
    for (path, bytes) in files(&place.v2().join("blobs")) {
        let hex = path
            .parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(digest(&bytes).hex(), hex, "a partial blob at {}", path.display());
        sum += bytes.len() as u64;
    }
    for (path, link) in files(&place.v2().join("repositories")) {
        let text = String::from_utf8(link).unwrap();
        assert!(
            text.parse::<Digest>().is_ok(),
            "a partial link at {}",
            path.display()
        );
    }
    sum
}

#[tokio::test]
async fn kill_9_leaves_whole_content_and_no_scratch() {
    let place = Place::limited(LIMIT);
    let blobs = || files(&place.v2().join("blobs")).len();
    let mut delay = Duration::from_millis(1);
    for round in 0..ROUNDS {
        let child = start_child(place.path());
        let seen = fs::metadata(place.path().join("_mirror/index.redb")).and_then(|found| found.modified());
        until(|| {
            let now =
                fs::metadata(place.path().join("_mirror/index.redb")).and_then(|found| found.modified());
            now.is_ok_and(|now| seen.as_ref().map_or(blobs() > 0, |seen| now > *seen))
        })
        .await;
        // The instant differs from round to round.
        delay = Duration::from_micros(u64::try_from(delay.as_micros()).unwrap() * 7919 % 150_000 + round);
        tokio::time::sleep(delay).await;
        drop(child);
        let on_disk = assert_whole(&place);
        assert!(on_disk <= LIMIT, "{on_disk}");
        let store = place.open().await;
        assert_eq!(place.scratch(), 0);
        assert!(store.usage().bytes >= on_disk, "something on disk is not counted");
        let again = put(&store, &nginx(), &bytes(round, 100)).await;
        assert!(get(&store, &nginx(), &again).await.is_some());
    }
    let store = place.open().await;
    place.clock.advance(2 * HOUR);
    expire(&store).await;
    assert_eq!((blobs(), store.usage().bytes, store.usage().blobs), (0, 0, 0));
    assert_eq!(place.tree(), BTreeMap::new(), "links go with their content");
}
