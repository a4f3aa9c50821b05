//! Object stores with other APIs than S3.

use testbed::bucket::{AzureStore, BUCKET, GoogleStore};
use testbed::wait;

use crate::place::{LAYERS, LIMIT, Mirror, Place};

/// The end of the key of the link that an upload writes last.
pub(crate) const LAST_LINK: &str = "tags/1/current/link";

/// Starts a mirror with these keys of a driver, and keys next to the driver's.
pub(crate) async fn start(place: &Place, tier: &str, (driver, keys): (&str, &str), next: &str) -> Mirror {
    let path = place.configuration(tier, "", "cache: {maxsize: 1Gi}");
    let text = std::fs::read_to_string(&path).expect("a file");
    let section = format!("{driver}: {{{keys}}}{next}");
    std::fs::write(&path, text.replace("s3: {}", &section)).expect("a file");
    Mirror::start(&path).await
}

/// Returns the keys of `storage.gcs` for a store, with a key file.
pub(crate) fn google_keys(place: &Place, store: &GoogleStore, private_key: &str) -> String {
    let key = place
        .scratch
        .write("key.json", store.key(private_key))
        .expect("a file");
    format!(
        "bucket: {BUCKET}, keyfile: '{}', rootdirectory: a/b",
        key.display()
    )
}

/// Returns the keys of `storage.azure` for a store.
pub(crate) fn azure_keys(store: &AzureStore) -> String {
    format!(
        "accountname: {}, accountkey: {}, container: {BUCKET}, rootdirectory: a/b, serviceurl: '{}'",
        store.account(),
        store.account_key(),
        store.url()
    )
}

/// Waits until the store has all content of a mirror that pulled.
pub(crate) async fn until_uploaded(mirror: &Mirror, is_stored: impl Fn() -> bool) {
    let uploaded = || async { (mirror.status().await["pendingUploads"] == 0 && is_stored()).then_some(()) };
    if let Err(error) = wait::until("end of the uploads", LIMIT, uploaded).await {
        panic!("{error}: {}", mirror.status().await);
    }
}

/// A mirror fills a bucket with the API of Google Cloud Storage, and another one pulls from it while the registry is
/// down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_bucket_serves_an_empty_local_tier() {
    let mut place = Place::new(&LAYERS).await;
    let store = GoogleStore::start().await.expect("a store");
    let keys = google_keys(&place, &store, "");
    let first = start(&place, "first", ("gcs", &keys), "").await;
    let second = start(&place, "second", ("gcs", &keys), "").await;
    place.pull(&first, "pulled-1").await;
    until_uploaded(&first, || store.has_stored(LAST_LINK)).await;
    place.upstream.go_down();
    place.pull(&second, "pulled-2").await;
}

/// A mirror fills a container of Azure, and another one pulls from it while the registry is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs azurite 3.37: AZURITE=node_modules/azurite/dist/src/blob/main.js cargo test --test bucket -- --ignored azure"]
async fn azure_container_serves_an_empty_local_tier() {
    let mut place = Place::new(&LAYERS).await;
    let store = AzureStore::start().await.expect("a store");
    let keys = azure_keys(&store);
    let first = start(&place, "first", ("azure", &keys), "").await;
    let second = start(&place, "second", ("azure", &keys), "").await;
    place.pull(&first, "pulled-1").await;
    until_uploaded(&first, || store.has_stored(LAST_LINK)).await;
    place.upstream.go_down();
    place.pull(&second, "pulled-2").await;
}
