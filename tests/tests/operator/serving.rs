//! Mirrors that really serve: their Pods run as processes of this machine.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::ListParams;
use reqwest::StatusCode;
use serde_json::json;
use testbed::image::Random;
use testbed::pki::Authority;
use testbed::scratch::Scratch;
use testbed::skopeo::{self, Registry};
use testbed::upstream::{self, Access, Upstream};

use crate::bench::{Bench, push_one, soon, with_claims};
use crate::pods::{address, admin, kubelet, pods, restarts};

/// A mirror with `PersistentVolumeClaims` becomes ready.
#[tokio::test]
async fn mirror_with_pvcs_becomes_ready() {
    let bench = Bench::start("ready").await;
    let _kubelet = kubelet(&bench).await;
    let mut spec = with_claims("16Mi");
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    bench.until_ready().await;
    bench
        .until_hub(ConditionType::Accepted, "True", Reason::SpecAccepted)
        .await;
    bench
        .until_hub(ConditionType::Available, "True", Reason::ReplicasReady)
        .await;
    bench
        .until_hub(ConditionType::Progressing, "False", Reason::RolledOut)
        .await;
    bench
        .until_hub(ConditionType::StorageReady, "True", Reason::VolumeReady)
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

/// A rotated password is loaded without a restart, and pulls continue.
#[tokio::test]
async fn rotated_password_loads_without_restart() {
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
    bench.login("quay", "ann", "old").await;
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
    bench.until_ready().await;
    let pod = pods(&bench).await.remove(0);
    let pull = async |tag: &str| {
        let from = Registry::open(format!("{}:5000", address(&pod)).parse().unwrap());
        skopeo::pull(
            &from,
            &format!("team/app:{tag}"),
            &scratch.path().join(format!("pulled-{tag}")),
        )
        .await
    };
    pull("one").await.unwrap();

    upstream.set_users(&[("ann", "new")]).unwrap();
    bench.login("quay", "ann", "new").await;
    soon("second version in use", async || {
        let status = admin(&pod, "status").await?;
        status.contains(r#""versionLoaded":2"#).then_some(())
    })
    .await;
    pull("two").await.unwrap();
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}

/// An upstream with TLS of an authority of its own, and an image in it.
async fn private(name: &str) -> (Upstream, Authority) {
    let authority = Authority::new(name).unwrap();
    let leaf = authority.serving(&["127.0.0.1"]).unwrap();
    let upstream = Upstream::start(upstream::Options::default().tls(leaf))
        .await
        .unwrap();
    push_one(&upstream, 1).await;
    (upstream, authority)
}

/// Asks for a tag, and the mirror its upstream, each time.
async fn asks_for(pod: &Pod, host: &str) -> StatusCode {
    let url = format!("http://{}:5000/v2/team/app/manifests/one?ns={host}", address(pod));
    reqwest::get(url).await.unwrap().status()
}

/// CA bundles are added and changed, and an upstream is removed ahead of them, without a restart.
#[tokio::test]
async fn ca_bundles_change_without_restart() {
    let bench = Bench::start("bundles").await;
    let _kubelet = kubelet(&bench).await;
    let ((one, first), (two, second)) = (private("one").await, private("two").await);
    let upstream = |name: &str, upstream: &Upstream| {
        json!({
            "host": format!("{name}.example.com"),
            "remoteURL": upstream.url(),
            "tls": {"caBundleRef": {"kind": "ConfigMap", "name": name}},
        })
    };
    let bundle = async |name: &str, authority: &Authority| {
        let map = json!({"metadata": {"name": name}, "data": {"ca.crt": authority.certificate()}});
        bench.apply::<ConfigMap>(map).await;
    };
    let answers = async |pod: &Pod, name: &str| {
        let host = format!("{name}.example.com");
        soon(&format!("an image of {name}"), async || {
            (asks_for(pod, &host).await == StatusCode::OK).then_some(())
        })
        .await;
    };
    let mut spec = crate::bench::ephemeral();
    spec["cache"] = json!({"tagTTL": "0s", "staleIfError": "0s"});
    bench.mirror("hub", spec.clone()).await;
    bench.until_ready().await;
    let pod = pods(&bench).await.remove(0);

    // The first bundle of all, of the wrong authority.
    bundle("two", &first).await;
    spec["upstreams"] = json!([{"host": "quay.io"}, upstream("two", &two)]);
    bench.mirror("hub", spec.clone()).await;
    bench
        .until_hub(ConditionType::Progressing, "False", Reason::RolledOut)
        .await;
    soon("two", async || {
        (asks_for(&pod, "two.example.com").await != StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    assert_ne!(asks_for(&pod, "two.example.com").await, StatusCode::OK);
    // Corrected where it is kept.
    bundle("two", &second).await;
    answers(&pod, "two").await;

    // Another upstream goes before it, with a bundle of its own.
    let pulls = tokio::spawn({
        let pod = pod.clone();
        async move {
            for failed in 0.. {
                if asks_for(&pod, "two.example.com").await != StatusCode::OK {
                    return failed;
                }
            }
            0
        }
    });
    bundle("one", &first).await;
    spec["upstreams"] = json!([{"host": "quay.io"}, upstream("one", &one), upstream("two", &two)]);
    bench.mirror("hub", spec).await;
    answers(&pod, "one").await;
    answers(&pod, "two").await;
    bench
        .until_hub(ConditionType::Progressing, "False", Reason::RolledOut)
        .await;

    // Gone, then nonsense, then there again.
    bench.delete::<ConfigMap>("one").await;
    let gone = bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    assert!(
        gone.message.contains(r#"ConfigMap "one" not found"#),
        "{}",
        gone.message
    );
    let nonsense = json!({"metadata": {"name": "one"}, "data": {"ca.crt": "none"}});
    bench.apply::<ConfigMap>(nonsense).await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceMalformed)
        .await;
    assert_eq!(asks_for(&pod, "one.example.com").await, StatusCode::OK);
    bundle("one", &first).await;
    bench.until_accepted("hub").await;
    assert!(!pulls.is_finished(), "pull {} failed", pulls.await.unwrap());
    pulls.abort();
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}
