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
    let hog = fs::File::create(Path::new(&root).join("hog")).unwrap();
    let mut taken = 0;
    while hog.write_at(&[1; 4096], taken).is_ok() {
        taken += 4096;
    }
    drop(hog);
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

/// A full disk causes evictions, then refusals, and the store continues to serve.
#[test]
fn full_disk_evicts_then_refuses_and_serves() {
    let Some(how) = small_disk::namespace() else {
        return;
    };
    let place = Place::new();
    let words = "exec \"$1\" --ignored --exact \"$2\"";
    let output = small_disk::command(how, place.path(), "8m", words)
        .arg(std::env::current_exe().unwrap())
        .arg(CHILD)
        .env(ROOT, place.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
