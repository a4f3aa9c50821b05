//! A disk that really is full.

use super::*;
use crate::small_disk;

const ROOT: &str = "MIRROR_TEST_FULL_ROOT";
const CHILD: &str = "full::child_on_a_small_file_system";

/// Runs on a tmpfs of 8 MiB, with a limit far above that.
#[tokio::test]
#[ignore = "the child of the test below"]
async fn child_on_a_small_file_system() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let options = StoreOptions {
        max_size: Some(MaxSize::Bytes(1 << 40)),
        ..Place::new().options()
    };
    let store = Store::open(Path::new(&root), options).await.unwrap();
    until(|| store.is_settled()).await;
    let mut last = None;
    for seed in 0..20 {
        last = Some(put(&store, &nginx(), &bytes(seed, 1 << 20)).await);
    }
    assert!(get(&store, &nginx(), &last.unwrap()).await.is_some());
    assert!(store.usage().bytes <= 8 << 20, "{:?}", store.usage());
    // Something else takes the rest: the cache gives way, and then says that there is no room.
    fill(Path::new(&root));
    put(&store, &nginx(), &bytes(100, 1 << 20)).await;
    let refused = store
        .stage(&nginx().host, &digest(b"x"), Some(16 << 20))
        .await
        .unwrap_err();
    assert!(matches!(refused, StageError::NoRoom), "{refused}");
    assert!(
        get(&store, &nginx(), &digest(&bytes(100, 1 << 20)))
            .await
            .is_some()
    );
}

/// Fills the file system.
fn fill(root: &Path) {
    let hog = fs::File::create(root.join("hog")).unwrap();
    let mut taken = 0;
    while hog.write_at(&[1; 4096], taken).is_ok() {
        taken += 4096;
    }
}

/// Runs on a tmpfs of 8 MiB.
#[tokio::test]
#[ignore = "the child of a test below"]
async fn child_with_two_servers() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let root = Path::new(&root);
    let options = Place::new().options();
    let store = Store::open(root, options.clone()).await.unwrap();
    until(|| store.is_settled()).await;
    let kept = put(&store, &nginx(), &bytes(1, 1 << 20)).await;
    for emptied in [false, true] {
        if emptied {
            fs::remove_dir_all(root.join("_mirror")).unwrap();
        }
        fill(root);
        let second = Store::open(root, options.clone()).await;
        assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
        assert!(get(&store, &nginx(), &kept).await.is_some());
        fs::remove_file(root.join("hog")).unwrap();
    }
}

/// Runs on a tmpfs of 8 MiB that the cache of another registry fills.
#[tokio::test]
#[ignore = "the child of a test below"]
async fn child_of_a_full_takeover() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let root = Path::new(&root);
    let registry = root.join("docker/registry/v2");
    let mut digests = Vec::new();
    let write = |path: &Path, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, bytes)
    };
    for seed in 0..100 {
        let data = bytes(seed, 1 << 19);
        let digest = digest(&data);
        let hex = digest.to_string().replace("sha256:", "");
        let link = registry.join(format!("repositories/library/nginx/_layers/sha256/{hex}/link"));
        let blob = registry.join(format!("blobs/sha256/{}/{hex}/data", &hex[..2]));
        let written = write(&link, digest.to_string().as_bytes()).and_then(|()| write(&blob, &data));
        if written.is_err() {
            break;
        }
        let age = Duration::from_secs(10_000 - seed);
        let file = fs::File::options().append(true).open(&blob).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
        if seed == 0 {
            let image = format!(r#"{{"layers":[{{"digest":"{digest}"}}]}}"#);
            let hex = self::digest(image.as_bytes()).hex().to_owned();
            let tag = registry.join("repositories/library/nginx/_manifests/tags/v1/current/link");
            write(&tag, format!("sha256:{hex}").as_bytes()).unwrap();
            let blob = registry.join(format!("blobs/sha256/{}/{hex}/data", &hex[..2]));
            write(&blob, image.as_bytes()).unwrap();
        }
        digests.push(digest);
    }
    assert!(digests.len() > 4);
    let options = StoreOptions {
        pinned: Globs::new(&["docker.io/library/nginx:v1".to_owned()]).unwrap(),
        ..Place::new().options()
    };
    let store = Store::open(root, options).await.unwrap();
    until(|| store.is_settled()).await;
    assert!(get(&store, &nginx(), digests.last().unwrap()).await.is_some());
    assert!(get(&store, &nginx(), &digests[0]).await.is_some(), "it is pinned");
    assert!(get(&store, &nginx(), &digests[1]).await.is_none());
}

/// A second server on a full root that is in use removes nothing, also if the first one's lock file is gone.
#[test]
fn second_server_on_a_full_root_removes_nothing() {
    run_on_small_disk("full::child_with_two_servers");
}

/// A server starts on a file system that content fills: the oldest content that is not pinned makes room for its files.
#[test]
fn full_disk_at_start_loses_the_oldest_content() {
    run_on_small_disk("full::child_of_a_full_takeover");
}

/// A full disk causes evictions, then refusals, and the store continues to serve.
#[test]
fn full_disk_evicts_then_refuses_and_serves() {
    run_on_small_disk(CHILD);
}

fn run_on_small_disk(child: &str) {
    let Some(how) = small_disk::namespace() else {
        return;
    };
    let place = Place::new();
    let words = "exec \"$1\" --ignored --exact \"$2\"";
    let output = small_disk::command(how, place.path(), "8m", words)
        .arg(std::env::current_exe().unwrap())
        .arg(child)
        .env(ROOT, place.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
