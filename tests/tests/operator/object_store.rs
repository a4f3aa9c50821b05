//! Mirrors in front of a bucket: a real object store, and servers as processes.

use std::net::SocketAddr;
use std::path::Path;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};
use testbed::FakeKubelet;
use testbed::bucket::{ACCESS_KEY, BUCKET, Fault, ObjectStore, SECRET_KEY};
use testbed::image::Layout;
use testbed::scratch::Scratch;
use testbed::skopeo::{self, Registry};
use testbed::upstream::{self, Upstream};

use crate::bench::{Bench, push_one, soon};
use crate::pods::{address, admin, is_ready, kubelet, pods, restarts};

/// A mirror `hub` in front of a bucket, with its parts.
pub(crate) struct Stage {
    pub(crate) bench: Bench,
    kubelet: FakeKubelet,
    store: ObjectStore,
    pub(crate) upstream: Upstream,
    scratch: Scratch,
}

impl Stage {
    pub(crate) async fn start(name: &str) -> Self {
        let bench = Bench::start(name).await;
        let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
        push_one(&upstream, 11).await;
        let stage = Self {
            kubelet: kubelet(&bench).await,
            bench,
            store: ObjectStore::start().await.unwrap(),
            upstream,
            scratch: Scratch::new("object-store").unwrap(),
        };
        stage.keys(SECRET_KEY).await;
        stage
    }

    /// Stores the credentials for the bucket.
    async fn keys(&self, secret: &str) {
        let keys = json!({"accesskey": ACCESS_KEY, "secretkey": secret});
        self.bench.secret("keys", keys).await;
    }

    /// Returns a spec with these fields of the bucket.
    pub(crate) fn spec(&self, fields: &Value) -> Value {
        let mut s3 = json!({"bucket": BUCKET, "endpoint": self.store.url()});
        let fields = fields.as_object().unwrap().clone();
        s3.as_object_mut().unwrap().extend(fields);
        json!({
            "upstreams": [{"host": "registry.example", "remoteURL": self.upstream.url()}],
            "storage": {
                "type": "ObjectStore",
                "objectStore": {"s3": s3, "credentials": {"type": "Secret", "secretRef": {"name": "keys"}}, "maxSize": "1Gi"},
            },
        })
    }

    pub(crate) async fn ready_pod(&self) -> Pod {
        soon("ready Pod", async || {
            pods(&self.bench).await.into_iter().find(is_ready)
        })
        .await
    }

    /// Pulls the image through a Pod, and returns its digest.
    pub(crate) async fn pull(&self, pod: &Pod, into: &str) -> String {
        let registry = Registry::open(SocketAddr::new(address(pod).parse().unwrap(), 5000));
        let into = self.scratch.path().join(into);
        skopeo::pull(&registry, "team/app:one", &into).await.unwrap();
        let pulled = Layout::open(&into).unwrap();
        pulled.digest("one").unwrap().to_owned()
    }

    /// Waits until the bucket has all that a Pod stored.
    async fn until_uploaded(&self, pod: &Pod, prefix: &str) {
        let blobs = self
            .store
            .objects()
            .join(prefix)
            .join("docker/registry/v2/blobs/sha256");
        soon("bucket with all content", async || {
            let status: Value = serde_json::from_str(&admin(pod, "status").await?).ok()?;
            // A manifest, a configuration and a layer.
            (status["bucket"]["pendingUploads"] == 0 && data_files(&blobs) >= 3).then_some(())
        })
        .await;
    }

    /// Replaces the Pod and takes the registry down: the new Pod, whose local tier is empty, serves the same image. Returns
    /// that Pod.
    pub(crate) async fn check_bucket_serves(&mut self, first: &Pod, digest: &str) -> Pod {
        self.upstream.go_down();
        self.bench.delete::<Pod>(&first.name_any()).await;
        let second = soon("Pod with an empty local tier", async || {
            let all = pods(&self.bench).await;
            all.into_iter()
                .find(|pod| is_ready(pod) && pod.uid() != first.uid())
        })
        .await;
        assert_eq!(self.pull(&second, "second").await, digest);
        second
    }

    /// Waits for a message of `StorageReady`.
    pub(crate) async fn until_storage(&self, status: &str, reason: Reason) -> String {
        let condition = self
            .bench
            .until_hub(ConditionType::StorageReady, status, reason)
            .await;
        condition.message
    }
}

/// Returns the number of objects with content below a directory.
fn data_files(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| {
            if path.is_dir() {
                data_files(&path)
            } else {
                usize::from(path.ends_with("data"))
            }
        })
        .sum()
}

/// An image that was pulled lands in the bucket below `NAMESPACE/NAME`. A new Pod, whose local tier is empty, serves it
/// while the registry is down. The credentials are in Secrets only, and the operator writes nothing in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_survives_its_local_tier() {
    let mut stage = Stage::start("bucket-tier").await;
    stage.bench.mirror("hub", stage.spec(&json!({}))).await;
    let first = stage.ready_pod().await;
    let digest = stage.pull(&first, "first").await;
    let prefix = format!("{}/hub", stage.bench.namespace);
    stage.until_uploaded(&first, &prefix).await;
    assert_eq!(
        stage.until_storage("True", Reason::VolumeReady).await,
        "the bucket answers"
    );
    stage
        .bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;
    let location = format!("s3://{BUCKET}/{prefix} at {}", stage.store.url());
    let status = stage.bench.until_accepted("hub").await;
    assert_eq!(status.storage.unwrap().bucket.unwrap().location, location);
    soon("status with the content of the bucket", async || {
        let status = stage.bench.until_accepted("hub").await;
        let bucket = status.storage?.bucket?;
        let found = (bucket.objects?, bucket.bytes? > 0, bucket.pending_uploads?);
        // An index, two manifests, two configurations and two layers.
        (found == (7, true, 0)).then_some(())
    })
    .await;
    stage.bench.until_nothing_is_written().await;

    let second = stage.check_bucket_serves(&first, &digest).await;

    let list = ListParams::default();
    let maps = stage.bench.api::<ConfigMap>().list(&list).await.unwrap().items;
    let mirrors = stage
        .bench
        .api::<RegistryMirror>()
        .list(&list)
        .await
        .unwrap()
        .items;
    let deployments = stage.bench.api::<Deployment>().list(&list).await.unwrap().items;
    let logs = [&first, &second].map(|pod| stage.kubelet.log(&pod.uid().unwrap(), "mirror"));
    let logs = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default());
    let public = format!(
        "{maps:?} {mirrors:?} {deployments:?} {:?} {logs:?}",
        pods(&stage.bench).await
    );
    assert!(!public.contains(SECRET_KEY), "a secret key outside of Secrets");
}

/// A local tier of `PersistentVolumeClaims` belongs to a StatefulSet, which pulls and uploads alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_tier_of_pvcs_is_a_stateful_set() {
    let stage = Stage::start("bucket-claims").await;
    let mut spec = stage.spec(&json!({"prefix": "shared"}));
    spec["storage"]["localTier"] =
        json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "64Mi"}});
    stage.bench.mirror("hub", spec).await;
    let pod = stage.ready_pod().await;
    assert_eq!(pod.name_any(), "hub-0");
    stage.pull(&pod, "pulled").await;
    stage.until_uploaded(&pod, "shared").await;
    assert!(stage.bench.get::<StatefulSet>("hub").await.is_some());
    assert!(stage.bench.get::<Deployment>("hub").await.is_none());
    let capacity = |mirror: &RegistryMirror| mirror.status.as_ref()?.storage.as_ref()?.capacity.clone();
    stage.bench.until("hub", "capacity", capacity).await;
}

/// A store that refuses the credentials is reported, and the mirror stays ready. New credentials reach the running server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_credentials_rotate_without_a_restart() {
    let stage = Stage::start("bucket-keys").await;
    stage.keys("anotherkey").await;
    stage.bench.mirror("hub", stage.spec(&json!({}))).await;
    let pod = stage.ready_pod().await;
    let message = stage
        .bench
        .until_hub(ConditionType::StorageReady, "False", Reason::BucketDenied)
        .await
        .message;
    assert!(message.contains(&pod.name_any()), "{message}");
    assert!(!message.contains("anotherkey"), "{message}");
    stage
        .bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;
    stage.pull(&pod, "pulled").await;

    stage.keys(SECRET_KEY).await;
    stage.until_storage("True", Reason::VolumeReady).await;
    let prefix = format!("{}/hub", stage.bench.namespace);
    stage.until_uploaded(&pod, &prefix).await;
    let after = stage.ready_pod().await;
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}

/// A Secret that lacks a key is rejected, and the running servers keep the credentials that they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incomplete_bucket_secret_is_rejected() {
    let stage = Stage::start("bucket-secret").await;
    stage.bench.mirror("hub", stage.spec(&json!({}))).await;
    let pod = stage.ready_pod().await;
    stage.until_storage("True", Reason::VolumeReady).await;
    let keys = json!({"accesskey": "half", "secretkey": ""});
    stage.bench.secret("keys", keys).await;
    let message = stage
        .bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceMalformed)
        .await
        .message;
    assert!(
        message.contains("secretkey") && !message.contains("half"),
        "{message}"
    );
    stage.pull(&pod, "pulled").await;
    let prefix = format!("{}/hub", stage.bench.namespace);
    stage.until_uploaded(&pod, &prefix).await;
    stage.keys(SECRET_KEY).await;
    stage.bench.until_accepted("hub").await;
}

/// A bucket that does not exist, and then a store that does not answer, are reported; pulls continue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_and_failing_bucket_are_reported() {
    let stage = Stage::start("bucket-faults").await;
    stage
        .bench
        .mirror("hub", stage.spec(&json!({"bucket": "missing"})))
        .await;
    let pod = stage.ready_pod().await;
    stage
        .bench
        .until_hub(ConditionType::StorageReady, "False", Reason::BucketNotFound)
        .await;
    stage.pull(&pod, "first").await;
    stage.store.fail(Some(Fault::SlowDown));
    stage.bench.mirror("hub", stage.spec(&json!({}))).await;
    stage
        .bench
        .until_hub(ConditionType::StorageReady, "False", Reason::BucketUnreachable)
        .await;
    stage
        .bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;
    stage.store.fail(None);
}

/// Of two mirrors with one bucket and prefix the second one is rejected, until the first one is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_mirror_of_a_prefix_is_rejected() {
    let stage = Stage::start("bucket-conflict").await;
    let spec = stage.spec(&json!({"prefix": "shared"}));
    stage.bench.mirror("other", spec.clone()).await;
    stage.bench.until_accepted("other").await;
    stage.bench.mirror("hub", spec).await;
    let message = stage
        .bench
        .until_hub(ConditionType::Accepted, "False", Reason::BucketConflict)
        .await
        .message;
    assert!(
        message.contains("RegistryMirror \"other\" has s3://"),
        "{message}"
    );
    stage
        .bench
        .until_hub(ConditionType::Ready, "False", Reason::BucketConflict)
        .await;
    assert!(stage.bench.get::<Deployment>("hub").await.is_none());
    stage.bench.delete::<RegistryMirror>("other").await;
    stage.bench.until_accepted("hub").await;
}
