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

/// What would keep whoever opens it waiting.
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

fn circle(path: &Path) {
    fs::remove_file(path).unwrap();
    symlink(path, path).unwrap();
}

fn parent_is_a_file(data: &Path) {
    let parent = data.parent().unwrap();
    fs::remove_dir_all(parent).unwrap();
    fs::write(parent, "").unwrap();
}

#[test_case(truncate; "truncated")]
#[test_case(empty; "emptied")]
#[test_case(lengthen; "lengthened")]
#[test_case(directory; "a directory in its place")]
#[test_case(missing; "removed")]
#[test_case(pipe; "a pipe in its place")]
#[test_case(socket; "a socket in its place")]
#[test_case(circle; "a link to itself in its place")]
#[test_case(parent_is_a_file; "a file in its directorys place")]
#[tokio::test]
async fn a_damaged_blob_is_a_miss_and_is_replaced(damage: fn(&Path)) {
    for restart in [false, true] {
        let place = Place::new();
        let mut store = place.open().await;
        let digest = put(&store, &nginx(), b"layer").await;
        if restart {
            drop(store);
            store = place.open().await;
        }
        damage(&place.data(&digest));
        // What is in memory is right for the moment.
        place.clock.advance(Duration::from_secs(1));
        assert_eq!(get(&store, &nginx(), &digest).await, None);
        assert_eq!(store.usage().bytes, 0);
        put(&store, &nginx(), b"layer").await;
        assert_eq!(get(&store, &nginx(), &digest).await.unwrap(), b"layer");
        assert_eq!(store.usage().bytes, 5);
    }
}

fn flip(data: &Path) {
    fs::write(data, "{|").unwrap();
}

#[test_case(flip; "a flipped bit")]
#[test_case(pipe; "a pipe in its place")]
#[tokio::test]
async fn a_damaged_manifest_is_a_miss_and_is_replaced(damage: fn(&Path)) {
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

#[test_case(empty; "empty")]
#[test_case(cut_short; "cut short")]
#[test_case(directory; "a directory in its place")]
#[test_case(pipe; "a pipe in its place")]
#[test_case(socket; "a socket in its place")]
#[test_case(circle; "a link to itself in its place")]
#[tokio::test]
async fn a_damaged_link_is_a_miss_and_is_replaced(damage: fn(&Path)) {
    let place = Place::new();
    let store = place.open().await;
    let digest = put(&store, &nginx(), b"layer").await;
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

#[tokio::test]
async fn a_link_of_one_digest_may_lead_to_content_of_another() {
    let place = Place::new();
    let store = place.open().await;
    let content = put(&store, &nginx(), b"layer").await;
    let named = Digest::of(Algorithm::Sha512, b"layer");
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
    let place = Place::new();
    let store = place.open().await;
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
    let asked = Digest::of(algorithm, b"{}");
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
    let asked = Digest::of(Algorithm::Sha512, b"{}");
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
    fs::write(&file, "somebody's").unwrap();
    for root in [file.clone(), file.join("below/it")] {
        assert!(Store::open(&root, place.options()).await.is_err(), "{root:?}");
        assert_eq!(fs::read(&file).unwrap(), b"somebody's");
    }
}

#[tokio::test]
async fn file_in_place_of_docker_directory_is_kept() {
    let place = Place::new();
    let file = place.path().join("docker");
    fs::write(&file, "somebody's").unwrap();
    let store = place.open().await;
    assert!(try_put(&store, &nginx(), b"layer").await.is_err());
    assert_eq!(fs::read(&file).unwrap(), b"somebody's");
}

#[tokio::test]
async fn dropped_blob_stays_readable_while_open() {
    let place = Place::new();
    let store = place.open().await;
    let digest = put(&store, &nginx(), b"layer").await;
    let open = store.blob(&nginx(), &digest).await.unwrap().unwrap();
    store.drop_blob(&digest).await;
    assert_eq!(read(&open), b"layer");
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    assert_eq!(place.tree(), BTreeMap::new());
    assert_eq!(store.repositories(|_| true).await.unwrap(), Vec::<String>::new());
}

/// A place whose blob lost a bit but not its length, and nobody remembers that it was verified.
#[tokio::test]
async fn a_flipped_bit_in_a_small_blob_is_a_miss() {
    let place = Place::new();
    let store = place.open().await;
    let digest = put(&store, &nginx(), b"layer").await;
    drop(store);
    fs::write(place.data(&digest), "lay3r").unwrap();
    let store = place.open().await;
    assert_eq!(get(&store, &nginx(), &digest).await, None);
    assert!(!place.data(&digest).exists());
}

async fn taken_over_with_a_flipped_bit() -> (Place, Digest) {
    let place = Place::new();
    let store = place.open().await;
    // More than is hashed whenever it is opened.
    let mut layer = bytes(7, 20_000);
    let digest = put(&store, &nginx(), &layer).await;
    drop(store);
    fs::remove_file(place.path().join("_mirror/index.redb")).unwrap();
    layer[19_999] ^= 1;
    fs::write(place.data(&digest), layer).unwrap();
    (place, digest)
}

#[tokio::test]
async fn flipped_bit_is_found_after_first_use() {
    let (place, digest) = taken_over_with_a_flipped_bit().await;
    let store = place.open().await;
    store.set_scrub_period(Some(720 * HOUR));
    assert!(get(&store, &nginx(), &digest).await.is_some());
    store.flush().await;
    let stop = tokio_util::sync::CancellationToken::new();
    assert_eq!(store.scrub(&stop).await.unwrap(), 1);
    assert_eq!(get(&store, &nginx(), &digest).await, None);
}

#[tokio::test]
async fn used_content_is_scrubbed_once_a_period() {
    let place = Place::new();
    let store = place.open().await;
    store.set_scrub_period(Some(720 * HOUR));
    let stop = tokio_util::sync::CancellationToken::new();
    let digest = put(&store, &nginx(), b"layer").await;
    fs::write(place.data(&digest), "lay3r").unwrap();
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

#[tokio::test]
async fn sound_content_stays_and_counts_as_verified() {
    let place = Place::new();
    let store = place.open().await;
    store.set_scrub_period(Some(HOUR));
    let stop = tokio_util::sync::CancellationToken::new();
    let digest = put(&store, &nginx(), b"layer").await;
    place.clock.advance(2 * HOUR);
    get(&store, &nginx(), &digest).await.unwrap();
    store.flush().await;
    assert_eq!(store.scrub(&stop).await.unwrap(), 0);
    fs::write(place.data(&digest), "lay3r").unwrap();
    get(&store, &nginx(), &digest).await.unwrap();
    store.flush().await;
    assert_eq!(store.scrub(&stop).await.unwrap(), 0, "just verified");
}

#[tokio::test]
async fn a_root_that_is_cleared_meanwhile_is_filled_again() {
    let place = Place::new();
    let store = place.open().await;
    let digest = put(&store, &nginx(), b"layer").await;
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

#[tokio::test]
async fn a_file_in_the_place_of_scratch_is_replaced() {
    let place = Place::new();
    drop(place.open().await);
    let scratch = place.path().join("_mirror/scratch");
    fs::remove_dir_all(&scratch).unwrap();
    fs::write(&scratch, "").unwrap();
    let store = place.open().await;
    put(&store, &nginx(), b"layer").await;
}
