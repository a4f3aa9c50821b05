//! Damage on disk heals: it is a miss, and what comes instead is served.

use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use test_case::test_case;

use super::*;

fn truncate(data: &Path) {
    fs::OpenOptions::new()
        .write(true)
        .open(data)
        .unwrap()
        .set_len(2)
        .unwrap();
}

fn empty(data: &Path) {
    fs::write(data, "").unwrap();
}

fn lengthen(data: &Path) {
    fs::write(data, "layer and more").unwrap();
}

fn directory(data: &Path) {
    fs::remove_file(data).unwrap();
    fs::create_dir_all(data.join("deep")).unwrap();
}

fn missing(data: &Path) {
    fs::remove_file(data).unwrap();
}

/// Changes a file without a trace: its length and its time of change stay.
fn edit_unseen(path: &Path, bytes: &[u8]) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before).unwrap();
}

/// Returns the names of the repositories.
async fn repositories(store: &Store) -> Vec<String> {
    let listed = store.repositories(None, |_| true).await.unwrap();
    listed.names.into_iter().collect()
}

/// A file that blocks its reader on open.
fn pipe(path: &Path) {
    node(path, FileType::Fifo);
}

fn socket(path: &Path) {
    node(path, FileType::Socket);
}

fn node(path: &Path, kind: FileType) {
    fs::remove_file(path).unwrap();
    mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// A link to a device that never ends.
fn zero(path: &Path) {
    fs::remove_file(path).unwrap();
    symlink("/dev/zero", path).unwrap();
}

/// A link to a file of the host, of the length and with the bytes that are wanted.
fn host_file(path: &Path) {
    let elsewhere = path.with_file_name("elsewhere");
    fs::rename(path, &elsewhere).unwrap();
    symlink(elsewhere, path).unwrap();
}

/// A link in the place of the directory, to one with the wanted file.
fn linked_directory(path: &Path) {
    let directory = path.parent().unwrap();
    let elsewhere = directory.with_extension("elsewhere");
    fs::rename(directory, &elsewhere).unwrap();
    symlink(elsewhere, directory).unwrap();
}

fn circle(path: &Path) {
    fs::remove_file(path).unwrap();
    symlink(path, path).unwrap();
}

fn parent_is_a_file(data: &Path) {
    let parent = data.parent().unwrap();
    fs::remove_dir_all(parent).unwrap();
    fs::write(parent, "").unwrap();
}

/// A damaged blob is a miss, and the next fill replaces it.
#[test_case(truncate; "truncated")]
#[test_case(empty; "emptied")]
#[test_case(lengthen; "lengthened")]
#[test_case(directory; "a directory in its place")]
#[test_case(missing; "removed")]
#[test_case(pipe; "a pipe in its place")]
#[test_case(socket; "a socket in its place")]
#[test_case(circle; "a link to itself in its place")]
#[test_case(parent_is_a_file; "a file in its directorys place")]
#[test_case(zero; "a link to an endless device in its place")]
#[tokio::test]
async fn damaged_blob_is_a_miss_and_replaced(damage: fn(&Path)) {
    for restart in [false, true] {
        let place = Place::new();
        let mut store = place.open().await;
        let digest = put(&store, &nginx(), b"layer").await;
        if restart {
            drop(store);
            store = place.open().await;
        }
        damage(&place.data(&digest));
        // Memory has the right content for the moment.
        place.clock.advance(Duration::from_secs(1));
        assert_eq!(get(&store, &nginx(), &digest).await, None);
        assert_eq!(store.usage().bytes, 0);
        put(&store, &nginx(), b"layer").await;
        assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
        assert_eq!(store.usage().bytes, 5);
    }
}

/// Files of the host are no content, though a link in the cache leads to the right bytes.
#[test_case(host_file; "a link to another file in its place")]
#[test_case(linked_directory; "a link in its directorys place")]
#[tokio::test]
async fn linked_content_is_a_miss_and_is_replaced(damage: fn(&Path)) {
    let place = Place::new();
    let digest = put(&place.open().await, &nginx(), b"layer").await;
    damage(&place.data(&digest));
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    put(&store, &nginx(), b"layer").await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
    assert!(fs::symlink_metadata(place.data(&digest)).unwrap().is_file());
}

fn flip(data: &Path) {
    fs::write(data, "{|").unwrap();
}

/// A damaged manifest is a miss, and the next fetch replaces it.
#[test_case(flip; "a flipped bit")]
#[test_case(zero; "a link to an endless device in its place")]
#[test_case(host_file; "a link to another file in its place")]
#[test_case(pipe; "a pipe in its place")]
#[tokio::test]
async fn damaged_manifest_is_a_miss_and_replaced(damage: fn(&Path)) {
    let place = Place::new();
    let manifest = manifest("{}");
    let store = place.open().await;
    store.put_manifest(&nginx(), &manifest).await.unwrap();
    drop(store);
    damage(&place.data(manifest.digest()));
    let store = place.open().await;
    assert_eq!(store.manifest(&nginx(), manifest.digest()).await.unwrap(), None);
    assert!(!place.data(manifest.digest()).exists());
    store.put_manifest(&nginx(), &manifest).await.unwrap();
    assert_eq!(
        store.manifest(&nginx(), manifest.digest()).await.unwrap(),
        Some(manifest)
    );
}

fn cut_short(link: &Path) {
    fs::write(link, "sha256:00").unwrap();
}

/// A damaged link is a miss, and the next fill replaces it.
#[test_case(empty; "empty")]
#[test_case(cut_short; "cut short")]
#[test_case(zero; "a link to an endless device in its place")]
#[test_case(host_file; "a link to another file in its place")]
#[test_case(linked_directory; "a link in its directorys place")]
#[test_case(directory; "a directory in its place")]
#[test_case(pipe; "a pipe in its place")]
#[test_case(socket; "a socket in its place")]
#[test_case(circle; "a link to itself in its place")]
#[tokio::test]
async fn damaged_link_is_a_miss_and_replaced(damage: fn(&Path)) {
    let (place, store, digest) = Place::with_layer().await;
    drop(store);
    let layers = place.v2().join("repositories/library/nginx/_layers/sha256");
    let link = layers.join(digest.hex()).join("link");
    damage(&link);
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    store.link_blob(&nginx(), &digest).await.unwrap();
    assert_eq!(fs::read_to_string(&link).unwrap(), digest.as_str());
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
}

/// A link of one digest may point to content by a digest of a different algorithm.
#[tokio::test]
async fn link_may_point_to_other_algorithm() {
    let (place, store) = Place::opened().await;
    let content = put(&store, &nginx(), b"layer").await;
    let named = Digest::compute(Algorithm::Sha512, b"layer");
    let link = place
        .v2()
        .join("repositories/library/nginx/_layers/sha512")
        .join(named.hex());
    fs::create_dir_all(&link).unwrap();
    fs::write(link.join("link"), content.as_str()).unwrap();
    assert_eq!(get(&store, &nginx(), &named).await.unwrap(), b"layer");
}

#[tokio::test]
async fn link_to_other_digest_is_a_miss_and_replaced() {
    let (place, store) = Place::opened().await;
    let (asked, other) = (
        put(&store, &nginx(), b"layer").await,
        put(&store, &nginx(), b"other").await,
    );
    drop(store);
    let layers = place.v2().join("repositories/library/nginx/_layers/sha256");
    let link = layers.join(asked.hex()).join("link");
    fs::write(&link, other.as_str()).unwrap();
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &asked).await, None);
    assert_eq!(get(&store, &nginx(), &other).await.unwrap(), b"other");
    put(&store, &nginx(), b"layer").await;
    assert_eq!(fs::read_to_string(&link).unwrap(), asked.as_str());
    assert_eq!(get(&store, &nginx(), &asked).await.unwrap(), b"layer");
}

/// Makes the revision link of one digest hold another.
fn lead_astray(place: &Place, named: &Digest, target: &Digest) {
    let revisions = place.v2().join("repositories/library/nginx/_manifests/revisions");
    let link = revisions.join(named.algorithm().as_str()).join(named.hex());
    fs::create_dir_all(&link).unwrap();
    fs::write(link.join("link"), target.as_str()).unwrap();
}

#[test_case(Algorithm::Sha256; "of its algorithm")]
#[test_case(Algorithm::Sha512; "of another algorithm")]
#[tokio::test]
async fn revision_of_other_manifest_is_a_miss(algorithm: Algorithm) {
    let place = Place::new();
    let other = manifest("{\"other\":1}");
    let asked = Digest::compute(algorithm, b"{}");
    let store = place.open().await;
    store.put_manifest(&nginx(), &other).await.unwrap();
    drop(store);
    lead_astray(&place, &asked, other.digest());
    let store = place.open().await;
    assert_eq!(store.manifest(&nginx(), &asked).await.unwrap(), None);
    assert_eq!(
        store.manifest(&nginx(), other.digest()).await.unwrap(),
        Some(other)
    );
}

#[tokio::test]
async fn revision_may_hold_digest_of_other_algorithm() {
    let place = Place::new();
    let stored = manifest("{}");
    let asked = Digest::compute(Algorithm::Sha512, b"{}");
    let store = place.open().await;
    store.put_manifest(&nginx(), &stored).await.unwrap();
    lead_astray(&place, &asked, stored.digest());
    let found = store.manifest(&nginx(), &asked).await.unwrap().unwrap();
    assert_eq!((found.digest(), found.bytes()), (&asked, stored.bytes()));
}

#[tokio::test]
async fn file_in_place_of_root_is_kept_and_an_error() {
    let place = Place::new();
    let file = place.path().join("file");
    fs::write(&file, "user data").unwrap();
    for root in [file.clone(), file.join("below/it")] {
        assert!(Store::open(&root, place.options()).await.is_err(), "{root:?}");
        assert_eq!(fs::read(&file).unwrap(), b"user data");
    }
}

/// A file in the place of the `docker` directory that comes while the store is open is kept, and nothing can be stored.
#[tokio::test]
async fn file_in_place_of_docker_directory_is_kept() {
    let place = Place::new();
    let file = place.path().join("docker");
    let store = place.open().await;
    fs::write(&file, "user data").unwrap();
    assert!(try_put(&store, &nginx(), b"layer").await.is_err());
    assert_eq!(fs::read(&file).unwrap(), b"user data");
}

/// A dropped blob stays readable while it is open, and leaves no link.
#[tokio::test]
async fn dropped_blob_stays_readable_while_open() {
    let (place, store, digest) = Place::with_layer().await;
    let open = store.blob(&nginx(), &digest).await.unwrap().unwrap();
    store.drop_blob(&digest).await;
    assert_eq!(read(&open), b"layer");
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    assert_eq!(place.tree(), BTreeMap::new());
    assert!(repositories(&store).await.is_empty());
}

/// A large blob that a program edits in place, without a change of its length, is a miss: while its file is open, and
/// after a restart.
#[tokio::test]
async fn large_blob_edited_in_place_is_a_miss() {
    for restarts in [false, true] {
        let (place, store) = Place::opened().await;
        let digest = put(&store, &nginx(), &vec![b'x'; 100_000]).await;
        assert!(get(&store, &nginx(), &digest).await.is_some());
        let data = place.data(&digest);
        let before = fs::metadata(&data).unwrap().modified().unwrap();
        // Times of files have the granularity of the system's timer.
        while fs::metadata(&data).unwrap().modified().unwrap() <= before + Duration::from_millis(2) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"y", 50_000).unwrap();
        }
        let store = if restarts {
            drop(store);
            place.open().await
        } else {
            store
        };
        assert_eq!(get(&store, &nginx(), &digest).await, None, "{restarts}");
        assert!(!data.exists());
    }
}

/// A file whose time of change moved while its bytes stayed is hashed once, and served.
#[tokio::test]
async fn touched_blob_is_hashed_and_served() {
    let (place, store) = Place::opened().await;
    let digest = put(&store, &nginx(), &vec![b'x'; 100_000]).await;
    let file = fs::File::options().write(true).open(place.data(&digest)).unwrap();
    // As of a file system whose clock is ahead.
    file.set_modified(std::time::SystemTime::now() + HOUR).unwrap();
    for _ in 0..3 {
        let bytes = get(&store, &nginx(), &digest).await;
        assert!(bytes.is_some_and(|bytes| bytes == vec![b'x'; 100_000]));
    }
}

/// A large blob that a program changes in place is not served, also if the program sets the time of change back: neither
/// while its file is open, nor after it was evicted from memory, nor after a restart.
#[test_case(false; "while it is open")]
#[test_case(true; "after a restart")]
#[tokio::test]
async fn blob_with_reset_time_of_change_is_a_miss(restarts: bool) {
    let place = Place::new();
    if restarts {
        // It was fetched long ago.
        place.clock.set_back(HOUR);
    }
    let mut store = place.open().await;
    let mut layer = bytes(7, 100_000);
    let digest = put(&store, &nginx(), &layer).await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), layer);
    layer[50_000] ^= 1;
    edit_unseen(&place.data(&digest), &layer);
    if restarts {
        drop(store);
        store = place.open().await;
    }
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    assert!(!place.data(&digest).exists());
}

/// A place whose blob lost a bit but not its length, and no record says that it was verified.
#[tokio::test]
async fn flipped_bit_in_small_blob_is_a_miss() {
    let (place, store, digest) = Place::with_layer().await;
    drop(store);
    fs::write(place.data(&digest), "lay3r").unwrap();
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    assert!(!place.data(&digest).exists());
}

async fn adopted_with_a_flipped_bit() -> (Place, Digest) {
    let (place, store) = Place::opened().await;
    // More than is hashed whenever it is opened.
    let mut layer = bytes(7, 20_000);
    let digest = put(&store, &nginx(), &layer).await;
    drop(store);
    fs::remove_file(place.path().join("_mirror/index.redb")).unwrap();
    layer[19_999] ^= 1;
    fs::write(place.data(&digest), layer).unwrap();
    (place, digest)
}

/// Content that was found on the disk is hashed before its first byte is served, by its link and without one.
#[tokio::test]
async fn unverified_content_with_a_flipped_bit_is_never_served() {
    let (place, digest) = adopted_with_a_flipped_bit().await;
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    assert!(!place.data(&digest).exists());
    let (place, digest) = adopted_with_a_flipped_bit().await;
    let store = place.open().await;
    let found = store
        .find(&repository("docker.io", "library/other"), &digest)
        .await;
    assert!(matches!(found, Ok(Found::Missing)), "{found:?}");
    assert!(!place.data(&digest).exists());
}

/// Requests for one blob that was found on the disk wait for one hash, and the next start needs none.
#[tokio::test]
async fn unverified_content_is_hashed_once() {
    let place = Place::new();
    let layer = bytes(7, 20_000);
    let store = place.open().await;
    let digest = put(&store, &nginx(), &layer).await;
    drop(store);
    fs::remove_file(place.path().join("_mirror/index.redb")).unwrap();
    let store = place.open().await;
    let app = nginx();
    // The edit below is before the hash by this clock, so that only a second hash finds it.
    place.clock.advance(HOUR);
    let gets = (0..8).map(|_| get(&store, &app, &digest));
    for found in futures::future::join_all(gets).await {
        assert_eq!(found.unwrap(), layer);
    }
    drop(store);
    let mut changed = layer.clone();
    changed[0] ^= 1;
    edit_unseen(&place.data(&digest), &changed);
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), changed);
}

/// Damages a large blob as a disk does: by this clock, nothing shows that the file changed.
async fn damage_unseen(place: &Place, store: Store, digest: &Digest) -> Store {
    drop(store);
    edit_unseen(&place.data(digest), &bytes(8, 20_000));
    place.open().await
}

#[tokio::test]
async fn used_content_is_scrubbed_once_a_period() {
    let place = Place::new();
    place.clock.advance(HOUR);
    let store = place.open().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let digest = put(&store, &nginx(), &bytes(7, 20_000)).await;
    let store = damage_unseen(&place, store, &digest).await;
    store.set_scrub_period(Some(720 * HOUR));
    get(&store, &nginx(), &digest).await.unwrap();
    store.flush().await;
    assert_eq!(
        store.scrub(&stop).await.unwrap(),
        0,
        "verified when it was stored"
    );
    place.clock.advance(721 * HOUR);
    store.flush().await;
    assert_eq!(store.scrub(&stop).await.unwrap(), 0, "not used since");
    get(&store, &nginx(), &digest).await.unwrap();
    store.flush().await;
    assert_eq!(store.scrub(&stop).await.unwrap(), 1);
}

/// Content that is sound stays, and counts as verified.
#[tokio::test]
async fn sound_content_counts_as_verified() {
    let (place, store) = Place::opened().await;
    store.set_scrub_period(Some(HOUR));
    let stop = tokio_util::sync::CancellationToken::new();
    let digest = put(&store, &nginx(), &bytes(7, 20_000)).await;
    place.clock.advance(2 * HOUR);
    get(&store, &nginx(), &digest).await.unwrap();
    store.flush().await;
    assert_eq!(store.scrub(&stop).await.unwrap(), 0);
    let store = damage_unseen(&place, store, &digest).await;
    store.set_scrub_period(Some(HOUR));
    get(&store, &nginx(), &digest).await.unwrap();
    store.flush().await;
    assert_eq!(store.scrub(&stop).await.unwrap(), 0, "just verified");
}

/// A root that is cleared while the store is open is filled again.
#[tokio::test]
async fn cleared_root_is_filled_again() {
    let (place, store, digest) = Place::with_layer().await;
    for entry in fs::read_dir(place.path()).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    place.clock.advance(Duration::from_secs(1));
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    put(&store, &nginx(), b"layer").await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
    drop(store);
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
    assert_eq!(store.usage().bytes, 5);
}

fn emptied(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

fn without_own(root: &Path) {
    fs::remove_dir_all(root.join("_mirror")).unwrap();
}

fn without_owner(root: &Path) {
    fs::remove_file(root.join("_mirror/owner")).unwrap();
}

fn moved_away(root: &Path) {
    fs::rename(root, root.with_extension("old")).unwrap();
}

fn of_another_owner(root: &Path) {
    moved_away(root);
    fs::create_dir_all(root.join("_mirror")).unwrap();
    for (file, content) in [("owner", "quay.io"), ("lock", ""), ("index.redb", "")] {
        fs::write(root.join("_mirror").join(file), content).unwrap();
    }
}

/// A root that is emptied or replaced while the store is open gets its owner file with the first write, so that the
/// next default upstream does not inherit the tags.
#[test_case(emptied; "emptied")]
#[test_case(without_own; "without the directory of the server")]
#[test_case(without_owner; "without the owner file")]
#[test_case(moved_away; "moved away")]
#[test_case(of_another_owner; "replaced by one of another owner")]
#[tokio::test]
async fn owner_file_returns_with_the_root(change: fn(&Path)) {
    let (place, store) = Place::opened().await;
    let tag = "latest".parse().unwrap();
    store.put_tag(&nginx(), &tag, &digest(b"old")).await.unwrap();
    change(place.path());
    store.put_tag(&nginx(), &tag, &digest(b"hub")).await.unwrap();
    drop(store);
    let store = place.open_for("quay.io").await;
    let there = repository("quay.io", "library/nginx");
    assert_eq!(store.tag(&there, &tag).await.unwrap(), None);
    let cached = store.tag(&nginx(), &tag).await.unwrap().unwrap();
    assert_eq!(cached.digest, digest(b"hub"));
}

/// A root whose lock file is removed stays that of the process that has it.
#[tokio::test]
async fn root_without_its_lock_file_stays_locked() {
    let (place, store) = Place::opened().await;
    without_own(place.path());
    let second = Store::open(place.path(), place.options()).await;
    assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
    put(&store, &nginx(), b"layer").await;
    let second = Store::open(place.path(), place.options()).await;
    assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
}

/// A root that another process locked meanwhile is not written to.
#[tokio::test]
async fn root_of_another_process_is_not_written() {
    let (place, store) = Place::opened().await;
    moved_away(place.path());
    let second = place.open().await;
    let refused = store
        .put_tag(&nginx(), &"latest".parse().unwrap(), &digest(b"x"))
        .await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("another process uses the storage root"),
        "{refused}"
    );
    drop(second);
    put(&store, &nginx(), b"layer").await;
}

/// A file in the place of the scratch directory is replaced.
#[tokio::test]
async fn file_in_place_of_scratch_is_replaced() {
    let place = Place::new();
    drop(place.open().await);
    let scratch = place.path().join("_mirror/scratch");
    fs::remove_dir_all(&scratch).unwrap();
    fs::write(&scratch, "").unwrap();
    let store = place.open().await;
    put(&store, &nginx(), b"layer").await;
}

/// A FIFO, a link or a directory in the place of each of the store's own files holds up nothing, and nothing is written
/// through a link.
#[test_case(pipe; "a pipe in its place")]
#[test_case(zero; "a link to an endless device in its place")]
#[test_case(directory; "a directory in its place")]
#[test_case(socket; "a socket in its place")]
#[tokio::test]
async fn own_files_of_another_kind_are_replaced(damage: fn(&Path)) {
    for file in ["lock", "index.redb"] {
        let (place, store, digest) = Place::with_layer().await;
        drop(store);
        let path = place.path().join("_mirror").join(file);
        damage(&path);
        let store = place.open().await;
        assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer", "{file}");
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{file}");
    }
}

/// The store does not guess the owner of the repositories or the expiry of content, and a start does not wait for
/// either.
#[test_case(pipe; "a pipe in its place")]
#[test_case(zero; "a link to an endless device in its place")]
#[tokio::test]
async fn state_files_of_another_kind_hold_up_nothing(damage: fn(&Path)) {
    let (place, store, digest) = Place::with_layer().await;
    drop(store);
    let state = place.path().join("scheduler-state.json");
    fs::write(&state, "{}").unwrap();
    damage(&state);
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
    drop(store);
    damage(&place.path().join("_mirror/owner"));
    let refused = Store::open(place.path(), place.options())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("_mirror/owner"), "{refused}");
}

/// The root itself may be a link; a link in the place of a directory that is not replaced as damage is an error.
#[tokio::test]
async fn root_may_be_a_link_and_nothing_else_that_is_kept() {
    let place = Place::new();
    let (root, elsewhere) = (place.path().join("root"), place.path().join("real"));
    fs::create_dir(&elsewhere).unwrap();
    symlink("real", &root).unwrap();
    let store = Store::open(&root, place.options()).await.unwrap();
    let digest = put(&store, &nginx(), b"layer").await;
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
    assert!(elsewhere.join("docker").is_dir());
    for directory in ["docker", "docker/registry", "docker/registry/v2", "_mirror"] {
        let place = Place::new();
        let (link, target) = (place.path().join(directory), place.path().join("target"));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        let refused = Store::open(place.path(), place.options())
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            refused.contains("symbolic link") && refused.contains(directory),
            "{refused}"
        );
        assert_eq!(fs::read_dir(target).unwrap().count(), 0);
    }
}

/// A file in the place of a directory that is not replaced as damage is an error, and stays: a server could store nothing.
#[tokio::test]
async fn file_in_place_of_a_fixed_directory_is_named() {
    for directory in ["docker", "docker/registry", "docker/registry/v2", "_mirror"] {
        let place = Place::new();
        let file = place.path().join(directory);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "kept").unwrap();
        let refused = Store::open(place.path(), place.options()).await;
        let refused = refused.err().unwrap().to_string();
        let named = refused.contains(file.to_str().unwrap());
        assert!(named && refused.contains("not a directory"), "{refused}");
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }
}

/// Nothing is written or removed through a link in the place of a repository's or an algorithm's directory.
#[tokio::test]
async fn nothing_is_written_through_a_link() {
    let place = Place::new();
    let target = place.path().join("target");
    fs::create_dir_all(target.join("precious")).unwrap();
    for directory in [
        "blobs/sha256",
        "repositories/library",
        "repositories/library/nginx/_layers",
    ] {
        let link = place.v2().join(directory);
        let _ = fs::remove_dir_all(&link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&target, &link).unwrap();
        let store = place.open().await;
        let digest = put(&store, &nginx(), b"layer").await;
        assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
        store.drop_blob(&digest).await;
        drop(store);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1, "{directory}");
    }
}

/// Directories that are deeper than any repository's name are not walked: neither the stack nor a path has room for them.
#[tokio::test]
async fn endless_directories_hold_up_no_start() {
    let place = Place::new();
    let mut deep = place.v2().join("repositories");
    fs::create_dir_all(&deep).unwrap();
    for _ in 0..1_500 {
        deep.push("a");
        fs::create_dir(&deep).unwrap();
    }
    let store = place.open().await;
    let digest = put(&store, &nginx(), b"layer").await;
    assert_eq!(repositories(&store).await, ["library/nginx"]);
    assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
}
