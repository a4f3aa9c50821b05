//! Mirrors that really serve: their Pods run as processes of this machine.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use testbed::FakeKubelet;
use testbed::fake_kubelet::{Image, Options};
use testbed::image::Random;
use testbed::scratch::Scratch;
use testbed::skopeo::{self, Registry};
use testbed::upstream::{self, Access, Upstream};

use crate::bench::{Bench, IMAGE, soon, with_claims};

pub(crate) async fn kubelet(bench: &Bench) -> FakeKubelet {
    let mirror = Image::new("/mirror", env!("CARGO_BIN_EXE_mirror-under-test"));
    let options = Options::for_namespace(bench.namespace.name()).image(IMAGE, mirror);
    FakeKubelet::start(bench.control_plane.kubeconfig(), options)
        .await
        .unwrap()
}

pub(crate) async fn pods(bench: &Bench) -> Vec<Pod> {
    bench
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

pub(crate) fn address(pod: &Pod) -> String {
    pod.status.as_ref().unwrap().pod_ip.clone().unwrap()
}

/// What its admin port answers.
async fn admin(pod: &Pod, path: &str) -> Option<String> {
    let url = format!("http://{}:5001/{path}", address(pod));
    reqwest::get(url).await.ok()?.text().await.ok()
}

#[tokio::test]
async fn a_mirror_with_claims_becomes_ready() {
    let bench = Bench::start("ready").await;
    let _kubelet = kubelet(&bench).await;
    let mut spec = with_claims("16Mi");
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    bench
        .until_condition("hub", ConditionType::Ready, "True", Reason::Serving)
        .await;
    bench
        .until_condition("hub", ConditionType::Progressing, "False", Reason::RolledOut)
        .await;
    bench
        .until_condition("hub", ConditionType::StorageReady, "True", Reason::VolumeReady)
        .await;
    let status = bench.get::<RegistryMirror>("hub").await.unwrap().status.unwrap();
    assert_eq!((status.replicas, status.ready_replicas), (2, 2));
    assert!(status.storage.unwrap().capacity.is_some());
    let claims = bench
        .api::<PersistentVolumeClaim>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(claims.items.len(), 2, "the operator's own, and no others");
}

#[tokio::test]
async fn a_rotated_password_is_loaded_without_a_restart_and_pulls_go_on() {
    let bench = Bench::start("loaded").await;
    let _kubelet = kubelet(&bench).await;
    let mut upstream = Upstream::start(upstream::Options::protected(Access::Basic, ("ann", "old")))
        .await
        .unwrap();
    let scratch = Scratch::new("rotation").unwrap();
    for (tag, seed) in [("one", 1), ("two", 2)] {
        let directory = scratch.path().join(tag);
        let layout = Random::new(seed, &[4096]).write(&directory, tag).unwrap();
        upstream
            .push(&layout, tag, &format!("team/app:{tag}"))
            .await
            .unwrap();
    }
    bench
        .secret("quay", json!({"username": "ann", "password": "old"}))
        .await;
    bench
        .mirror(
            "hub",
            json!({
                "upstreams": [{
                    "host": "registry.example.com",
                    "remoteURL": upstream.url(),
                    "credentialsSecretRef": {"name": "quay"},
                }],
                "storage": {"type": "Ephemeral"},
            }),
        )
        .await;
    bench
        .until_condition("hub", ConditionType::Ready, "True", Reason::Serving)
        .await;
    let pod = pods(&bench).await.remove(0);
    let pull = async |tag: &str| {
        let from = Registry {
            address: format!("{}:5000", address(&pod)).parse().unwrap(),
            user: None,
            tls: false,
        };
        skopeo::pull(
            &from,
            &format!("team/app:{tag}"),
            &scratch.path().join(format!("pulled-{tag}")),
        )
        .await
    };
    pull("one").await.unwrap();

    upstream.set_users(&[("ann", "new")]).unwrap();
    bench
        .secret("quay", json!({"username": "ann", "password": "new"}))
        .await;
    soon("second version in use", async || {
        let status = admin(&pod, "status").await?;
        status.contains(r#""versionLoaded":2"#).then_some(())
    })
    .await;
    pull("two").await.unwrap();
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count)
        .sum()
}
