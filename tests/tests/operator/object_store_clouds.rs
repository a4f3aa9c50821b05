//! Mirrors in front of buckets of Google Cloud Storage and Azure: real object stores, and servers as processes.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};
use testbed::bucket::{AzureStore, BUCKET, Fault, GoogleStore};

use crate::bench::soon;
use crate::object_store::Stage;
use crate::pods::{admin, restarts};

/// The end of the key of the link that an upload writes last.
const LAST_LINK: &str = "tags/one/current/link";

/// Waits until a Pod has uploaded all that it stored.
async fn until_uploaded(pod: &Pod, is_stored: impl Fn() -> bool) {
    soon("bucket with all content", async || {
        let status: Value = serde_json::from_str(&admin(pod, "status").await?).ok()?;
        (status["bucket"]["pendingUploads"] == 0 && is_stored()).then_some(())
    })
    .await;
}

/// Returns the location of the bucket in the status.
async fn location(stage: &Stage) -> String {
    let status = stage.bench.until_accepted("hub").await;
    status.storage.unwrap().bucket.unwrap().location
}

/// Returns a spec with a bucket of Google Cloud Storage.
fn google(stage: &Stage, bucket: &str) -> Value {
    let mut spec = stage.spec(&json!({}));
    let gcs = json!({"gcs": {"bucket": bucket}, "credentials": {"secretRef": {"name": "google"}}});
    spec["storage"]["objectStore"] = gcs;
    spec
}

async fn google_key(stage: &Stage, store: &GoogleStore) {
    let key = json!({"key.json": store.key("")});
    stage.bench.secret("google", key).await;
}

/// A bucket of Google Cloud Storage keeps an image that a new Pod serves while the registry is down. The status names the
/// bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_survives_in_a_bucket_of_google() {
    let mut stage = Stage::start("bucket-google").await;
    let store = GoogleStore::start().await.unwrap();
    google_key(&stage, &store).await;
    stage.bench.mirror("hub", google(&stage, BUCKET)).await;
    let first = stage.ready_pod().await;
    let digest = stage.pull(&first, "first").await;
    until_uploaded(&first, || store.has_stored(LAST_LINK)).await;
    stage.until_storage("True", Reason::VolumeReady).await;
    let expected = format!("gs://{BUCKET}/{}/hub", stage.bench.namespace);
    assert_eq!(location(&stage).await, expected);
    stage.bench.until_nothing_is_written().await;
    stage.check_bucket_serves(&first, &digest).await;
}

/// A key that the store refuses is reported, and the mirror stays ready. The key of another store reaches the running
/// server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_key_rotates_without_a_restart() {
    let stage = Stage::start("bucket-google-key").await;
    let (denying, other) = (
        GoogleStore::start().await.unwrap(),
        GoogleStore::start().await.unwrap(),
    );
    denying.fail(Some(Fault::Denied));
    google_key(&stage, &denying).await;
    stage.bench.mirror("hub", google(&stage, BUCKET)).await;
    let pod = stage.ready_pod().await;
    stage.until_storage("False", Reason::BucketDenied).await;
    stage
        .bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;
    stage.pull(&pod, "pulled").await;
    google_key(&stage, &other).await;
    stage.until_storage("True", Reason::VolumeReady).await;
    until_uploaded(&pod, || other.has_stored(LAST_LINK)).await;
    let after = stage.ready_pod().await;
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}

/// A bucket that Google Cloud Storage lacks is reported, and pulls continue. A Secret without the key is rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_bucket_of_google_is_reported() {
    let stage = Stage::start("bucket-google-missing").await;
    let store = GoogleStore::start().await.unwrap();
    google_key(&stage, &store).await;
    stage.bench.mirror("hub", google(&stage, "missing")).await;
    let pod = stage.ready_pod().await;
    stage.until_storage("False", Reason::BucketNotFound).await;
    stage.pull(&pod, "pulled").await;
    stage.bench.secret("google", json!({"key.json": ""})).await;
    let rejected = stage
        .bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceMalformed)
        .await;
    assert!(rejected.message.contains("keyfile"), "{}", rejected.message);
}

/// Returns a spec with a container of Azure.
fn azure(stage: &Stage, store: &AzureStore, container: &str) -> Value {
    let mut spec = stage.spec(&json!({}));
    spec["storage"]["objectStore"] = json!({
        "azure": {"accountName": store.account(), "container": container, "endpoint": store.url()},
        "credentials": {"secretRef": {"name": "azure"}},
    });
    spec
}

/// A container of Azure keeps an image that a new Pod serves while the registry is down. The status names the container.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs azurite 3.37: AZURITE=node_modules/azurite/dist/src/blob/main.js cargo test --test operator -- --ignored azure"]
async fn image_survives_in_a_container_of_azure() {
    let mut stage = Stage::start("bucket-azure").await;
    let store = AzureStore::start().await.unwrap();
    let key = json!({"accountkey": store.account_key()});
    stage.bench.secret("azure", key).await;
    stage.bench.mirror("hub", azure(&stage, &store, BUCKET)).await;
    let first = stage.ready_pod().await;
    let digest = stage.pull(&first, "first").await;
    until_uploaded(&first, || store.has_stored(LAST_LINK)).await;
    stage.until_storage("True", Reason::VolumeReady).await;
    let root = format!("{BUCKET}/{}/hub", stage.bench.namespace);
    let expected = format!("azure://{}/{root} at {}", store.account(), store.url());
    assert_eq!(location(&stage).await, expected);
    stage.check_bucket_serves(&first, &digest).await;
}

/// A wrong account key is reported, and the mirror stays ready. The right one reaches the running server. A container that
/// is missing is reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs azurite 3.37: AZURITE=node_modules/azurite/dist/src/blob/main.js cargo test --test operator -- --ignored azure"]
async fn azure_key_rotates_without_a_restart() {
    let stage = Stage::start("bucket-azure-key").await;
    let store = AzureStore::start().await.unwrap();
    stage
        .bench
        .secret("azure", json!({"accountkey": "d3Jvbmc="}))
        .await;
    stage.bench.mirror("hub", azure(&stage, &store, BUCKET)).await;
    let pod = stage.ready_pod().await;
    let message = stage.until_storage("False", Reason::BucketDenied).await;
    assert!(!message.contains("d3Jvbmc="), "{message}");
    stage
        .bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;
    stage.pull(&pod, "pulled").await;
    let key = json!({"accountkey": store.account_key()});
    stage.bench.secret("azure", key).await;
    stage.until_storage("True", Reason::VolumeReady).await;
    until_uploaded(&pod, || store.has_stored(LAST_LINK)).await;
    let after = stage.ready_pod().await;
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
    stage.bench.mirror("hub", azure(&stage, &store, "missing")).await;
    stage.until_storage("False", Reason::BucketNotFound).await;
    let accepted = |mirror: &RegistryMirror| mirror.status.as_ref()?.storage.as_ref()?.bucket.clone();
    stage.bench.until("hub", "bucket", accepted).await;
}
