//! The ledger of the bucket: eviction to the limit, expiry, and what a lost ledger costs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use testbed::bucket::Fault;
use testbed::image::{Layout, Random};
use testbed::wait;

use crate::crash;
use crate::place::{LIMIT, Mirror, NAME, Place, until_stored};

const MIB: usize = 1 << 20;
/// A limit that nothing reaches.
const ROOM: usize = 1 << 30;
/// Settings with which nothing expires; the local tier does not depend on the free space of the disk.
pub(crate) const KEEP: &str = "ttl: 0, cache: {maxsize: 1Gi}";
/// The directory of content in the bucket.
const BLOBS: &str = "docker/registry/v2/blobs/sha256";

/// Pushes an image with a layer of 1 MiB for each of two platforms to the registry.
pub(crate) async fn push(place: &Place, name: &str) -> Layout {
    let seed = name.bytes().map(u64::from).sum();
    let image = Random::new(seed, &[MIB])
        .write(&place.scratch.path().join(format!("made-{name}")), "1")
        .expect("an image");
    let reference = format!("library/{name}:1");
    place
        .upstream
        .push(&image, "1", &reference)
        .await
        .expect("a push");
    image
}

/// Pulls an image, and checks that it is the one that was pushed.
pub(crate) async fn pull(place: &Place, mirror: &Mirror, name: &str, image: &Layout) {
    let into = place
        .scratch
        .path()
        .join(format!("pulled-{name}-{}", rand::random::<u32>()));
    mirror.pull(&format!("library/{name}:1"), &into).await;
    let pulled = Layout::open(&into).expect("a layout");
    assert_eq!(pulled.digest("1"), image.digest("1"));
}

/// Returns the digests of the content of an image, in hexadecimal.
pub(crate) fn content(image: &Layout) -> Vec<String> {
    let entries = std::fs::read_dir(image.path().join("blobs/sha256")).expect("a directory");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect()
}

pub(crate) fn data(place: &Place, hex: &str) -> PathBuf {
    place
        .store
        .objects()
        .join(BLOBS)
        .join(&hex[..2])
        .join(hex)
        .join("data")
}

/// Returns the number of pieces of content of images.
pub(crate) fn count<const N: usize>(images: [&Layout; N]) -> usize {
    let all: HashSet<_> = images.into_iter().flat_map(content).collect();
    all.len()
}

/// Returns whether the bucket has all content of an image.
fn has_all(place: &Place, image: &Layout) -> bool {
    content(image).iter().all(|hex| data(place, hex).exists())
}

/// Returns the size of the content in the bucket.
pub(crate) fn stored_bytes(place: &Place) -> u64 {
    files(&place.store.objects())
        .iter()
        .filter(|path| path.ends_with("data"))
        .map(|path| std::fs::metadata(path).map_or(0, |found| found.len()))
        .sum()
}

/// Returns the files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let below = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files(&path) } else { vec![path] }
    };
    entries.flat_map(below).collect()
}

pub(crate) fn ledgers(place: &Place) -> Vec<PathBuf> {
    files(&place.store.objects().join("_mirror/v1/ledger"))
}

/// Starts a mirror whose bucket has a ledger and more room than the tests need.
async fn roomy(place: &Place, tier: &str) -> Mirror {
    place.mirror_with(tier, &limited(place, ROOM), KEEP).await
}

pub(crate) fn limited(place: &Place, bytes: usize) -> String {
    format!("{}, maxsize: {bytes}", place.store.keys())
}

/// Waits until the ledger has so many pieces of content and nothing waits for its upload.
async fn until_objects(mirror: &Mirror, objects: usize) {
    let reached = || async {
        let status = mirror.status().await;
        let found = (status["objects"].as_u64(), status["pendingUploads"].as_u64());
        (found == (Some(objects as u64), Some(0))).then_some(())
    };
    wait::until("ledger with all content", LIMIT, reached)
        .await
        .expect("a ledger");
}

/// Waits until the bucket has the content of an image and not that of another.
async fn until_only(place: &Place, kept: &Layout, evicted: &Layout) {
    let layer = |image: &Layout| {
        let largest = content(image).into_iter().max_by_key(|hex| {
            std::fs::metadata(image.path().join("blobs/sha256").join(hex)).map_or(0, |found| found.len())
        });
        data(place, &largest.expect("a layer"))
    };
    let reached = || async { (has_all(place, kept) && !layer(evicted).exists()).then_some(()) };
    wait::until("eviction", LIMIT, reached)
        .await
        .expect("an eviction");
}

/// The content in the bucket stays within `maxsize`; what was evicted is pulled from the registry again, and correct.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_is_evicted_to_its_limit() {
    let place = Place::new(&[10]).await;
    let limit = 3 * MIB + MIB / 2;
    let mirror = place.mirror_with("tier", &limited(&place, limit), KEEP).await;
    let mut images = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let image = push(&place, name).await;
        pull(&place, &mirror, name, &image).await;
        images.push((name, image));
    }
    let last = &images[4].1;
    until_only(&place, last, &images[0].1).await;
    let within = || async {
        let status = mirror.status().await;
        let counted = status["bytes"].as_u64()?;
        let found = stored_bytes(&place);
        (status["pendingUploads"] == 0 && counted == found && found <= limit as u64).then_some(())
    };
    wait::until("bucket within its limit", LIMIT, within)
        .await
        .expect("a limit");
    assert!(has_all(&place, last) && !has_all(&place, &images[0].1));
    // The local tier has all of it; another one asks the bucket, and the registry for what was evicted.
    let other = place.mirror_with("other", &limited(&place, limit), KEEP).await;
    for (name, image) in &images {
        pull(&place, &mirror, name, image).await;
        pull(&place, &other, name, image).await;
    }
    place.check_objects();
}

/// A bucket without a limit gets no request of a ledger: nothing is deleted, recorded or asked for before an upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlimited_bucket_has_no_ledger() {
    let place = Place::new(&[MIB, 10]).await;
    let proxy = "ttl: 24h, cache: {maxsize: 1Gi}";
    let mirror = place.mirror_with("tier", &place.store.keys(), proxy).await;
    place.pull(&mirror, "pulled").await;
    until_stored(&place, content(&place.image).len(), &mirror).await;
    assert!(mirror.status().await["objects"].is_null());
    mirror.stop().await;
    let asked = place.requests(|seen| {
        let is_deletion = seen.method == Method::DELETE || seen.query.contains("delete");
        is_deletion || seen.path.contains("/ledger/")
    });
    assert_eq!(asked, []);
    // The pull asked for each piece of content at most once.
    let (gets, heads, lists) = place.reads();
    let most = content(&place.image).len();
    assert!(gets <= most && heads + lists == 0, "{:#?}", place.store.seen());
    assert!(ledgers(&place).is_empty() && has_all(&place, &place.image));
}

/// A use of the local tier keeps content in the bucket: the least recently used goes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn used_content_outlives_unused_content() {
    let place = Place::new(&[10]).await;
    // Two images, and half of a layer.
    let keys = limited(&place, 4 * MIB + MIB / 2);
    let mirror = place.mirror_with("tier", &keys, KEEP).await;
    let (first, second) = (push(&place, "first").await, push(&place, "second").await);
    pull(&place, &mirror, "first", &first).await;
    pull(&place, &mirror, "second", &second).await;
    until_objects(&mirror, count([&first, &second])).await;
    pull(&place, &mirror, "first", &first).await;
    let third = push(&place, "third").await;
    pull(&place, &mirror, "third", &third).await;
    until_only(&place, &first, &second).await;
    until_only(&place, &third, &second).await;
}

/// Pinned content stays in the bucket, over the limit and with an empty local tier: the manifest and all that it names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_content_stays() {
    let place = Place::new(&[10]).await;
    let (pinned, other) = (push(&place, "pinned").await, push(&place, "other").await);
    let mirror = place.mirror_with("tier", &limited(&place, ROOM), KEEP).await;
    pull(&place, &mirror, "pinned", &pinned).await;
    pull(&place, &mirror, "other", &other).await;
    until_objects(&mirror, count([&pinned, &other])).await;
    mirror.stop().await;
    let host = place.upstream.url().trim_start_matches("http://").to_owned();
    let proxy = format!("ttl: 1ms, cache: {{maxsize: 1Gi, pinned: ['{host}/library/pinned:1']}}");
    let next = place.mirror_with("empty", &limited(&place, 1), &proxy).await;
    until_objects(&next, count([&pinned])).await;
    assert!(has_all(&place, &pinned));
}

/// A server with an empty local tier knows what is in the bucket from its ledger, and lists nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_keeps_the_ledger() {
    let place = Place::new(&[MIB, 10]).await;
    let mirror = roomy(&place, "tier").await;
    place.pull(&mirror, "pulled").await;
    let count = content(&place.image).len();
    until_objects(&mirror, count).await;
    let bytes = mirror.status().await["bytes"].clone();
    mirror.stop().await;
    assert!(!ledgers(&place).is_empty());
    let next = roomy(&place, "empty").await;
    until_objects(&next, count).await;
    assert_eq!(next.status().await["bytes"], bytes);
    let (_, heads, lists) = place.reads();
    assert_eq!((heads, lists), (0, 0));
}

/// A server that was killed before it wrote the ledger completes it from its index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_completes_its_ledger() {
    let place = Place::new(&[MIB, 10]).await;
    let (mut daemon, address) = crash::start(&place, &limited(&place, ROOM), 0).await;
    crash::pull(&place, address, NAME, "pulled")
        .await
        .expect("a pull");
    let count = content(&place.image).len();
    let tag = "docker/registry/v2/repositories/library/app/_manifests/tags/1/current/link";
    let stored = || async {
        let all = has_all(&place, &place.image) && place.store.objects().join(tag).exists();
        all.then_some(())
    };
    wait::until("uploads", LIMIT, stored).await.expect("uploads");
    daemon.kill();
    assert!(ledgers(&place).is_empty());
    let next = roomy(&place, "tier").await;
    until_objects(&next, count).await;
}

/// A damaged ledger is rebuilt from a listing, which leaves out what something else put into the bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_ledger_is_rebuilt() {
    let place = Place::new(&[MIB, 10]).await;
    let mirror = roomy(&place, "tier").await;
    place.pull(&mirror, "pulled").await;
    let count = content(&place.image).len();
    until_objects(&mirror, count).await;
    mirror.stop().await;
    for path in ledgers(&place) {
        let shard = path.file_name().expect("a name").to_string_lossy().into_owned();
        let foreign = data(&place, &format!("{shard}{}", "0".repeat(62)));
        std::fs::create_dir_all(foreign.parent().expect("a directory")).expect("a directory");
        std::fs::write(foreign, "foreign").expect("a file");
        std::fs::write(path, "{\"version\":1}\ngarbage").expect("a file");
    }
    let next = roomy(&place, "empty").await;
    until_objects(&next, count).await;
}

/// Content that something else put into the bucket stays, also if a mirror got the same content from the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_object_is_never_deleted() {
    let place = Place::new(&[MIB, MIB / 2]).await;
    let all = content(&place.image);
    let source = |hex: &str| place.image.path().join("blobs/sha256").join(hex);
    let (same, own) = all.split_at(1);
    let unknown = "ab".repeat(32);
    for hex in same.iter().chain([&unknown]) {
        let path = data(&place, hex);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(&path, std::fs::read(source(hex)).unwrap_or_default()).expect("a file");
    }
    // Nothing that the mirror uploads may stay.
    let mirror = place.mirror_with("tier", &limited(&place, 1), KEEP).await;
    place.pull(&mirror, "pulled").await;
    let gone = || async {
        let pending = mirror.status().await["pendingUploads"] == 0;
        let gone = own.iter().all(|hex| !data(&place, hex).exists());
        (pending && gone && mirror.status().await["objects"] == 0).then_some(())
    };
    wait::until("eviction", LIMIT, gone).await.expect("an eviction");
    assert!(data(&place, &same[0]).exists() && data(&place, &unknown).exists());
}

/// Content of the bucket expires with `proxy.ttl`, its links with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_content_expires() {
    let place = Place::new(&[MIB, 10]).await;
    let keys = limited(&place, 1 << 30);
    let mirror = place.mirror_with("tier", &keys, KEEP).await;
    place.pull(&mirror, "pulled").await;
    until_objects(&mirror, content(&place.image).len()).await;
    mirror.stop().await;
    for from in ["LastUse", "FirstFetch"] {
        let proxy = format!("ttl: 24h, cache: {{ttlfrom: {from}, maxsize: 1Gi}}");
        let next = place.mirror_with("empty", &keys, &proxy).await;
        until_objects(&next, content(&place.image).len()).await;
        next.stop().await;
    }
    let next = place
        .mirror_with(
            "empty",
            &keys,
            "ttl: 1ms, cache: {ttlfrom: LastUse, maxsize: 1Gi}",
        )
        .await;
    until_objects(&next, 0).await;
    let left: Vec<_> = files(&place.store.objects().join("docker"));
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// A server that was killed after the deletion of content and before that of its links leaves a miss, and the next one
/// deletes the links.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_eviction_is_completed() {
    let place = Place::new(&[MIB, 10]).await;
    let mirror = roomy(&place, "tier").await;
    place.pull(&mirror, "pulled").await;
    until_stored(&place, content(&place.image).len(), &mirror).await;
    mirror.stop().await;
    place.store.fail(Some(Fault::KeepLinks));
    let keys = limited(&place, 1);
    let (mut daemon, _) = crash::start(&place, &keys, 1).await;
    let gone = || async { (stored_bytes(&place) == 0).then_some(()) };
    wait::until("deletion of content", LIMIT, gone)
        .await
        .expect("a deletion");
    daemon.kill();
    place.store.fail(None);
    let links = || files(&place.store.objects().join("docker/registry/v2/repositories"));
    assert!(!links().is_empty());
    let reader = roomy(&place, "reader").await;
    place.pull(&reader, "pulled-again").await;
    reader.stop().await;
    let next = place.mirror_with("tier", &keys, KEEP).await;
    let none = || async { (stored_bytes(&place) == 0 && links().is_empty()).then_some(()) };
    wait::until("deletion of the links", LIMIT, none)
        .await
        .expect("a deletion");
    drop(next);
}

/// Returns the directories of the uploads in parts that have not ended.
fn uploads(place: &Place) -> Vec<PathBuf> {
    let below = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let keys = below(&place.store.objects().join(".sgwtmp/multipart"));
    keys.iter().flat_map(|key| below(key)).collect()
}

/// An upload in parts of a server that lost its local tier is aborted when it is older than a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_multipart_upload_is_aborted() {
    let place = Place::new(&[20 * MIB]).await;
    place.store.fail(Some(Fault::KeepParts));
    let (mut daemon, address) = crash::start(&place, &limited(&place, ROOM), 2).await;
    crash::pull(&place, address, NAME, "pulled")
        .await
        .expect("a pull");
    let begun = || async { uploads(&place).pop() };
    let upload = wait::until("an upload in parts", LIMIT, begun)
        .await
        .expect("an upload");
    daemon.kill();
    place.store.fail(None);
    let directory = std::fs::File::open(&upload).expect("a directory");
    let time = std::time::SystemTime::now() - Duration::from_hours(25);
    directory.set_modified(time).expect("a time");
    let mirror = roomy(&place, "other").await;
    let gone = || async { (!upload.exists()).then_some(()) };
    wait::until("end of the old upload", Duration::from_mins(4), gone)
        .await
        .expect("an end");
    mirror.stop().await;
}
